// AVX-512: 32 registers of 16 floats.
#if defined(__x86_64__)
#include "structures.h"
#include <immintrin.h>
#include <assert.h>
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#endif
#define VECTOR_BYTES 64
#define PANEL_VECTORS 4
#define MR_1 12
#define MR_2 12
#define MR_3 8
#define MR_4 6
#define DOT_PRODUCT "dot_pairs.h"
#include "kernels.h"
const Kernels avx512_kernels = KERNELS("avx512");
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
