// What every machine of the architecture has: NEON on ARM (32 registers of 4 floats), SSE2 on x86.
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define PANEL 4
#define TILE_1 8
#define TILE_2 8
#define TILE_3 8
#define TILE_4 6
#else
#define PANEL 3
#define TILE_1 8
#define TILE_2 4
#define TILE_3 4
#endif
#include "kernels.h"
#if defined(__aarch64__)
const Kernels baseline_kernels = {"neon", LANES, PANEL, run};
#else
const Kernels baseline_kernels = {"portable", LANES, PANEL, run};
#endif
