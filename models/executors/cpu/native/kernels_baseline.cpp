// The instruction set that every machine of the architecture has: NEON on ARM (32 registers of 4 floats), SSE2 on x86
// (16 registers of 4 floats).
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
#include "kernels.h"
#if defined(__aarch64__)
const Kernels baseline_kernels = {"neon", LANES, PANEL_VECTORS, run};
#else
const Kernels baseline_kernels = {"portable", LANES, PANEL_VECTORS, run};
#endif
