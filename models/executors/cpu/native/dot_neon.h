// Dot products by ARM's dot product extension: four products of s8 and s8 in each lane by one instruction. Bytes become
// signed by subtracting 128, which takes 128 * (sum of weights) from a sum; sums begin with that (`first_sums`). Included
// by kernels.h, in its namespace; see convolution_u8.h.
#define DOT_PARTS 1
#define DOT_SIGNED 1
#define DOT_TAIL 0

inline IntVector spread(const uint8_t *four, int) {
    uint32_t word;
    __builtin_memcpy(&word, four, sizeof word);
    return (IntVector)(vdupq_n_u32(word) ^ vdupq_n_u32(0x80808080));
}
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) {
    return (IntVector)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)x);
}
inline IntVector lower(IntVector x) { return x; }
