// Vectors of floats and integers, by the compiler's vector extensions. Included by kernels.h, in its namespace.
//
// A function template's parameter V is a vector of float32; most often that is `Vector`. `HalfVector` is half as wide
// where a Vector has 16 floats, so that rows are cut at multiples of 8 channels; elsewhere it is the same.

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef float UnalignedHalf __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntVector __attribute__((vector_size(VECTOR_BYTES)));
constexpr int LANES = VECTOR_BYTES / 4;
#if VECTOR_BYTES == 64
typedef float HalfVector __attribute__((vector_size(32)));
typedef int32_t HalfIntVector __attribute__((vector_size(32)));
#else
typedef Vector HalfVector;
typedef IntVector HalfIntVector;
#endif

template <class V = Vector> inline V load(const float *p) {
    V x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
template <class I> inline I load_ints(const int32_t *p) {
    I x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
template <class V = Vector> inline V splat(float x) { return x - V{}; }
template <class V> inline V relu(V x) { return x < 0 ? V{} : x; } // NaN stays NaN

// Stores the first `lanes` floats of `x`: a multiple of 8, or all if `lanes` is larger.
template <class V> inline void store(float *p, V x, int lanes) {
    constexpr int N = sizeof(V) / 4;
    if (N <= 8 || lanes >= N) {
        __builtin_memcpy(p, &x, sizeof x);
        return;
    }
    // Rows are multiples of 8 floats, so that only a vector of 16 is ever cut, and only in half.
    union {
        V whole;
        UnalignedHalf half[N >= 8 ? N / 8 : 1];
    } both = {x};
    *(UnalignedHalf *)p = both.half[0];
}

// Fetches a row into the cache. Rows lie anywhere in memory, so that the hardware does not foresee the next one.
inline void prefetch(const void *row, int bytes) {
    for (int b = 0; b < bytes; b += 64) __builtin_prefetch((const char *)row + b);
}

// Channels as they lie in a row of float32: rounded up to a multiple of 8.
inline int padded(int channels) { return (channels + 7) & ~7; }
