// Dot products by VNNI: four products of u8 and s8 in each lane by one instruction. Included by kernels.h, in its
// namespace; see convolution_u8.h.
#define DOT_PARTS 1
#define DOT_SIGNED 0
#define DOT_TAIL (VECTOR_BYTES == 64 ? 4 : 0)

inline IntVector spread(const uint8_t *four, int) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof word);
    return word - IntVector{};
}

#if VECTOR_BYTES == 64
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) {
    return (IntVector)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weights);
}
inline HalfIntVector dot(HalfIntVector sum, HalfIntVector x, HalfIntVector weights) {
    return (HalfIntVector)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)weights);
}
inline HalfIntVector lower(IntVector x) { return (HalfIntVector)_mm512_castsi512_si256((__m512i)x); }
#else
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) {
    return (IntVector)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)weights);
}
inline IntVector lower(IntVector x) { return x; }
#endif
