// The instruction set that every machine of the architecture has: NEON on ARM (32 registers of 4 floats), SSE2 on x86
// (16 registers of 4 floats).
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define PANEL_VECTORS 4
#define MR_1 8
#define MR_2 8
#define MR_3 8
#define MR_4 6
#else
#define PANEL_VECTORS 3
#define MR_1 8
#define MR_2 4
#define MR_3 4
#endif
#define DOT_PRODUCT "dot_portable.h"
#include "kernels.h"
#if defined(__aarch64__)
const Kernels baseline_kernels = KERNELS("neon");
#else
const Kernels baseline_kernels = KERNELS("portable");
#endif
