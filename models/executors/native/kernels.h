// The kernels, written once with vector extensions and compiled once for each instruction set by a file that
// defines VECTOR_BYTES and the tiles. Everything is in an anonymous namespace, so that no linker can exchange a
// function of one instruction set for that of another; no C++ header may be included here for the same reason.
#include "native.h"
#include <stddef.h>

namespace {

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int LANES = VECTOR_BYTES / 4;
constexpr int MAX_TAPS = 9;
constexpr int MAX_SOURCES = 21 * 21; // of the widest window that sparse.py takes

inline Vector load(const float *p) { return *(const Loose *)p; }
inline Vector splat(float x) { return x - Vector{}; }
inline Vector relu(Vector x) { return x < 0 ? Vector{} : x; } // keeps what is not a number

inline void store(float *p, Vector x, int lanes) {
    if (lanes >= LANES) {
        *(Loose *)p = x;
        return;
    }
    // Rows are multiples of 8 floats, so that only vectors of 16 can be cut, and only in half.
    union {
        Vector whole;
        Half half[LANES >= 8 ? LANES / 8 : 1];
    } both = {x};
    *(Half *)p = both.half[0];
}

// Rows that lie anywhere are asked for before they are needed.
inline void prefetch(const float *row, int channels) {
    for (int c = 0; c < channels; c += 16) __builtin_prefetch(row + c);
}

inline int padded(int channels) { return (channels + 7) & ~7; }

// Where the results of an op go, and what is added on the way.
struct Sink {
    float *target, *kept;
    const float *residual, *bias, *shift;
    const uint8_t *kept_rows;
    const uint16_t *yx;
    ptrdiff_t target_stride, residual_stride, kept_stride, width;
    bool scatter, relu;

    struct Row {
        float *target, *kept;
        const float *residual;
    };

    Row row(int i) const {
        ptrdiff_t at = scatter ? yx[2 * i] * width + yx[2 * i + 1] : i;
        return {target + at * target_stride, kept && kept_rows[i] ? kept + i * kept_stride : nullptr,
                residual ? residual + i * residual_stride : nullptr};
    }

    // Ahead of `write`. What is added lies too far apart, at one panel's channels of each row, for the hardware to foresee.
    void ask(int i, int column, int channels) const {
        if (residual) prefetch(residual + i * residual_stride + column, channels);
    }

    void write(const Row &row, int column, Vector value, int lanes) const {
        if (bias) value += load(bias + column);
        if (row.kept) store(row.kept + column, value, lanes);
        if (shift) value += load(shift + column);
        if (row.residual) value += load(row.residual + column);
        store(row.target + column, relu ? ::relu(value) : value, lanes);
    }
};

// Rows of a source: directly, through the map of its level, or pixels of the padded image.
struct Source {
    const float *data;
    ptrdiff_t stride;
};

float *rows_of(const Block &block, int slot) {
    const Slot &s = block.context->slots[slot];
    // A scratch slot holds only this block; its base is moved so that rows keep their numbers.
    return s.scratch >= 0 ? block.scratch + s.scratch - (ptrdiff_t)block.first * s.stride : s.data;
}

Sink sink_of(const Block &block, const Op &op) {
    const Level &level = block.context->now->level[block.level];
    const Slot *slots = block.context->slots;
    Sink sink = {};
    sink.target = rows_of(block, op.target) + op.column;
    sink.target_stride = slots[op.target].stride;
    if (op.residual >= 0) {
        sink.residual = rows_of(block, op.residual);
        sink.residual_stride = slots[op.residual].stride;
    }
    if (op.kept >= 0) {
        sink.kept = slots[op.kept].data;
        sink.kept_stride = slots[op.kept].stride;
        sink.kept_rows = level.kept;
    }
    sink.bias = op.bias;
    sink.shift = op.shift;
    sink.yx = level.yx;
    sink.width = level.width;
    sink.scatter = op.scatter;
    sink.relu = op.relu;
    return sink;
}

// M rows by N vectors of channels in registers. `rows`: (taps, M) source rows; `weights`: (taps, in, N vectors).
template <int M, int N>
inline void multiply(const Source &source, const int32_t *rows, int taps, int in, const float *weights,
                     Vector (&sum)[M][N]) {
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sum[m][n] = Vector{};
    for (int t = 0; t < taps; ++t) {
        const float *x[M];
        for (int m = 0; m < M; ++m) x[m] = source.data + rows[t * M + m] * source.stride;
        for (int c = 0; c < in; ++c, weights += N * LANES) {
            Vector w[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) w[n] = load(weights + n * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                Vector a = splat(x[m][c]);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) sum[m][n] += a * w[n];
            }
        }
    }
}

// The row that the i-th of a block is.
inline int row_at(const Block &block, const Level &level, int i) {
    return block.rows == SINGLES ? level.single[i] : i;
}

// Source rows of M output rows from `first` on; past `last` the last one is repeated.
template <int M>
void look_up(const Block &block, const Op &op, int first, int32_t *rows) {
    const Level &target = block.context->now->level[block.level];
    const Geometry &from = *(op.previous ? block.context->previous : block.context->now);
    const Level &source = from.level[op.source_level];
    const int pitch = source.pitch;
    for (int m = 0; m < M; ++m) {
        const int i = row_at(block, target, first + m < block.last ? first + m : block.last - 1);
        if (op.lookup == SAME_ROW) {
            rows[m] = i;
            continue;
        }
        int at = (target.yx[2 * i] * op.step + 1) * pitch + target.yx[2 * i + 1] * op.step + 1;
        if (op.lookup == PIXELS) {
            for (int t = 0; t < 3; ++t) rows[t * M + m] = at + (t - 1) * pitch - 1;
        } else if (op.taps == 1) {
            rows[m] = source.map[at];
        } else {
            for (int t = 0; t < 9; ++t) rows[t * M + m] = source.map[at + (t / 3 - 1) * pitch + t % 3 - 1];
        }
    }
}

template <int M, int N>
void panel(const Block &block, const Op &op, const Source &source, const float *weights, const Sink &sink, int column,
           int lanes) {
    const Level &level = block.context->now->level[block.level];
    int32_t both[2][MAX_TAPS * M], *rows = both[0], *next = both[1];
    look_up<M>(block, op, block.first, rows);
    for (int first = block.first; first < block.last; first += M) {
        if (first + M < block.last) {
            look_up<M>(block, op, first + M, next);
            if (op.lookup == NEIGHBOURS)
                for (int i = 0; i < op.taps * M; ++i) prefetch(source.data + next[i] * source.stride, op.in);
            for (int m = 0; m < M && first + M + m < block.last; ++m) sink.ask(row_at(block, level, first + M + m), column, N * LANES);
        }
        Vector sum[M][N];
        multiply<M, N>(source, rows, op.taps, op.in, weights, sum);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            if (first + m >= block.last) break;
            const Sink::Row row = sink.row(row_at(block, level, first + m));
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sink.write(row, column + n * LANES, sum[m][n], lanes - n * LANES);
        }
        int32_t *const done = rows;
        rows = next;
        next = done;
    }
}

// Weights are packed as [panel][tap][channel in][channel out of the panel]; a panel is at most PANEL vectors wide.
// Together they fill the row to its end: a later op may multiply by 0 what lies there, so it must be a number.
struct Panels {
    int vectors, count;

    explicit Panels(int channels) : vectors((padded(channels) + LANES - 1) / LANES), count((vectors + PANEL - 1) / PANEL) {}
    int begin(int panel) const { return vectors * panel / count; }
    int width(int panel) const { return begin(panel + 1) - begin(panel); }
};

void convolve(const Block &block, const Op &op) {
    const Sink sink = sink_of(block, op);
    const Source source = {rows_of(block, op.source), block.context->slots[op.source].stride};
    const Panels panels(op.out);
    const ptrdiff_t depth = (ptrdiff_t)op.taps * op.in * LANES;
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const float *weights = op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES, lanes = padded(op.out) - column;
        switch (panels.width(p)) {
        case 1: panel<TILE_1, 1>(block, op, source, weights, sink, column, lanes); break;
        case 2: panel<TILE_2, 2>(block, op, source, weights, sink, column, lanes); break;
        case 3: panel<TILE_3, 3>(block, op, source, weights, sink, column, lanes); break;
#if PANEL >= 4
        case 4: panel<TILE_4, 4>(block, op, source, weights, sink, column, lanes); break;
#endif
        }
    }
}

// One row: the weighted sum of `count` rows.
void combine(const float *const *rows, const float *weights, int count, int channels, const Sink &sink,
             const Sink::Row &row) {
    for (int column = 0; column < channels; column += 4 * LANES) {
        Vector sum[4] = {};
        const int left = padded(channels) - column;
        if (left > 3 * LANES) {
            for (int i = 0; i < count; ++i)
                for (int n = 0; n < 4; ++n) sum[n] += weights[i] * load(rows[i] + column + n * LANES);
        } else {
            for (int n = 0; n * LANES < left; ++n)
                for (int i = 0; i < count; ++i) sum[n] += weights[i] * load(rows[i] + column + n * LANES);
        }
        for (int n = 0; n < 4 && n * LANES < left; ++n)
            sink.write(row, column + n * LANES, sum[n], left - n * LANES);
    }
}

// Halo rows from the kept raw rows around them; the weights are those of each class of distance.
void interpolate(const Block &block, const Op &op) {
    const Sink sink = sink_of(block, op);
    const Level &level = block.context->now->level[block.level];
    const Slot &kept = block.context->slots[op.source];
    const float *rows[MAX_SOURCES];
    float weights[MAX_SOURCES];
    for (int i = block.first; i < block.last; ++i) {
        const int32_t *from = level.neighbour + level.window[i - level.active];
        const int all = level.window[i - level.active + 1] - level.window[i - level.active];
        int count = 0;
        // The nearest come first, so that the first weight of 0 ends the list.
        for (int k = 0; k < all && op.weights[from[k] & 255] != 0; ++k, ++count) {
            rows[k] = kept.data + (ptrdiff_t)(from[k] >> 8) * kept.stride;
            weights[k] = op.weights[from[k] & 255];
        }
        combine(rows, weights, count, op.out, sink, sink.row(i));
    }
}

// SIDE sources a side. All that does not change from row to row is known to the compiler: a row is few channels.
template <int SIDE>
void resample_from(const Block &block, const Op &op) {
    constexpr int COUNT = SIDE * SIDE;
    const Sink sink = sink_of(block, op);
    const Level &target = block.context->now->level[block.level];
    const Geometry &from = *(op.previous ? block.context->previous : block.context->now);
    const int32_t *map = from.level[op.source_level].map;
    const Taps &taps = block.context->taps[op.resampling];
    const float *data = rows_of(block, op.source);
    const ptrdiff_t stride = block.context->slots[op.source].stride;
    for (int i = block.first; i < block.last; ++i) {
        const int y = target.yx[2 * i] * SIDE, x = target.yx[2 * i + 1] * SIDE;
        const float *rows[COUNT];
        Vector weights[COUNT];
#pragma GCC unroll 9
        for (int k = 0; k < COUNT; ++k) {
            rows[k] = data + map[taps.y[y + k / SIDE] + taps.x[x + k % SIDE]] * stride;
            weights[k] = splat(taps.weight_y[y + k / SIDE] * taps.weight_x[x + k % SIDE]);
        }
        const Sink::Row row = sink.row(i);
        for (int column = 0; column < padded(op.out); column += LANES) {
            Vector sum = Vector{};
#pragma GCC unroll 9
            for (int k = 0; k < COUNT; ++k) sum += weights[k] * load(rows[k] + column);
            sink.write(row, column, sum, padded(op.out) - column);
        }
    }
}

void resample(const Block &block, const Op &op) {
    switch (block.context->taps[op.resampling].taps) {
    case 1: resample_from<1>(block, op); break;
    case 2: resample_from<2>(block, op); break;
    case 3: resample_from<3>(block, op); break;
    }
}

#include "winograd.h"

void run(const Block &block) {
    for (int i = 0; i < block.op_count; ++i) {
        const Op &op = block.ops[i];
        switch (op.kind) {
        case CONVOLVE: convolve(block, op); break;
        case WINOGRAD: op.taps == 36 ? winograd<Four>(block, op) : winograd<Two>(block, op); break;
        case INTERPOLATE: interpolate(block, op); break;
        case RESAMPLE: resample(block, op); break;
        }
    }
}

} // namespace
