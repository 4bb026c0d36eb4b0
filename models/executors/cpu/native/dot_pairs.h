// Dot products where there is no VNNI: two products of 16 bits in each lane by one instruction. (The one that takes
// eight bits, vpmaddubsw, saturates and so is not exact.) Included by kernels.h, in its namespace; see convolution_u8.h.
#define DOT_PARTS 2
#define DOT_SIGNED 0
#define DOT_TAIL 0

#if VECTOR_BYTES == 64
inline IntVector spread(const uint8_t *four, int part) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof word);
    const __m512i all = _mm512_set1_epi32(word);
    return (IntVector)(part ? _mm512_srli_epi16(all, 8) : _mm512_and_si512(all, _mm512_set1_epi32(0xFF00FF)));
}
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) {
    return sum + (IntVector)_mm512_madd_epi16((__m512i)x, (__m512i)weights);
}
inline HalfIntVector dot(HalfIntVector sum, HalfIntVector x, HalfIntVector weights) {
    return sum + (HalfIntVector)_mm256_madd_epi16((__m256i)x, (__m256i)weights);
}
inline HalfIntVector lower(IntVector x) { return (HalfIntVector)_mm512_castsi512_si256((__m512i)x); }
#else
inline IntVector spread(const uint8_t *four, int part) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof word);
    const __m256i all = _mm256_set1_epi32(word);
    return (IntVector)(part ? _mm256_srli_epi16(all, 8) : _mm256_and_si256(all, _mm256_set1_epi32(0xFF00FF)));
}
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) {
    return sum + (IntVector)_mm256_madd_epi16((__m256i)x, (__m256i)weights);
}
inline IntVector lower(IntVector x) { return x; }
#endif
