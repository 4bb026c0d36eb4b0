// The data that Python and the native code share: geometries, programs and what they run on. Plain C layout;
// the same structures are declared in models/executors/native/__init__.py, field by field.
#pragma once
#include <stdint.h>

// Levels are numbered by the logarithm of their stride: 0 is the image, 2 the finest branch, 5 the coarsest.
enum { LEVELS = 6 };

enum OpKind { CONVOLVE, WINOGRAD, INTERPOLATE, RESAMPLE };
enum Rows { ACTIVE, HALO, NEEDED, TILES_2, TILES_4 };
enum Lookup { SAME_ROW, NEIGHBOURS, PIXELS };

// One feature size. A row is the channels of one position; active rows come first, then the halo: inactive rows
// that something active reads. `map` gives the row of each position, -1 where there is none: one row and one column
// of -1 come before, and at least one after; positions of one column are `pitch` apart. Tiles are squares of 2x2 or
// 4x4 positions with an active one among them.
struct Level {
    int32_t height, width, pitch, active, needed, tiles_2, tiles_4;
    const int32_t *map;
    const uint16_t *yx;       // (needed, 2)
    const uint16_t *tile_2, *tile_4; // (tiles, 2)
    const uint8_t *kept;      // (active,) 1 where interpolation reads the raw convolution
    const int32_t *window;    // (needed - active + 1,) where each halo row's neighbours begin
    const int32_t *neighbour; // active row << 8 | class of squared distance
};

struct Geometry {
    Level level[LEVELS];
};

// A matrix of rows; row -1 exists and is zero. A scratch slot lives in a thread and holds one block of rows.
struct Slot {
    float *data;
    int32_t stride;
    int32_t scratch;
};

// Separable resampling: `taps` sources a side. Indices are into the padded map, those of y times its width.
struct Taps {
    const int32_t *y, *x;
    const float *weight_y, *weight_x;
    int32_t taps;
};

// value = conv, interpolation or resampling; kept = value + bias; result = relu(value + bias + shift + residual).
struct Op {
    int32_t kind;
    int32_t source, target, residual, kept; // slots, -1 for none
    int32_t source_level, previous;         // previous: the source's rows are those of the geometry before
    int32_t lookup, step, taps;             // convolution: source rows, stride, 1, 3 or 9 taps; Winograd: products of a tile, 16 or 36
    int32_t resampling;                     // which `Taps`
    int32_t in, out;                        // channels
    int32_t column, scatter, relu;          // first column of the target; scatter: its rows are positions
    const float *weights, *bias, *shift;
};

// A chain of ops that runs block by block over the rows of one level. `groups`: the channels are split among threads.
struct Job {
    int32_t level, rows, first_op, ops, block, groups;
};

// Jobs that do not depend on each other; all threads meet at the end of a pass.
struct Pass {
    int32_t first_job, jobs;
};

struct Program {
    const Pass *passes;
    const Job *jobs;
    const Op *ops;
    int32_t pass_count, slot_count;
    int64_t scratch_floats;
};

// One request in a batch.
struct Context {
    const Geometry *now, *previous;
    const Slot *slots;
    const Taps *taps;
};

// A block of rows [first, last) of one job, one context; channels of group `group` of `groups`.
struct Block {
    const Op *ops;
    int32_t op_count, level, first, last, group, groups;
    float *scratch;
    const Context *context;
};

// One instruction set.
struct Kernels {
    const char *name;
    int32_t lanes, panel; // floats in a vector; vectors in a panel of weights
    void (*run)(const Block &);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
#endif
