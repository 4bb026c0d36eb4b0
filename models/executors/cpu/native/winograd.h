// 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray, CVPR 2016): a tile of 2x2 results costs
// 16 products instead of 36, a tile of 4x4 costs 36 instead of 144. Included by kernels.h, in its namespace.
//
// A tile of SIDE x SIDE results reads POINTS x POINTS = (SIDE + 2) x (SIDE + 2) sources. `forward` transforms POINTS
// sources along one axis, `back` makes SIDE results of POINTS products; `pitch` is the distance between the elements of
// `x`, in vectors. models/executors/cpu/winograd.py transforms the weights.

// F(2x2, 3x3), points 0, 1, -1 and infinity.
struct Tile2x2 {
    static constexpr int SIDE = 2, POINTS = 4;

    static void forward(const Vector *x, int pitch, Vector *y) {
        const Vector a = x[0], b = x[pitch], c = x[2 * pitch], d = x[3 * pitch];
        y[0] = a - c;
        y[1] = b + c;
        y[2] = c - b;
        y[3] = b - d;
    }

    static void back(const Vector *x, int pitch, Vector *y) {
        const Vector sum = x[pitch] + x[2 * pitch], difference = x[pitch] - x[2 * pitch];
        y[0] = x[0] + sum;
        y[1] = difference - x[3 * pitch];
    }

    static const uint16_t *positions(const Level &level) { return level.tile_2x2_yx; }
};

// F(4x4, 3x3), points 0, +-sqrt(1/2), +-sqrt(2) and infinity: their products stay near 1, and so do rounding errors.
struct Tile4x4 {
    static constexpr int SIDE = 4, POINTS = 6;
    static constexpr float A = 0.70710678118654752f, B = 1.4142135623730951f; // the points; A * B = 1

    static void forward(const Vector *x, int pitch, Vector *y) {
        const Vector x0 = x[0], x1 = x[pitch], x2 = x[2 * pitch], x3 = x[3 * pitch], x4 = x[4 * pitch], x5 = x[5 * pitch];
        const Vector even_a = x4 - 2.0f * x2, odd_a = x3 - 2.0f * x1;
        const Vector even_b = x4 - 0.5f * x2, odd_b = x3 - 0.5f * x1;
        y[0] = x0 - 2.5f * x2 + x4;
        y[1] = even_a + A * odd_a;
        y[2] = even_a - A * odd_a;
        y[3] = even_b + B * odd_b;
        y[4] = even_b - B * odd_b;
        y[5] = x1 - 2.5f * x3 + x5;
    }

    static void back(const Vector *x, int pitch, Vector *y) {
        const Vector sum_a = x[pitch] + x[2 * pitch], difference_a = x[pitch] - x[2 * pitch];
        const Vector sum_b = x[3 * pitch] + x[4 * pitch], difference_b = x[3 * pitch] - x[4 * pitch];
        y[0] = x[0] + sum_a + sum_b;
        y[1] = A * difference_a + B * difference_b;
        y[2] = 0.5f * sum_a + 2.0f * sum_b;
        y[3] = 0.5f * A * difference_a + 2.0f * B * difference_b + x[5 * pitch];
    }

    static const uint16_t *positions(const Level &level) { return level.tile_4x4_yx; }
};

// Floats from one tile to the next: rounded up, so that whole vectors can be written. Floats from one point to the next:
// off powers of two, so that points do not share cache sets.
inline ptrdiff_t tile_pitch(int channels) { return (channels + LANES - 1) / LANES * LANES; }
inline ptrdiff_t point_pitch(int tiles, ptrdiff_t pitch) { return tiles * pitch + 16; }

// The transformed sources of the block's tiles, `out`: (POINTS * POINTS, tiles, in_channels), points `out_pitch` floats
// and tiles tile_pitch(in_channels) floats apart.
template <class Tile>
void transform(const Block &block, const Op &op, float *out, ptrdiff_t out_pitch) {
    constexpr int P = Tile::POINTS;
    const Geometry &from = *(op.from_previous ? block.context->previous : block.context->geometry);
    const Level &source = from.level[op.source_level];
    const uint16_t *yx = Tile::positions(block.context->geometry->level[block.level]);
    const uint8_t *data = row_zero(block, op.source);
    const ptrdiff_t row_bytes = block.context->slots[op.source].row_bytes, width = tile_pitch(op.in_channels);
    const float *x[P * P], *next[P * P];
    // The map's margin stands for the padding: a tile's first source is one line and one column before its first result.
    const auto fill_indirection = [&](int tile, const float **rows) {
        const int32_t *map = source.map + yx[2 * tile] * source.map_pitch + yx[2 * tile + 1];
        for (int i = 0; i < P * P; ++i) rows[i] = (const float *)(data + map[i / P * source.map_pitch + i % P] * row_bytes);
    };
    fill_indirection(block.first, next);
    for (int tile = block.first; tile < block.last; ++tile) {
        for (int i = 0; i < P * P; ++i) x[i] = next[i];
        if (tile + 1 < block.last) {
            fill_indirection(tile + 1, next);
            for (int i = 0; i < P * P; ++i) prefetch(next[i], op.in_channels * sizeof(float));
        }
        float *to = out + (tile - block.first) * width;
        for (int c = 0; c < op.in_channels; c += LANES, to += LANES) {
            Vector rows[P * P], columns[P * P];
#pragma GCC unroll 6
            for (int i = 0; i < P; ++i) {
                Vector line[P];
#pragma GCC unroll 6
                for (int k = 0; k < P; ++k) line[k] = load(x[i * P + k] + c);
                Tile::forward(line, 1, rows + i * P);
            }
#pragma GCC unroll 6
            for (int i = 0; i < P; ++i) {
                Tile::forward(rows + i, P, columns);
#pragma GCC unroll 6
                for (int k = 0; k < P; ++k) *(Unaligned *)(to + (k * P + i) * out_pitch) = columns[k];
            }
        }
    }
}

// One panel of NV vectors of output channels from `column` on, for all tiles of the block.
// `transformed`: see `transform`. `weights`: (POINTS * POINTS, in_channels, NV * LANES). `products`: room for
// (POINTS * POINTS, tiles, NV * LANES). `lanes`: channels from `column` to the end of a row.
//
// Never inlined: which products and sums the compiler fuses, and so the last bit, depends on the code around them.
template <class Tile, int MR, int NV, class E>
__attribute__((noinline)) void winograd_panel(const Block &block, const Op &op, const float *transformed, ptrdiff_t transformed_pitch,
                    const float *weights, float *products, const E &epilogue, int column, int lanes) {
    constexpr int P = Tile::POINTS, S = Tile::SIDE;
    const int tiles = block.last - block.first;
    const ptrdiff_t width = tile_pitch(op.in_channels), product_pitch = point_pitch(tiles, NV * LANES);
    for (int point = 0; point < P * P; ++point) {
        const Source source = {(const uint8_t *)(transformed + point * transformed_pitch),
                               width * (ptrdiff_t)sizeof(float)};
        for (int first = 0; first < tiles; first += MR) {
            int32_t rows[MR];
            for (int m = 0; m < MR; ++m) rows[m] = first + m < tiles ? first + m : tiles - 1;
            Vector sum[MR][NV];
            accumulate<MR, NV>(source, rows, 1, op.in_channels,
                               weights + (ptrdiff_t)point * op.in_channels * NV * LANES, sum);
            float *to = products + point * product_pitch + first * NV * LANES;
#pragma GCC unroll 16
            for (int m = 0; m < MR; ++m) {
                if (first + m >= tiles) break;
#pragma GCC unroll 4
                for (int n = 0; n < NV; ++n) *(Unaligned *)(to + (m * NV + n) * LANES) = sum[m][n];
            }
        }
    }
    const Level &level = block.context->geometry->level[block.level];
    const uint16_t *yx = Tile::positions(level);
    const auto map_at = [&](int tile) { return level.map + (yx[2 * tile] + 1) * level.map_pitch + yx[2 * tile + 1] + 1; };
    for (int tile = block.first; tile < block.last; ++tile) {
        const int32_t *map = map_at(tile);
        if (tile + 1 < block.last) {
            const int32_t *next = map_at(tile + 1);
            for (int i = 0; i < S * S; ++i)
                epilogue.prefetch_residual(next[i / S * level.map_pitch + i % S], column, NV * LANES);
        }
        typename E::Row rows[S * S];
        bool active[S * S];
        for (int i = 0; i < S * S; ++i) {
            const int row = map[i / S * level.map_pitch + i % S];
            active[i] = row >= 0 && row < level.active_rows;
            if (active[i]) rows[i] = epilogue.row(row);
        }
        const float *from = products + (tile - block.first) * NV * LANES;
        for (int n = 0; n < NV; ++n, from += LANES) {
            Vector halves[S * P], results[S];
#pragma GCC unroll 6
            for (int k = 0; k < P; ++k) {
                Vector line[P];
#pragma GCC unroll 6
                for (int i = 0; i < P; ++i) line[i] = load(from + (i * P + k) * product_pitch);
                Tile::back(line, 1, results);
#pragma GCC unroll 4
                for (int i = 0; i < S; ++i) halves[i * P + k] = results[i];
            }
#pragma GCC unroll 4
            for (int i = 0; i < S; ++i) {
                Tile::back(halves + i * P, 1, results);
#pragma GCC unroll 4
                for (int k = 0; k < S; ++k)
                    if (active[i * S + k])
                        epilogue.write(rows[i * S + k], column + n * LANES, results[k], lanes - n * LANES);
            }
        }
    }
}

// Source: (rows of the source level, in_channels). Target: (rows, out_channels), of which the tiles' active rows are
// written. Weights: (POINTS * POINTS, in_channels, out_channels), packed in panels. The block's scratch holds the
// transformed sources, then the products of one panel; `_transformed_floats` in program.py says how much that is.
template <class Tile, bool ANY>
void winograd(const Block &block, const Op &op) {
    assert(op.taps == Tile::POINTS * Tile::POINTS && op.stride == 1 && op.source_scale == 0);
    assert(block.domain == (Tile::SIDE == 4 ? TILES_4X4 : TILES_2X2));
    const Epilogue<ANY> epilogue = make_epilogue<ANY>(block, op);
    const ptrdiff_t pitch = point_pitch(block.last - block.first, tile_pitch(op.in_channels));
    float *transformed = (float *)block.scratch, *products = transformed + Tile::POINTS * Tile::POINTS * pitch;
    transform<Tile>(block, op, transformed, pitch);
    const Panels panels(op.out_channels);
    const ptrdiff_t depth = (ptrdiff_t)Tile::POINTS * Tile::POINTS * op.in_channels * LANES;
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const float *weights = (const float *)op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES, lanes = padded(op.out_channels) - column;
        switch (panels.width(p)) {
        case 1:
            winograd_panel<Tile, MR_1, 1>(block, op, transformed, pitch, weights, products, epilogue, column, lanes);
            break;
        case 2:
            winograd_panel<Tile, MR_2, 2>(block, op, transformed, pitch, weights, products, epilogue, column, lanes);
            break;
        case 3:
            winograd_panel<Tile, MR_3, 3>(block, op, transformed, pitch, weights, products, epilogue, column, lanes);
            break;
#if PANEL_VECTORS >= 4
        case 4:
            winograd_panel<Tile, MR_4, 4>(block, op, transformed, pitch, weights, products, epilogue, column, lanes);
            break;
#endif
        }
    }
}
