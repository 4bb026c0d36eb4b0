// AVX2 with VNNI in the encoding of AVX: 16 registers of 8 floats.
#include "structures.h"
#if defined(HAVE_VNNI)
#include <immintrin.h>
#include <assert.h>
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif
#define VECTOR_BYTES 32
#define PANEL_VECTORS 3
#define MR_1 8
#define MR_2 6
#define MR_3 4
#define DOT_PRODUCT "dot_vnni.h"
#include "kernels.h"
const Kernels avxvnni_kernels = KERNELS("avxvnni");
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
