// AVX-512 with VNNI: 32 registers of 16 floats.
#include "structures.h"
#if defined(HAVE_VNNI)
#include <immintrin.h>
#include <assert.h>
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,fma,prefer-vector-width=512")
#endif
#define VECTOR_BYTES 64
#define PANEL_VECTORS 4
#define MR_1 12
#define MR_2 12
#define MR_3 8
#define MR_4 6
#define MR_U8_1 12
#define MR_U8_2 8
#define MR_U8_3 8
#define MR_U8_4 4
#define DOT_PRODUCT "dot_vnni.h"
#include "kernels.h"
const Kernels avx512vnni_kernels = KERNELS("avx512vnni");
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
