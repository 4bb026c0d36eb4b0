// Convolutions one by one: every row is the sum of its taps. Included by kernels.h, in its namespace.

constexpr int MAX_TAPS = 9;

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
