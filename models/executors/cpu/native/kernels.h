// The kernels: written once with vector extensions, compiled once for each instruction set by a file of its own, which
// defines
//     VECTOR_BYTES          size of a vector
//     PANEL_VECTORS         the most vectors of output channels in a panel
//     MR_1, .., MR_4        rows that are accumulated together for a panel of 1, .., 4 vectors: as many as registers hold
//     MR_U8_1, .., MR_U8_4  the same for a convolution of u8, whose epilogue is longer. Smaller register blocks let the
//                           CPU overlap one block's epilogue with the next block's products
//     DOT_PRODUCT           the header with its dot product of eight bits, see convolution_u8.h
//
// A kernel accumulates a sum (accumulate.h, convolution_u8.h), then its epilogue adds and stores (epilogue.h).
//
// Everything is in an anonymous namespace, so that no linker can exchange a function of one instruction set for that of
// another; no C++ header may be included here for the same reason.
//
// Preconditions are assertions. Builds define NDEBUG; `CPPFLAGS=-UNDEBUG make native` compiles them in.
#ifndef MR_U8_1
#define MR_U8_1 MR_1
#define MR_U8_2 MR_2
#define MR_U8_3 MR_3
#define MR_U8_4 MR_4
#endif
#include "structures.h"
#include <assert.h>
#include <stddef.h>

namespace {

#include "vector.h"
#include "bytes.h"
#include "epilogue.h"
#include "accumulate.h"
#include "convolution.h"
#include DOT_PRODUCT
#include "convolution_u8.h"
#include "weighted_sums.h"
#include "winograd.h"

template <bool ANY> void run_any(const Block &block, const Op &op) {
    switch (op.kind) {
    case CONVOLVE: convolve<ANY>(block, op); break;
    case WINOGRAD: op.taps == 36 ? winograd<Tile4x4, ANY>(block, op) : winograd<Tile2x2, ANY>(block, op); break;
    case INTERPOLATE: interpolate<ANY>(block, op); break;
    case RESAMPLE: resample<ANY, float>(block, &op); break;
    }
}

// Runs the ops of a block one after the other.
void run(const Block &block) {
    assert(0 <= block.first && block.first < block.last);
    assert(0 <= block.group && block.group < block.groups);
    for (int i = 0; i < block.op_count; i += block.ops[i].parts) {
        const Op &op = block.ops[i];
        if (op.kind == CONVOLVE_U8)
            convolve_u8(block, op);
        else if (op.kind == COPY)
            copy(block, op);
        else if (op.kind == RESAMPLE && op.source_scale != 0)
            resample<true, uint8_t>(block, &op);
        else if (op.target_scale != 0 || op.residual_scale != 0)
            run_any<true>(block, op);
        else
            run_any<false>(block, op);
    }
}

} // namespace

#define KERNELS(name) {name, LANES, PANEL_VECTORS, DOT_PARTS, DOT_SIGNED, DOT_TAIL, run}
