// The kernels: written once with vector extensions, compiled once for each instruction set by a file of its own, which
// defines
//     VECTOR_BYTES          size of a vector
//     PANEL_VECTORS         the most vectors of output channels in a panel
//     MR_1, .., MR_4        rows that are accumulated together for a panel of 1, .., 4 vectors: as many as registers hold
//
// A kernel accumulates a sum (accumulate.h), then its epilogue adds and stores (epilogue.h). A second precision replaces
// the accumulation and keeps the loops over rows (convolution.h, winograd.h) and the epilogue.
//
// Everything is in an anonymous namespace, so that no linker can exchange a function of one instruction set for that of
// another; no C++ header may be included here for the same reason.
//
// Preconditions are assertions. Builds define NDEBUG; `CPPFLAGS=-UNDEBUG make native` compiles them in.
#include "structures.h"
#include <assert.h>
#include <stddef.h>

namespace {

#include "vector.h"
#include "epilogue.h"
#include "accumulate.h"
#include "convolution.h"
#include "weighted_sums.h"
#include "winograd.h"

// Runs the ops of a block one after the other.
void run(const Block &block) {
    assert(0 <= block.first && block.first < block.last);
    assert(0 <= block.group && block.group < block.groups);
    for (int i = 0; i < block.op_count; ++i) {
        const Op &op = block.ops[i];
        switch (op.kind) {
        case CONVOLVE: convolve(block, op); break;
        case WINOGRAD: op.taps == 36 ? winograd<Tile4x4>(block, op) : winograd<Tile2x2>(block, op); break;
        case INTERPOLATE: interpolate(block, op); break;
        case RESAMPLE: resample(block, op); break;
        }
    }
}

} // namespace
