// Direct convolution: every output row is the sum of its taps. Included by kernels.h, in its namespace.

constexpr int MAX_TAPS = 9;

// The row that entry `i` of the block's domain stands for.
inline int row_at(const Block &block, const Level &level, int i) {
    return block.domain == SINGLES ? level.single_rows[i] : i;
}

// Fills the indirection buffer `rows`, (taps, MR): the source rows of MR output rows from entry `first` on. The last
// entry of the block is repeated where there are fewer than MR.
template <int MR>
void fill_indirection(const Block &block, const Op &op, int first, int32_t *rows) {
    const Level &target = block.context->geometry->level[block.level];
    const Geometry &from = *(op.from_previous ? block.context->previous : block.context->geometry);
    const Level &source = from.level[op.source_level];
    const int pitch = source.map_pitch;
    if (op.addressing != SAME_ROW && block.domain != SINGLES && first + MR <= block.last) {
        const uint16_t *begin = target.yx + 2 * first, *end = begin + 2 * (MR - 1);
        if (begin[0] == end[0] && end[1] - begin[1] == MR - 1) { // adjacent positions of one line read adjacent entries
            const int center = (begin[0] * op.stride + 1) * pitch + begin[1] * op.stride + 1;
            if (op.addressing == PADDED_IMAGE) {
                for (int t = 0; t < 3; ++t)
                    for (int m = 0; m < MR; ++m) rows[t * MR + m] = center + (t - 1) * pitch - 1 + m * op.stride;
                return;
            }
            const int32_t *at = source.map + center;
            for (int t = 0; t < op.taps; ++t, rows += MR) {
                const int32_t *from = op.taps == 1 ? at : at + (t / 3 - 1) * pitch + t % 3 - 1;
                if (op.stride == 1)
                    __builtin_memcpy(rows, from, MR * sizeof *rows);
                else
                    for (int m = 0; m < MR; ++m) rows[m] = from[m * op.stride];
            }
            return;
        }
    }
    for (int m = 0; m < MR; ++m) {
        const int i = row_at(block, target, first + m < block.last ? first + m : block.last - 1);
        if (op.addressing == SAME_ROW) {
            rows[m] = i;
            continue;
        }
        int at = (target.yx[2 * i] * op.stride + 1) * pitch + target.yx[2 * i + 1] * op.stride + 1;
        if (op.addressing == PADDED_IMAGE) {
            // A tap is a line of three pixels; the image lies in memory as its map would, one float triple a pixel.
            for (int t = 0; t < 3; ++t) rows[t * MR + m] = at + (t - 1) * pitch - 1;
        } else if (op.taps == 1) {
            rows[m] = source.map[at];
        } else {
            for (int t = 0; t < 9; ++t) rows[t * MR + m] = source.map[at + (t / 3 - 1) * pitch + t % 3 - 1];
        }
    }
}

// One panel of NV vectors of output channels from `column` on, for all rows of the block.
// `weights`: (taps, in_channels, NV * LANES). `lanes`: channels from `column` to the end of a row.
template <int MR, int NV, class E>
void convolve_panel(const Block &block, const Op &op, const Source &source, const float *weights, const E &epilogue,
                    int column, int lanes) {
    const Level &level = block.context->geometry->level[block.level];
    int32_t both[2][MAX_TAPS * MR], *rows = both[0], *next = both[1];
    fill_indirection<MR>(block, op, block.first, rows);
    for (int first = block.first; first < block.last; first += MR) {
        if (first + MR < block.last) {
            fill_indirection<MR>(block, op, first + MR, next);
            if (op.addressing == THROUGH_MAP)
                for (int i = 0; i < op.taps * MR; ++i)
                    prefetch(source.data + next[i] * source.row_bytes, op.in_channels * sizeof(float));
            for (int m = 0; m < MR && first + MR + m < block.last; ++m)
                epilogue.prefetch_residual(row_at(block, level, first + MR + m), column, NV * LANES);
        }
        Vector sum[MR][NV];
        accumulate<MR, NV>(source, rows, op.taps, op.in_channels, weights, sum);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
            if (first + m >= block.last) break;
            const auto row = epilogue.row(row_at(block, level, first + m));
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) epilogue.write(row, column + n * LANES, sum[m][n], lanes - n * LANES);
        }
        int32_t *const done = rows;
        rows = next;
        next = done;
    }
}

// Source: (rows of the source level, in_channels). Target: (rows of the block, out_channels). Weights: packed in panels.
// Taps: 1, or 9 (3x3 with padding 1) through the map, or 3 in the padded image.
template <bool ANY> void convolve(const Block &block, const Op &op) {
    assert(op.taps == 1 || op.taps == 9 || (op.taps == 3 && op.addressing == PADDED_IMAGE));
    assert(op.addressing != SAME_ROW || (op.taps == 1 && op.stride == 1 && !op.from_previous));
    assert(op.stride >= 1 && op.in_channels > 0 && op.out_channels > 0 && op.source_scale == 0);
    const Epilogue<ANY> epilogue = make_epilogue<ANY>(block, op);
    const Source source = {row_zero(block, op.source), block.context->slots[op.source].row_bytes};
    const Panels panels(op.out_channels);
    const ptrdiff_t depth = (ptrdiff_t)op.taps * op.in_channels * LANES; // floats of weights in one vector's width
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const float *weights = (const float *)op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES, lanes = padded(op.out_channels) - column;
        switch (panels.width(p)) {
        case 1: convolve_panel<MR_1, 1>(block, op, source, weights, epilogue, column, lanes); break;
        case 2: convolve_panel<MR_2, 2>(block, op, source, weights, epilogue, column, lanes); break;
        case 3: convolve_panel<MR_3, 3>(block, op, source, weights, epilogue, column, lanes); break;
#if PANEL_VECTORS >= 4
        case 4: convolve_panel<MR_4, 4>(block, op, source, weights, epilogue, column, lanes); break;
#endif
        }
    }
}
