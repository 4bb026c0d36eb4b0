// AVX2 with fused multiply-add: 16 registers of 8 floats.
#if defined(__x86_64__)
#include "structures.h"
#include <immintrin.h>
#include <assert.h>
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32
#define PANEL_VECTORS 3
#define MR_1 8
#define MR_2 6
#define MR_3 4
#define DOT_PRODUCT "dot_pairs.h"
#include "kernels.h"
const Kernels avx2_kernels = KERNELS("avx2");
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
