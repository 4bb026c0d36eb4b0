// Weighted sums of rows: interpolation of the halo, and resampling between levels. Included by kernels.h, in its
// namespace.

constexpr int MAX_SOURCES = 21 * 21; // of the widest window that the executor takes (MAX_WINDOW in network.py)

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

// One source of a resampling with SIDE taps in each direction. What depends on the line of the target alone is kept from
// one row to the next.
template <class Value, int SIDE> struct Resampled {
    const int32_t *map, *x;
    const float *weight_x;
    const uint8_t *data;
    ptrdiff_t pitch;
    const ResamplingTaps *taps;
    float scale;
    const int32_t *line[SIDE];
    float weight_y[SIDE];

    Resampled(const Block &block, const Op &op) {
        const Geometry &from = *(op.from_previous ? block.context->previous : block.context->geometry);
        taps = &block.context->resamplings[op.resampling];
        assert(taps->taps_per_axis == SIDE);
        map = from.level[op.source_level].map;
        x = taps->x;
        weight_x = taps->weight_x;
        data = row_zero(block, op.source);
        pitch = block.context->slots[op.source].row_bytes;
        scale = sizeof(Value) == 1 ? op.source_scale : 1;
    }

    void begin_line(int y) {
        for (int k = 0; k < SIDE; ++k) {
            line[k] = map + taps->y[y * SIDE + k];
            weight_y[k] = taps->weight_y[y * SIDE + k] * scale;
        }
    }

    // The sources of the target's column `at`, and their weights.
    void find(int at, const Value **rows, Vector *weights) const {
#pragma GCC unroll 9
        for (int k = 0; k < SIDE * SIDE; ++k) {
            const int tap = at * SIDE + k % SIDE;
            rows[k] = (const Value *)(data + line[k / SIDE][x[tap]] * pitch);
            weights[k] = splat(weight_y[k / SIDE] * weight_x[tap]);
        }
    }
};

// `resample` of PARTS sources of `Value` (float or uint8_t) with SIDE taps in each direction. The compiler knows all that
// is the same for every row, because a row is only a few channels.
template <bool ANY, class Value, int SIDE, int PARTS>
void resample_from(const Block &block, const Op *ops) {
    constexpr int EACH = SIDE * SIDE, COUNT = EACH * PARTS;
    const Epilogue<ANY> epilogue = make_epilogue<ANY>(block, ops[0]);
    const uint16_t *yx = block.context->geometry->level[block.level].yx;
    Resampled<Value, SIDE> first(block, ops[0]), second(block, ops[PARTS > 1]), third(block, ops[PARTS > 2 ? 2 : 0]);
    const int channels = padded(ops[0].out_channels);
    for (int i = block.first, y = -1; i < block.last; ++i) {
        if (yx[2 * i] != y) {
            y = yx[2 * i];
            first.begin_line(y);
            if (PARTS > 1) second.begin_line(y);
            if (PARTS > 2) third.begin_line(y);
        }
        const Value *rows[COUNT];
        Vector weights[COUNT];
        first.find(yx[2 * i + 1], rows, weights);
        if (PARTS > 1) second.find(yx[2 * i + 1], rows + EACH % COUNT, weights + EACH % COUNT);
        if (PARTS > 2) third.find(yx[2 * i + 1], rows + 2 * EACH % COUNT, weights + 2 * EACH % COUNT);
        const auto row = epilogue.row(i);
        for (int column = 0; column < channels; column += LANES) {
            // One sum for each part, so that they do not wait for each other.
            Vector sums[PARTS] = {};
#pragma GCC unroll 12
            for (int k = 0; k < COUNT; ++k) sums[k % PARTS] += weights[k] * load(rows[k] + column);
            for (int part = 1; part < PARTS; ++part) sums[0] += sums[part];
            epilogue.write(row, column, sums[0], channels - column);
        }
    }
}

// Sources: (rows of the source level, out_channels), of `ops[0].parts` ops, which have the same number of taps. Only the
// source of each further op is used. Target: (rows of the block, out_channels).
template <bool ANY, class Value> void resample(const Block &block, const Op *ops) {
    assert(block.domain != SINGLES && block.domain != TILES_4X4 && block.domain != TILES_2X2);
    const int side = block.context->resamplings[ops->resampling].taps_per_axis;
    switch (10 * side + ops->parts) {
    case 11: resample_from<ANY, Value, 1, 1>(block, ops); break;
    case 12: resample_from<ANY, Value, 1, 2>(block, ops); break;
    case 13: resample_from<ANY, Value, 1, 3>(block, ops); break;
    case 21: resample_from<ANY, Value, 2, 1>(block, ops); break;
    case 22: resample_from<ANY, Value, 2, 2>(block, ops); break;
    case 23: resample_from<ANY, Value, 2, 3>(block, ops); break;
    case 31: resample_from<ANY, Value, 3, 1>(block, ops); break;
    default: assert(false);
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
