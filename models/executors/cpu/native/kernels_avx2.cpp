// AVX2 with fused multiply-add: 16 registers of 8 floats.
#if defined(__x86_64__)
#include "native.h"
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32
#define PANEL 3
#define TILE_1 8
#define TILE_2 6
#define TILE_3 4
#include "kernels.h"
const Kernels avx2_kernels = {"avx2", LANES, PANEL, run};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
