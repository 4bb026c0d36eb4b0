// 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray, CVPR 2016): tiles of 2x2 results cost
// 16 products instead of 36, tiles of 4x4 cost 36 instead of 144. Included by kernels.h, in its namespace.

// F(2x2, 3x3), points 0, 1, -1 and infinity.
struct Two {
    static constexpr int SIDE = 2, POINTS = 4;

    static void forward(const Vector *x, int step, Vector *y) {
        const Vector a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
        y[0] = a - c;
        y[1] = b + c;
        y[2] = c - b;
        y[3] = b - d;
    }

    static void back(const Vector *x, int step, Vector *y) {
        const Vector sum = x[step] + x[2 * step], difference = x[step] - x[2 * step];
        y[0] = x[0] + sum;
        y[1] = difference - x[3 * step];
    }

    static const uint16_t *list(const Level &level) { return level.tile_2; }
};

// F(4x4, 3x3), points 0, +-sqrt(1/2), +-sqrt(2) and infinity: their products stay near 1, and so do rounding errors.
struct Four {
    static constexpr int SIDE = 4, POINTS = 6;
    static constexpr float A = 0.70710678118654752f, B = 1.4142135623730951f; // the points; A * B = 1

    static void forward(const Vector *x, int step, Vector *y) {
        const Vector x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
        const Vector even_a = x4 - 2.0f * x2, odd_a = x3 - 2.0f * x1;
        const Vector even_b = x4 - 0.5f * x2, odd_b = x3 - 0.5f * x1;
        y[0] = x0 - 2.5f * x2 + x4;
        y[1] = even_a + A * odd_a;
        y[2] = even_a - A * odd_a;
        y[3] = even_b + B * odd_b;
        y[4] = even_b - B * odd_b;
        y[5] = x1 - 2.5f * x3 + x5;
    }

    static void back(const Vector *x, int step, Vector *y) {
        const Vector sum_a = x[step] + x[2 * step], difference_a = x[step] - x[2 * step];
        const Vector sum_b = x[3 * step] + x[4 * step], difference_b = x[3 * step] - x[4 * step];
        y[0] = x[0] + sum_a + sum_b;
        y[1] = A * difference_a + B * difference_b;
        y[2] = 0.5f * sum_a + 2.0f * sum_b;
        y[3] = 0.5f * A * difference_a + 2.0f * B * difference_b + x[5 * step];
    }

    static const uint16_t *list(const Level &level) { return level.tile_4; }
};

// Rounded up, so that whole vectors can be written, and off powers of two, so that points do not share cache sets.
inline ptrdiff_t transformed_stride(int channels) { return (channels + LANES - 1) / LANES * LANES; }
inline ptrdiff_t point_pitch(int block, ptrdiff_t stride) { return block * stride + 16; }

// The tiles' sources, transformed: [point][tile][channel].
template <class F>
void transform(const Block &block, const Op &op, float *out, ptrdiff_t pitch) {
    constexpr int P = F::POINTS;
    const Geometry &from = *(op.previous ? block.context->previous : block.context->now);
    const Level &source = from.level[op.source_level];
    const uint16_t *list = F::list(block.context->now->level[block.level]);
    const float *data = rows_of(block, op.source);
    const ptrdiff_t stride = block.context->slots[op.source].stride, width = transformed_stride(op.in);
    const float *x[P * P], *next[P * P];
    const auto look_up = [&](int tile, const float **rows) {
        const int32_t *map = source.map + list[2 * tile] * source.pitch + list[2 * tile + 1];
        for (int i = 0; i < P * P; ++i) rows[i] = data + map[i / P * source.pitch + i % P] * stride;
    };
    look_up(block.first, next);
    for (int tile = block.first; tile < block.last; ++tile) {
        for (int i = 0; i < P * P; ++i) x[i] = next[i];
        if (tile + 1 < block.last) {
            look_up(tile + 1, next);
            for (int i = 0; i < P * P; ++i) prefetch(next[i], op.in);
        }
        float *to = out + (tile - block.first) * width;
        for (int c = 0; c < op.in; c += LANES, to += LANES) {
            Vector rows[P * P], columns[P * P];
#pragma GCC unroll 6
            for (int i = 0; i < P; ++i) {
                Vector line[P];
#pragma GCC unroll 6
                for (int k = 0; k < P; ++k) line[k] = load(x[i * P + k] + c);
                F::forward(line, 1, rows + i * P);
            }
#pragma GCC unroll 6
            for (int i = 0; i < P; ++i) {
                F::forward(rows + i, P, columns);
#pragma GCC unroll 6
                for (int k = 0; k < P; ++k) *(Loose *)(to + (k * P + i) * pitch) = columns[k];
            }
        }
    }
}

// One panel of channels: products [point][tile][N vectors], from which the tiles' results are made.
template <class F, int M, int N>
void winograd_panel(const Block &block, const Op &op, const float *transformed, ptrdiff_t pitch, const float *weights,
                    float *products, const Sink &sink, int column, int lanes) {
    constexpr int P = F::POINTS, S = F::SIDE;
    const int tiles = block.last - block.first;
    const ptrdiff_t width = transformed_stride(op.in), product_pitch = point_pitch(tiles, N * LANES);
    for (int point = 0; point < P * P; ++point) {
        const Source source = {transformed + point * pitch, width};
        for (int first = 0; first < tiles; first += M) {
            int32_t rows[M];
            for (int m = 0; m < M; ++m) rows[m] = first + m < tiles ? first + m : tiles - 1;
            Vector sum[M][N];
            multiply<M, N>(source, rows, 1, op.in, weights + (ptrdiff_t)point * op.in * N * LANES, sum);
            float *to = products + point * product_pitch + first * N * LANES;
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                if (first + m >= tiles) break;
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) *(Loose *)(to + (m * N + n) * LANES) = sum[m][n];
            }
        }
    }
    const Level &level = block.context->now->level[block.level];
    const uint16_t *list = F::list(level);
    const auto map_at = [&](int tile) { return level.map + (list[2 * tile] + 1) * level.pitch + list[2 * tile + 1] + 1; };
    for (int tile = block.first; tile < block.last; ++tile) {
        const int32_t *map = map_at(tile);
        if (tile + 1 < block.last) {
            const int32_t *next = map_at(tile + 1);
            for (int i = 0; i < S * S; ++i) sink.ask(next[i / S * level.pitch + i % S], column, N * LANES);
        }
        Sink::Row rows[S * S];
        bool wanted[S * S];
        for (int i = 0; i < S * S; ++i) {
            const int row = map[i / S * level.pitch + i % S];
            wanted[i] = row >= 0 && row < level.active;
            if (wanted[i]) rows[i] = sink.row(row);
        }
        const float *from = products + (tile - block.first) * N * LANES;
        for (int n = 0; n < N; ++n, from += LANES) {
            Vector halves[S * P], results[S];
#pragma GCC unroll 6
            for (int k = 0; k < P; ++k) {
                Vector line[P];
#pragma GCC unroll 6
                for (int i = 0; i < P; ++i) line[i] = load(from + (i * P + k) * product_pitch);
                F::back(line, 1, results);
#pragma GCC unroll 4
                for (int i = 0; i < S; ++i) halves[i * P + k] = results[i];
            }
#pragma GCC unroll 4
            for (int i = 0; i < S; ++i) {
                F::back(halves + i * P, 1, results);
#pragma GCC unroll 4
                for (int k = 0; k < S; ++k)
                    if (wanted[i * S + k])
                        sink.write(rows[i * S + k], column + n * LANES, results[k], lanes - n * LANES);
            }
        }
    }
}

template <class F>
void winograd(const Block &block, const Op &op) {
    const Sink sink = sink_of(block, op);
    const ptrdiff_t pitch = point_pitch(block.last - block.first, transformed_stride(op.in));
    float *transformed = block.scratch, *products = transformed + F::POINTS * F::POINTS * pitch;
    transform<F>(block, op, transformed, pitch);
    const Panels panels(op.out);
    const ptrdiff_t depth = (ptrdiff_t)F::POINTS * F::POINTS * op.in * LANES;
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const float *weights = op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES, lanes = padded(op.out) - column;
        switch (panels.width(p)) {
        case 1: winograd_panel<F, TILE_1, 1>(block, op, transformed, pitch, weights, products, sink, column, lanes); break;
        case 2: winograd_panel<F, TILE_2, 2>(block, op, transformed, pitch, weights, products, sink, column, lanes); break;
        case 3: winograd_panel<F, TILE_3, 3>(block, op, transformed, pitch, weights, products, sink, column, lanes); break;
#if PANEL >= 4
        case 4: winograd_panel<F, TILE_4, 4>(block, op, transformed, pitch, weights, products, sink, column, lanes); break;
#endif
        }
    }
}
