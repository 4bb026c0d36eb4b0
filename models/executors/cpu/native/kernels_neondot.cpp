// NEON with the dot product extension of ARMv8.2: 32 registers of 4 floats.
#if defined(__aarch64__)
#include "structures.h"
#include <assert.h>
#include <stddef.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#define VECTOR_BYTES 16
#define PANEL_VECTORS 4
#define MR_1 8
#define MR_2 8
#define MR_3 8
#define MR_4 6
#define DOT_PRODUCT "dot_neon.h"
#include "kernels.h"
const Kernels neondot_kernels = KERNELS("neondot");
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
