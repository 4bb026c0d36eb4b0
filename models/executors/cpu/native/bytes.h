// Between u8 in memory and float32 in registers, by intrinsics: compilers take the generic forms apart into single
// lanes. Included by kernels.h, in its namespace. All round to the nearest even and saturate to 0 .. 255; NaN becomes 0.

#if defined(__x86_64__)
inline __m128i load_four(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm_cvtsi32_si128(four);
}
#if VECTOR_BYTES == 64
inline void load_u8(const uint8_t *p, Vector &x) {
    x = (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
inline __m128i saturated(Vector x) {
    const __m512 positive = _mm512_max_ps((__m512)x, _mm512_setzero_ps());
    return _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(positive));
}
inline __m128i saturated(HalfVector x) {
    const __m256 positive = _mm256_max_ps((__m256)x, _mm256_setzero_ps());
    return _mm256_cvtusepi32_epi8(_mm256_cvtps_epi32(positive));
}
#elif VECTOR_BYTES == 32
inline __m128i saturated(Vector x) {
    const __m256 positive = _mm256_max_ps((__m256)x, _mm256_setzero_ps());
    const __m256i words = _mm256_cvtps_epi32(_mm256_min_ps(positive, _mm256_set1_ps(255)));
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm_packus_epi16(halves, halves);
}
#endif
#if VECTOR_BYTES >= 32
inline void load_u8(const uint8_t *p, HalfVector &x) {
    x = (HalfVector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#else
inline void load_u8(const uint8_t *p, Vector &x) {
    const __m128i zero = _mm_setzero_si128();
    x = (Vector)_mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(load_four(p), zero), zero));
}
inline __m128i saturated(Vector x) {
    const __m128 positive = _mm_max_ps((__m128)x, _mm_setzero_ps());
    const __m128i words = _mm_cvtps_epi32(_mm_min_ps(positive, _mm_set1_ps(255)));
    const __m128i halves = _mm_packs_epi32(words, words);
    return _mm_packus_epi16(halves, halves);
}
#endif

#elif defined(__aarch64__)
inline void load_u8(const uint8_t *p, Vector &x) {
    uint32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    const uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    x = (Vector)vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves)));
}
inline uint8x8_t saturated(Vector x) { // the conversion saturates below 0, and NaN becomes 0
    const uint16x4_t halves = vqmovn_u32(vcvtnq_u32_f32((float32x4_t)x));
    return vqmovn_u16(vcombine_u16(halves, halves));
}

#else
inline void load_u8(const uint8_t *p, Vector &x) {
    for (int i = 0; i < LANES; ++i) x[i] = p[i];
}
struct FourBytes {
    uint8_t byte[LANES];
};
inline FourBytes saturated(Vector x) {
    FourBytes bytes;
    // Floats from 1.5 * 2^23 on are integers, so that the sum is rounded.
    for (int i = 0; i < LANES; ++i) bytes.byte[i] = x[i] > 0 ? (uint8_t)((x[i] < 255 ? x[i] : 255) + 12582912.0f - 12582912.0f) : 0;
    return bytes;
}
#endif

// Integers of 32 bits as float32, as many as V has lanes.
template <class V> inline V to_floats(const int32_t *p) {
    typedef int32_t Integers __attribute__((vector_size(sizeof(V))));
    Integers x;
    __builtin_memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, V);
}

// As many bytes as V has lanes.
template <class V = Vector> inline V load(const uint8_t *p) {
    V x;
    load_u8(p, x);
    return x;
}

// Stores the first `lanes`: a multiple of 8, or all if `lanes` is larger.
template <class V> inline void store(uint8_t *p, V x, int lanes) {
    constexpr int N = sizeof(V) / 4;
    const auto bytes = saturated(x);
    if (N <= 8 || lanes >= N)
        __builtin_memcpy(p, &bytes, N);
    else
        __builtin_memcpy(p, &bytes, 8);
}

// Stores NV vectors side by side.
template <int NV> inline void store_panel(uint8_t *p, const Vector *values) {
#if VECTOR_BYTES == 64
    if (NV == 4) {
        // Packing saturates below 0 by itself. It works within quarters of a register, which the permutation sorts out.
        // Where one of two is NaN, their minimum is the second: NaN, which is then converted to a large negative number.
        const __m512 most = _mm512_set1_ps(255);
        __m512i words[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) words[n] = _mm512_cvtps_epi32(_mm512_min_ps(most, (__m512)values[n % (NV ? NV : 1)]));
        const __m512i one = _mm512_packs_epi32(words[0], words[1]), two = _mm512_packs_epi32(words[2], words[3]);
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(one, two)));
        return;
    }
#endif
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) store(p + n * LANES, values[n], LANES);
}
