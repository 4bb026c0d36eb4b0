// Dot products without special instructions: one product of 32 bits in each lane. Included by kernels.h, in its
// namespace; see convolution_u8.h.
#define DOT_PARTS 4
#define DOT_SIGNED 0
#define DOT_TAIL 0

inline IntVector spread(const uint8_t *four, int part) { return (int32_t)four[part] - IntVector{}; }
inline IntVector dot(IntVector sum, IntVector x, IntVector weights) { return sum + x * weights; }
inline IntVector lower(IntVector x) { return x; }
