// Convolution in eight bits: source rows of u8 times weights of s8, summed in 32 bits, so exactly. Included by kernels.h,
// in its namespace.
//
// The channels of a source row are taken in groups of four: one load copies a group to all lanes, and each lane
// multiplies it by the four weights of its output channel. Weights are packed as
//     [panel][tap][group][part][output channel of the panel][4 / DOT_PARTS]
// and are 0 for the channels that fill up the last group. An instruction set that multiplies numbers wider than eight
// bits takes a group in DOT_PARTS parts: part p has the channels p, p + DOT_PARTS, ..., and its weights have
// 8 * DOT_PARTS bits. A file `dot_*.h` defines
//     DOT_PARTS, DOT_SIGNED                            see Kernels
//     IntVector spread(const uint8_t *four, int part)  a part of a group, in all lanes
//     IntVector dot(IntVector sum, IntVector x, IntVector weights)
// and, where a HalfIntVector is narrower, `dot` of such vectors and `lower`, the first half of a vector.
//
// The last panel ends where the row does: its last vector may be a half one.
//
// The sums of a few rows go through memory, so that neither the accumulation nor the epilogue, which knows its types,
// takes registers from the other.

// `sums`: (MR, NV * LANES + 8 if HALF) = the products of MR rows and one panel of NV vectors of output channels, and a
// half vector more if HALF. `rows`: (taps, MR) numbers of source rows. `words`: the panel's weights. `first`: what the
// sums begin with, if DOT_SIGNED.
template <int MR, int NV, bool HALF>
__attribute__((noinline)) void accumulate_u8(const Source &source, const int32_t *rows, int taps, int groups,
                                             const int32_t *words, const int32_t *first, int32_t *sums) {
    constexpr int CHANNELS = NV * LANES + (HALF ? 8 : 0);
    IntVector sum[MR][NV ? NV : 1];
    HalfIntVector half[MR];
    for (int m = 0; m < MR; ++m) {
        for (int n = 0; n < NV; ++n) sum[m][n] = DOT_SIGNED ? load_ints<IntVector>(first + n * LANES) : IntVector{};
        if (HALF) half[m] = DOT_SIGNED ? load_ints<HalfIntVector>(first + NV * LANES) : HalfIntVector{};
    }
    for (int t = 0; t < taps; ++t) {
        const uint8_t *x[MR];
        for (int m = 0; m < MR; ++m) x[m] = source.data + rows[t * MR + m] * source.row_bytes;
        for (int c = 0; c < 4 * groups; c += 4) {
#pragma GCC unroll 4
            for (int part = 0; part < DOT_PARTS; ++part, words += CHANNELS) {
                IntVector w[NV ? NV : 1];
                HalfIntVector w_half;
#pragma GCC unroll 4
                for (int n = 0; n < NV; ++n) w[n] = load_ints<IntVector>(words + n * LANES);
                if (HALF) w_half = load_ints<HalfIntVector>(words + NV * LANES);
#pragma GCC unroll 16
                for (int m = 0; m < MR; ++m) {
                    const IntVector a = spread(x[m] + c, part);
#pragma GCC unroll 4
                    for (int n = 0; n < NV; ++n) sum[m][n] = dot(sum[m][n], a, w[n]);
                    if (HALF) half[m] = dot(half[m], lower(a), w_half);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m, sums += CHANNELS) {
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) __builtin_memcpy(sums + n * LANES, &sum[m][n], sizeof sum[m][n]);
        if (HALF) __builtin_memcpy(sums + NV * LANES, &half[m], sizeof half[m]);
    }
}

// What a target or a residual holds; NONE: there is no residual.
enum Values { NONE, FLOATS, BYTES };

// As many channels as V has lanes. The arguments point to the first of them.
template <class V, Values TARGET, Values RESIDUAL>
inline void finish(const int32_t *sums, const float *scales, const float *shift, const uint8_t *residual,
                   float residual_scale, uint8_t *target, float target_steps, bool relu) {
    V value = to_floats<V>(sums) * load<V>(scales) + load<V>(shift);
    if (RESIDUAL == BYTES) value += load<V>(residual) * residual_scale;
    if (RESIDUAL == FLOATS) value += load<V>((const float *)residual);
    if (TARGET == BYTES)
        store(target, value * target_steps, LANES);
    else
        store((float *)target, relu ? ::relu(value) : value, LANES);
}

// target = relu(scales * sums + shift + residual) for rows [first, first + count) and `channels` channels from `column`
// on. `sums`: (count, channels).
template <Values TARGET, Values RESIDUAL>
void finish_rows(const Epilogue<true> &epilogue, int first, int count, const float *scales, int column, int channels,
                 const int32_t *sums) {
    constexpr int TARGET_SIZE = TARGET == BYTES ? 1 : 4, RESIDUAL_SIZE = RESIDUAL == BYTES ? 1 : 4;
    // Copies, which no byte that is stored can be part of.
    const ptrdiff_t target_pitch = epilogue.target_pitch, residual_pitch = epilogue.residual_pitch;
    const float residual_scale = epilogue.residual_scale, target_steps = epilogue.target_steps;
    const bool relu = epilogue.relu, scatter = epilogue.scatter;
    const float *const scale = scales + column, *const shift = epilogue.shift + column;
    uint8_t *const target = epilogue.target + column * TARGET_SIZE;
    const uint8_t *residual = nullptr;
    if (RESIDUAL != NONE) residual = epilogue.residual + first * residual_pitch + column * RESIDUAL_SIZE;
    for (int i = first; i < first + count; ++i, sums += channels, residual += residual_pitch) {
        uint8_t *const to = target + (scatter ? epilogue.position(i) : i) * target_pitch;
        int c = 0;
        for (; c + LANES <= channels; c += LANES)
            finish<Vector, TARGET, RESIDUAL>(sums + c, scale + c, shift + c, residual + c * RESIDUAL_SIZE, residual_scale,
                                             to + c * TARGET_SIZE, target_steps, relu);
        if (c < channels)
            finish<HalfVector, TARGET, RESIDUAL>(sums + c, scale + c, shift + c, residual + c * RESIDUAL_SIZE,
                                                 residual_scale, to + c * TARGET_SIZE, target_steps, relu);
    }
}

typedef void (*FinishRows)(const Epilogue<true> &, int, int, const float *, int, int, const int32_t *);

inline FinishRows finish_rows_of(const Op &op) {
    const bool bytes = op.target_scale != 0;
    if (op.residual < 0) return bytes ? finish_rows<BYTES, NONE> : finish_rows<FLOATS, NONE>;
    if (op.residual_scale == 0) return bytes ? finish_rows<BYTES, FLOATS> : finish_rows<FLOATS, FLOATS>;
    return bytes ? finish_rows<BYTES, BYTES> : finish_rows<FLOATS, BYTES>;
}

// Stores the pre-activations that the halo reads, of the same rows and channels: scales * sums + bias.
void store_pre_activations(const Epilogue<true> &epilogue, int first, int count, const float *scales, int column,
                           int channels, const int32_t *sums) {
    const auto value = [&](auto zero, const int32_t *sum, int at) {
        using V = decltype(zero);
        const V scaled = to_floats<V>(sum) * load<V>(scales + at);
        return epilogue.bias ? scaled + load<V>(epilogue.bias + at) : scaled;
    };
    for (int i = first; i < first + count; ++i, sums += channels) {
        if (!epilogue.read_by_halo[i]) continue;
        float *const to = (float *)(epilogue.pre_activation + i * epilogue.pre_activation_pitch) + column;
        int c = 0;
        for (; c + LANES <= channels; c += LANES) store(to + c, value(Vector{}, sums + c, column + c), LANES);
        if (c < channels) store(to + c, value(HalfVector{}, sums + c, column + c), LANES);
    }
}

// One panel of output channels from `column` on, for all rows of the block.
template <int MR, int NV, bool HALF>
void convolve_u8_panel(const Block &block, const Op &op, const Source &source, const int32_t *weights,
                       const Epilogue<true> &epilogue, FinishRows finish_rows, int column) {
    constexpr int CHANNELS = NV * LANES + (HALF ? 8 : 0);
    int32_t rows[MAX_TAPS * MR];
    alignas(64) int32_t sums[MR * CHANNELS];
    for (int first = block.first; first < block.last; first += MR) {
        fill_indirection<MR>(block, op, first, rows);
        for (int m = 0; m < MR && first + MR + m < block.last; ++m)
            epilogue.prefetch_residual(first + MR + m, column, CHANNELS);
        accumulate_u8<MR, NV, HALF>(source, rows, op.taps, (op.in_channels + 3) / 4, weights, op.first_sums + column, sums);
        const int count = block.last - first < MR ? block.last - first : MR;
        if (epilogue.pre_activation)
            store_pre_activations(epilogue, first, count, op.scales, column, CHANNELS, sums);
        finish_rows(epilogue, first, count, op.scales, column, CHANNELS, sums);
    }
}

// Source: u8 (rows of the source level, in_channels). Target: (rows of the block, out_channels). Weights: packed in
// panels. Taps: 1, or 9 (3x3 with padding 1) through the map.
void convolve_u8(const Block &block, const Op &op) {
    assert((op.taps == 1 || op.taps == 9) && op.addressing != PADDED_IMAGE && op.source_scale != 0 && op.shift);
    assert(block.domain == ACTIVE || block.domain == HALO || block.domain == NEEDED);
    assert(op.addressing != SAME_ROW || (op.taps == 1 && op.stride == 1 && !op.from_previous));
    assert(op.stride >= 1 && op.in_channels > 0 && op.out_channels > 0);
    const Epilogue<true> epilogue = make_epilogue<true>(block, op);
    const FinishRows finish_rows = finish_rows_of(op);
    const Source source = {row_zero(block, op.source), block.context->slots[op.source].row_bytes};
    const Panels panels(op.out_channels);
    // Words of weights in one vector's width.
    const ptrdiff_t depth = (ptrdiff_t)op.taps * ((op.in_channels + 3) / 4) * DOT_PARTS * LANES;
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const int32_t *weights = (const int32_t *)op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES;
#if VECTOR_BYTES == 64
        if (padded(op.out_channels) - column < panels.width(p) * LANES) { // the last vector is a half one
            switch (panels.width(p)) {
            case 1: convolve_u8_panel<MR_1, 0, true>(block, op, source, weights, epilogue, finish_rows, column); break;
            case 2: convolve_u8_panel<MR_2, 1, true>(block, op, source, weights, epilogue, finish_rows, column); break;
            case 3: convolve_u8_panel<MR_3, 2, true>(block, op, source, weights, epilogue, finish_rows, column); break;
            case 4: convolve_u8_panel<MR_4, 3, true>(block, op, source, weights, epilogue, finish_rows, column); break;
            }
            continue;
        }
#endif
        switch (panels.width(p)) {
        case 1: convolve_u8_panel<MR_1, 1, false>(block, op, source, weights, epilogue, finish_rows, column); break;
        case 2: convolve_u8_panel<MR_2, 2, false>(block, op, source, weights, epilogue, finish_rows, column); break;
        case 3: convolve_u8_panel<MR_3, 3, false>(block, op, source, weights, epilogue, finish_rows, column); break;
#if PANEL_VECTORS >= 4
        case 4: convolve_u8_panel<MR_4, 4, false>(block, op, source, weights, epilogue, finish_rows, column); break;
#endif
        }
    }
}
