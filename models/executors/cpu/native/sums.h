// Weighted sums of rows: interpolation under a mask, and resampling. Included by kernels.h, in its namespace.

constexpr int MAX_SOURCES = 21 * 21; // of the widest window that sparse.py takes

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
