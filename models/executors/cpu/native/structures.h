// The data that Python and the native code share: geometries, programs and the requests that a program runs for.
// Plain C layout; models/executors/cpu/structures.py declares the same structures field by field.
//
// Words used in all native files:
//   level   a feature size, numbered by the logarithm of its stride in the image: 0 is the image, 2 the finest branch,
//           5 the coarsest
//   mask    bool (height, width) at level 2: 1 where the next stage computes; coarser levels take the nearest position
//   active  positions whose mask is 1
//   halo    inactive positions that an active one reads: their features are interpolated from active neighbours
//   needed  active or halo
//   row     the channels of one position, contiguous; only needed positions have a row
//   pitch   elements from one row or line to the next; a stride is always a convolution's
//   u8      a feature in eight bits: value = scale * byte, the zero point is 0. All other features are float32
//   tile    2x2 or 4x4 adjacent output positions that Winograd's filtering computes together
#pragma once
#include <stdint.h>

enum { LEVELS = 6 };

// A map has one line and one column of -1 before its first position. After its last position there are
// MARGIN - 1 more, as many as a 4x4 tile that begins at that position can read.
enum { MARGIN = 5 };

// CONVOLVE and WINOGRAD read float32, CONVOLVE_U8 reads u8. COPY is a RESAMPLE that changes neither level nor values.
enum OpKind { CONVOLVE, WINOGRAD, CONVOLVE_U8, INTERPOLATE, RESAMPLE, COPY };

// What a row loop iterates over: rows of the level, or entries of its lists of tiles or single rows.
enum LoopDomain { ACTIVE, HALO, NEEDED, TILES_4X4, TILES_2X2, SINGLES };

// What a matrix has one row for. PADDED_PIXELS: pixels of the image with one more line or column at each side.
enum RowDomain { NEEDED_ROWS, ACTIVE_ROWS, ALL_POSITIONS, PADDED_PIXELS };

// How a convolution finds its source rows: the row of the same number, through the map of the source's level, or as
// pixels of the padded image.
enum Addressing { SAME_ROW, THROUGH_MAP, PADDED_IMAGE };

// The tables of one mask at one level. Active rows come first, then the halo. The 4x4 tiles, the 2x2 tiles and the
// single rows together cover every active position exactly once; tiles may also cover inactive positions.
struct Level {
    int32_t height, width;             // positions
    int32_t map_pitch;                 // entries from one line of `map` to the next
    int32_t active_rows, needed_rows;  // rows [0, active_rows) are active, rows [active_rows, needed_rows) the halo
    int32_t tiles_4x4, tiles_2x2, singles;
    const int32_t *map;                // (height + MARGIN, map_pitch): the row of each position, -1 where there is none
    const uint16_t *yx;                // (needed_rows, 2): position of each row
    const uint16_t *tile_4x4_yx;       // (tiles_4x4, 2): upper left position of each tile
    const uint16_t *tile_2x2_yx;       // (tiles_2x2, 2)
    const int32_t *single_rows;        // (singles,)
    const uint8_t *read_by_halo;       // (active_rows,): 1 where interpolation reads the row
    const int32_t *window_begin;       // (halo rows + 1,): where each halo row's part of `neighbours` begins
    const int32_t *neighbours;         // active row << 8 | distance class, the nearest first in each part
};

// The tables of one mask at all levels.
struct Geometry {
    Level level[LEVELS];
};

// The cost of a tile at one level, in units of a single position's cost. The first tile of a size costs `first_tile_*`
// more, because it fetches the weights for that size.
struct TileCosts {
    float tile_4x4, tile_2x2, first_tile_4x4, first_tile_2x2;
};

// Rows in memory, after one row of zeros that row number -1 refers to. Exactly one of three places holds them: the
// request's own memory (`feature`: index in its context), a block of a thread's scratch (`scratch`: offset in bytes),
// or, if both are -1, the working memory of the run.
struct Matrix {
    int32_t level;
    int32_t row_domain; // RowDomain
    int32_t row_bytes;  // from one row to the next: of float32 a multiple of 32 (12 for PADDED_PIXELS), of u8 of 16 (3)
    int32_t feature, scratch;
};

// Where a matrix lies in one run: `data` is row 0, or `scratch` is an offset in bytes in each thread's scratch.
struct Slot {
    uint8_t *data;
    int32_t row_bytes;
    int32_t scratch;
};

// A separable resampling from one level to another. `y`: (target height, taps_per_axis), source lines times the pitch of
// the source's map; `x`: (target width, taps_per_axis), source columns; both count the margin. The weights are alike.
struct ResamplingTaps {
    const int32_t *y, *x;
    const float *weight_y, *weight_x;
    int32_t taps_per_axis; // 1, 2 or 3
};

// One operation on a row (or tile):
//     value          = convolution, interpolation or resampling of source rows
//     pre-activation = value + bias, which interpolation of the halo reads, always float32
//     target row     = relu(value + bias + shift + residual row)
// The value of a CONVOLVE_U8 is scales * (sum of source bytes times weights), the sum in 32 bits and exact. A u8 target
// holds round(target row / target_scale), to the nearest even and between 0 and 255, so that it needs no ReLU.
struct Op {
    int32_t kind;                // OpKind
    int32_t source, target;      // matrices of the program, by index
    int32_t residual;            // matrix that is added, or -1
    int32_t pre_activation;      // matrix where rows that the halo reads leave their pre-activation, or -1
    int32_t source_level;
    int32_t from_previous;       // 1: the source has the rows of the previous geometry
    int32_t addressing;          // Addressing, of a CONVOLVE or CONVOLVE_U8
    int32_t stride;              // of the convolution, in both directions
    int32_t taps;                // of a convolution: 1, 3 (lines of three pixels) or 9; WINOGRAD: products of a tile, 16 or 36
    int32_t resampling;          // RESAMPLE: index in the context's resamplings
    int32_t parts;               // RESAMPLE: 1 to 3, how many ops from this one on are one sum of sources; others: 1
    int32_t in_channels, out_channels;
    int32_t target_column;       // the target's channel that receives the first result
    int32_t scatter;             // 1: the target's rows are positions
    int32_t relu;
    float source_scale, target_scale, residual_scale; // of the matrices that hold u8; 0 where they hold float32
    const void *weights;         // of a convolution: packed in panels, see accumulate.h; INTERPOLATE: of each distance class
    const float *bias, *shift;   // (out_channels padded to whole vectors,), or null; CONVOLVE_U8: `shift` is bias + shift
    const float *scales;         // of a CONVOLVE_U8, like `bias`: value of a sum of 1
    const int32_t *first_sums;   // of a CONVOLVE_U8, like `bias`: what its sums begin with; null for 0
};

// A sequence of ops that runs block by block over a domain of one level. Several channel groups split the output
// channels, so that more threads have work where rows are few and weights are many.
struct RowLoop {
    int32_t level, domain;       // domain: LoopDomain
    int32_t first_op, op_count;
    int32_t block_rows;          // rows (or tiles) of a block
    int32_t groups;
    int32_t cost;                // multiply-adds of a row (or tile)
};

// Row loops that do not depend on each other. All threads wait at a barrier at the end of a phase.
struct Phase {
    int32_t first_loop, loop_count;
};

// One step of the network for one instruction set.
struct Program {
    const Phase *phases;
    const RowLoop *loops;
    const Op *ops;
    const Matrix *matrices;
    int32_t phase_count, matrix_count;
    int64_t scratch_bytes;       // of one thread
};

// One request of a batch.
struct Context {
    const Geometry *geometry;    // the rows that this step computes
    const Geometry *previous;    // the rows of the features that it reads
    uint8_t *const *features;    // (inputs + outputs of the step,): each begins with its row of zeros
    const ResamplingTaps *resamplings;
    const Slot *slots;           // (matrices,): set by program_begin
};

// A unit of work: rows (tiles, singles) [first, last) of one row loop, and output-channel group `group` of `groups`,
// for one request.
struct Block {
    const Op *ops;
    int32_t op_count, level, domain, first, last, group, groups;
    uint8_t *scratch;
    const Context *context;
};

// The kernels of one instruction set.
struct Kernels {
    const char *name;
    int32_t lanes;               // floats of a vector
    int32_t panel_vectors;       // the most vectors in a panel of packed weights
    int32_t dot_parts;           // see convolution_u8.h
    int32_t dot_signed;          // 1: a CONVOLVE_U8 needs `first_sums`, see dot_neon.h
    int32_t dot_tail;            // the most channels after whole vectors that are packed as dot_tail.h says
    void (*run)(const Block &);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
// GCC knows AVX-VNNI from version 11 on, Clang from 12 on.
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAVE_VNNI
extern const Kernels avxvnni_kernels, avx512vnni_kernels;
#endif
#elif defined(__aarch64__)
extern const Kernels neondot_kernels;
#endif
