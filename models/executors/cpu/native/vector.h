// Vectors of floats, by the compiler's vector extensions. Included by kernels.h, in its namespace.

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef float UnalignedHalf __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int LANES = VECTOR_BYTES / 4;

inline Vector load(const float *p) { return *(const Unaligned *)p; }
inline Vector splat(float x) { return x - Vector{}; }
inline Vector relu(Vector x) { return x < 0 ? Vector{} : x; } // NaN stays NaN

// Stores the first `lanes` floats of `x`: a multiple of 8, or all if `lanes` is larger.
inline void store(float *p, Vector x, int lanes) {
    if (lanes >= LANES) {
        *(Unaligned *)p = x;
        return;
    }
    // Rows are multiples of 8 floats, so that only a vector of 16 is ever cut, and only in half.
    union {
        Vector whole;
        UnalignedHalf half[LANES >= 8 ? LANES / 8 : 1];
    } both = {x};
    *(UnalignedHalf *)p = both.half[0];
}

// Fetches a row into the cache. Rows lie anywhere in memory, so that the hardware does not foresee the next one.
inline void prefetch(const float *row, int channels) {
    for (int c = 0; c < channels; c += 16) __builtin_prefetch(row + c);
}

// Channels as they lie in a row: rounded up to a multiple of 8.
inline int padded(int channels) { return (channels + 7) & ~7; }
