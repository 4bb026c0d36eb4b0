// The data that Python and the native code share: geometries, programs and what they run on. Plain C layout;
// the same structures are declared in models/executors/cpu/library.py, field by field.
#pragma once
#include <stdint.h>

// Levels are numbered by the logarithm of their stride: 0 is the image, 2 the finest branch, 5 the coarsest.
enum { LEVELS = 6 };

// Rows and columns of -1 around a map: one before; after it, what a tile that begins at the last position reads.
enum { MARGIN = 5 };

enum OpKind { CONVOLVE, WINOGRAD, INTERPOLATE, RESAMPLE };
enum Rows { ACTIVE, HALO, NEEDED, TILES_4, TILES_2, SINGLES };
enum Lookup { SAME_ROW, NEIGHBOURS, PIXELS };

// One feature size. A row is the channels of one position; active rows come first, then the halo: inactive rows
// that something active reads. `map` gives the row of each position, -1 where there is none: one row and one column
// of -1 come before, and as many after as tiles may reach; positions of one column are `pitch` apart.
// Tiles of 4x4 and 2x2 positions, which do not overlap, and single rows together hold every active position once.
struct Level {
    int32_t height, width, pitch, active, needed, tiles_4, tiles_2, singles;
    const int32_t *map;
    const uint16_t *yx;              // (needed, 2)
    const uint16_t *tile_4, *tile_2; // (tiles, 2): y, x of the first position
    const int32_t *single;           // rows
    const uint8_t *kept;      // (active,) 1 where interpolation reads the raw convolution
    const int32_t *window;    // (needed - active + 1,) where each halo row's neighbours begin
    const int32_t *neighbour; // active row << 8 | class of squared distance
};

struct Geometry {
    Level level[LEVELS];
};

// What tiles cost at one level, where a single position costs 1. `first_four`, `first_two`: what the first tile of a
// kind costs on top, because it fetches the weights of its kind.
struct Prices {
    float four, two, first_four, first_two;
};

// What a matrix has one row of.
enum Holds { NEEDED_ROWS, ACTIVE_ROWS, POSITIONS, PIXELS_AROUND };

// A matrix of rows; row -1 exists and is zero. It is the request's own (`feature`: which of its context), or a block in
// a thread's scratch (`scratch`: where), or else working memory.
struct Matrix {
    int32_t level, holds, stride, feature, scratch;
};

// Where a matrix lies in one run: row 0, or an offset in a thread's scratch.
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
    int32_t source, target, residual, kept; // matrices, -1 for none
    int32_t source_level, previous;         // previous: the source's rows are those of the geometry before
    int32_t lookup, step, taps;             // convolution: source rows, stride, 1, 3 or 9 taps; Winograd: products of a tile, 16 or 36
    int32_t resampling;                     // which `Taps`
    int32_t in, out;                        // channels
    int32_t column, scatter, relu;          // first column of the target; scatter: its rows are positions
    const float *weights, *bias, *shift;
};

// A chain of ops that runs block by block over the rows of one level. `groups`: the channels are split among threads.
// `cost`: multiply-adds of a row.
struct Job {
    int32_t level, rows, first_op, ops, block, groups, cost;
};

// Jobs that do not depend on each other; all threads meet at the end of a pass.
struct Pass {
    int32_t first_job, jobs;
};

struct Program {
    const Pass *passes;
    const Job *jobs;
    const Op *ops;
    const Matrix *matrices;
    int32_t pass_count, matrix_count;
    int64_t scratch_floats;
};

// One request in a batch. `features`: what the step reads of it, then what it leaves, each from its row of zeros on.
struct Context {
    const Geometry *now, *previous;
    float *const *features;
    const Taps *taps;
    const Slot *slots; // set by program_run: where each matrix lies
};

// A block of rows (or tiles, or singles) [first, last) of one job, one context; channels of group `group` of `groups`.
struct Block {
    const Op *ops;
    int32_t op_count, level, rows, first, last, group, groups;
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
