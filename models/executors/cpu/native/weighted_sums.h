// Weighted sums of rows: interpolation of the halo, and resampling between levels. Included by kernels.h, in its
// namespace.

constexpr int MAX_SOURCES = 21 * 21; // of the widest window that the executor takes (MAX_WINDOW in executor.py)

// One row: the sum of `count` rows of `channels` floats, each times its weight.
template <class E>
void weighted_sum(const float *const *rows, const float *weights, int count, int channels, const E &epilogue,
                  const typename E::Row &row) {
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
            epilogue.write(row, column + n * LANES, sum[n], left - n * LANES);
    }
}

// Halo rows (equation 4 of the paper): the weighted sum of the pre-activations of the active rows in the window.
// Source: float32 (active rows, out_channels), of which only the rows with `read_by_halo` have been written. Target: the halo rows
// of the block, (rows, out_channels). Weights: one for each distance class, 0 for classes too far to matter.
template <bool ANY> void interpolate(const Block &block, const Op &op) {
    const Epilogue<ANY> epilogue = make_epilogue<ANY>(block, op);
    const Level &level = block.context->geometry->level[block.level];
    assert(level.active_rows <= block.first && block.last <= level.needed_rows);
    assert(op.source_scale == 0);
    const Slot &source = block.context->slots[op.source];
    const float *const of_class = (const float *)op.weights;
    const float *rows[MAX_SOURCES];
    float weights[MAX_SOURCES];
    for (int i = block.first; i < block.last; ++i) {
        const int32_t *neighbours = level.neighbours + level.window_begin[i - level.active_rows];
        const int all = level.window_begin[i - level.active_rows + 1] - level.window_begin[i - level.active_rows];
        assert(all <= MAX_SOURCES);
        int count = 0;
        // The nearest neighbours come first, so that the first weight of 0 ends the list.
        for (int k = 0; k < all && of_class[neighbours[k] & 255] != 0; ++k, ++count) {
            rows[k] = (const float *)(source.data + (ptrdiff_t)(neighbours[k] >> 8) * source.row_bytes);
            weights[k] = of_class[neighbours[k] & 255];
        }
        weighted_sum(rows, weights, count, op.out_channels, epilogue, epilogue.row(i));
    }
}

// `resample` of a source of `Value` (float or uint8_t) with SIDE taps in each direction. The compiler knows all that is
// the same for every row, because a row is only a few channels.
template <bool ANY, class Value, int SIDE>
void resample_from(const Block &block, const Op &op) {
    constexpr int COUNT = SIDE * SIDE;
    const Epilogue<ANY> epilogue = make_epilogue<ANY>(block, op);
    const Level &target = block.context->geometry->level[block.level];
    const Geometry &from = *(op.from_previous ? block.context->previous : block.context->geometry);
    const int32_t *map = from.level[op.source_level].map;
    const ResamplingTaps &taps = block.context->resamplings[op.resampling];
    const uint8_t *data = row_zero(block, op.source);
    const ptrdiff_t pitch = block.context->slots[op.source].row_bytes;
    for (int i = block.first; i < block.last; ++i) {
        const int y = target.yx[2 * i] * SIDE, x = target.yx[2 * i + 1] * SIDE;
        const Value *rows[COUNT];
        Vector weights[COUNT];
#pragma GCC unroll 9
        for (int k = 0; k < COUNT; ++k) {
            rows[k] = (const Value *)(data + map[taps.y[y + k / SIDE] + taps.x[x + k % SIDE]] * pitch);
            const float weight = taps.weight_y[y + k / SIDE] * taps.weight_x[x + k % SIDE];
            weights[k] = splat(sizeof(Value) == 1 ? weight * op.source_scale : weight);
        }
        const auto row = epilogue.row(i);
        for (int column = 0; column < padded(op.out_channels); column += LANES) {
            Vector sum = Vector{};
#pragma GCC unroll 9
            for (int k = 0; k < COUNT; ++k) sum += weights[k] * load(rows[k] + column);
            epilogue.write(row, column, sum, padded(op.out_channels) - column);
        }
    }
}

// Source: (rows of the source level, out_channels). Target: (rows of the block, out_channels).
template <bool ANY, class Value> void resample(const Block &block, const Op &op) {
    assert(block.domain != SINGLES && block.domain != TILES_4X4 && block.domain != TILES_2X2);
    switch (block.context->resamplings[op.resampling].taps_per_axis) {
    case 1: resample_from<ANY, Value, 1>(block, op); break;
    case 2: resample_from<ANY, Value, 2>(block, op); break;
    case 3: resample_from<ANY, Value, 3>(block, op); break;
    }
}

// Source and target: rows of the block's level, of the same bytes.
void copy(const Block &block, const Op &op) {
    const Geometry &from = *(op.from_previous ? block.context->previous : block.context->geometry);
    const Level &source = from.level[block.level];
    const uint16_t *yx = block.context->geometry->level[block.level].yx;
    const ptrdiff_t bytes = block.context->slots[op.source].row_bytes;
    assert(op.source_level == block.level && bytes == block.context->slots[op.target].row_bytes);
    const uint8_t *data = row_zero(block, op.source);
    uint8_t *target = row_zero(block, op.target);
    for (int i = block.first; i < block.last; ++i)
        __builtin_memcpy(target + i * bytes, data + source.map[(yx[2 * i] + 1) * source.map_pitch + yx[2 * i + 1] + 1] * bytes, bytes);
}
