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

// Weights are packed as [panel][tap][channel in][channel out of the panel]; a panel is at most PANEL vectors wide.
// Together they fill the row to its end: a later op may multiply by 0 what lies there, so it must be a number.
struct Panels {
    int vectors, count;

    explicit Panels(int channels) : vectors((padded(channels) + LANES - 1) / LANES), count((vectors + PANEL - 1) / PANEL) {}
    int begin(int panel) const { return vectors * panel / count; }
    int width(int panel) const { return begin(panel + 1) - begin(panel); }
};

#include "direct.h"
#include "sums.h"
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
