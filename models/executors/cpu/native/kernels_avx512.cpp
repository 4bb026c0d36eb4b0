// AVX-512: 32 registers of 16 floats.
#if defined(__x86_64__)
#include "native.h"
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#endif
#define VECTOR_BYTES 64
#define PANEL 4
#define TILE_1 12
#define TILE_2 12
#define TILE_3 8
#define TILE_4 6
#include "kernels.h"
const Kernels avx512_kernels = {"avx512", LANES, PANEL, run};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
