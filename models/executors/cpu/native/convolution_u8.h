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

// The channels of a panel after its last whole vector, none unless they are specialised in `dot_*.h`.
template <int MR, int CHANNELS> struct Tail {
    static_assert(CHANNELS == 0);
    void clear() {}
    const int32_t *add(const uint8_t *const *, int, const int32_t *words) { return words; }
    void store(int32_t *, int) const {}
};
#if DOT_TAIL
#include "dot_tail.h"
#endif

// `sums`: (MR, NV * LANES + 8 if REST) = the products of MR rows and one panel of NV vectors of output channels, and a
// half vector more if HALF. `rows`: (taps, MR) numbers of source rows. `words`: the panel's weights. `first`: what the
// sums begin with, if DOT_SIGNED.
template <int MR, int NV, int REST>
__attribute__((noinline)) void accumulate_u8(const Source &source, const int32_t *rows, int taps, int groups,
                                             const int32_t *words, const int32_t *first, int32_t *sums) {
    constexpr int CHANNELS = NV * LANES + (REST ? 8 : 0);
    IntVector sum[MR][NV ? NV : 1];
    HalfIntVector half[MR];
    Tail<MR, REST < 8 ? REST : 0> tail;
    tail.clear();
    for (int m = 0; m < MR; ++m) {
        for (int n = 0; n < NV; ++n) sum[m][n] = DOT_SIGNED ? load_ints<IntVector>(first + n * LANES) : IntVector{};
        if (REST == 8) half[m] = DOT_SIGNED ? load_ints<HalfIntVector>(first + NV * LANES) : HalfIntVector{};
    }
    // There is at least one tap of one group. A compiler that has to think of none keeps the sums in memory.
    do {
        const uint8_t *x[MR];
        for (int m = 0; m < MR; ++m) x[m] = source.data + rows[m] * source.row_bytes;
        rows += MR;
        int c = 0;
        do {
#pragma GCC unroll 4
            for (int part = 0; part < DOT_PARTS; ++part, words += NV * LANES + (REST == 8 ? 8 : 0)) {
                IntVector w[NV ? NV : 1];
                HalfIntVector w_half;
#pragma GCC unroll 4
                for (int n = 0; n < NV; ++n) w[n] = load_ints<IntVector>(words + n * LANES);
                if (REST == 8) w_half = load_ints<HalfIntVector>(words + NV * LANES);
#pragma GCC unroll 16
                for (int m = 0; m < MR; ++m) {
                    const IntVector a = spread(x[m] + c, part);
#pragma GCC unroll 4
                    for (int n = 0; n < NV; ++n) sum[m][n] = dot(sum[m][n], a, w[n]);
                    if (REST == 8) half[m] = dot(half[m], lower(a), w_half);
                }
            }
        } while ((c += 4) < 4 * groups);
        words = tail.add(x, groups, words);
    } while (--taps);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
        int32_t *const to = sums + m * CHANNELS;
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) __builtin_memcpy(to + n * LANES, &sum[m][n], sizeof sum[m][n]);
        if (REST == 8) __builtin_memcpy(to + NV * LANES, &half[m], sizeof half[m]);
    }
    tail.store(sums + NV * LANES, CHANNELS);
}

// What a target or a residual holds; NONE: there is no residual.
enum Values { NONE, FLOATS, BYTES };

// What follows the sums of one panel, by channel. For a target of u8, all of it counts in steps of the target.
struct Finish {
    const float *scales, *shift;
    float residual_scale;
    bool relu;
};

// The result of as many channels as V has lanes, but for a target's ReLU. The arguments point to the first of them.
template <class V, Values TARGET, Values RESIDUAL>
inline V finish(const Finish &finish, const int32_t *sums, const float *scales, const float *shift,
                const uint8_t *residual) {
    V value = to_floats<V>(sums) * load<V>(scales) + load<V>(shift);
    if (RESIDUAL == BYTES) value += load<V>(residual) * finish.residual_scale;
    if (RESIDUAL == FLOATS && TARGET == BYTES) value += load<V>((const float *)residual) * finish.residual_scale;
    if (RESIDUAL == FLOATS && TARGET == FLOATS) value += load<V>((const float *)residual);
    return value;
}

// target = relu(scales * sums + shift + residual) for rows [first, first + count) and the channels of a panel from
// `column` on. `sums`: (count, channels).
template <int NV, int REST, Values TARGET, Values RESIDUAL>
void finish_rows(const Epilogue<true> &epilogue, const Finish &how, int first, int count, int column,
                 const int32_t *sums) {
    constexpr int CHANNELS = NV * LANES + (REST ? 8 : 0);
    constexpr int TARGET_SIZE = TARGET == BYTES ? 1 : 4, RESIDUAL_SIZE = RESIDUAL == BYTES ? 1 : 4;
    // Copies, which no byte that is stored can be part of.
    const Finish f = how;
    const ptrdiff_t target_pitch = epilogue.target_pitch, residual_pitch = epilogue.residual_pitch;
    const bool scatter = epilogue.scatter;
    const float *const scales = f.scales + column, *const shift = f.shift + column;
    uint8_t *const target = epilogue.target + column * TARGET_SIZE;
    const uint8_t *residual = nullptr;
    if (RESIDUAL != NONE) residual = epilogue.residual + first * residual_pitch + column * RESIDUAL_SIZE;
    for (int i = first; i < first + count; ++i, sums += CHANNELS, residual += residual_pitch) {
        uint8_t *const to = target + (scatter ? epilogue.position(i) : i) * target_pitch;
        Vector values[NV ? NV : 1];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n)
            values[n] = finish<Vector, TARGET, RESIDUAL>(f, sums + n * LANES, scales + n * LANES, shift + n * LANES,
                                                         residual + n * LANES * RESIDUAL_SIZE);
        HalfVector half;
        if (REST)
            half = finish<HalfVector, TARGET, RESIDUAL>(f, sums + NV * LANES, scales + NV * LANES, shift + NV * LANES,
                                                        residual + NV * LANES * RESIDUAL_SIZE);
        if (TARGET == BYTES) {
            store_panel<NV>(to, values);
            if (REST) store(to + NV * LANES, half, LANES);
            continue;
        }
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) store((float *)to + n * LANES, f.relu ? ::relu(values[n]) : values[n], LANES);
        if (REST) store((float *)to + NV * LANES, f.relu ? ::relu(half) : half, LANES);
    }
}

typedef void (*FinishRows)(const Epilogue<true> &, const Finish &, int, int, int, const int32_t *);

template <int NV, int REST> inline FinishRows finish_rows_of(const Op &op) {
    const bool bytes = op.target_scale != 0;
    if (op.residual < 0) return bytes ? finish_rows<NV, REST, BYTES, NONE> : finish_rows<NV, REST, FLOATS, NONE>;
    if (op.residual_scale == 0) return bytes ? finish_rows<NV, REST, BYTES, FLOATS> : finish_rows<NV, REST, FLOATS, FLOATS>;
    return bytes ? finish_rows<NV, REST, BYTES, BYTES> : finish_rows<NV, REST, FLOATS, BYTES>;
}

// Stores the pre-activations that the halo reads, of the same rows and channels: scales * sums + bias. `step`: what the
// scales count in.
void store_pre_activations(const Epilogue<true> &epilogue, int first, int count, const float *scales, float step,
                           int column, int channels, const int32_t *sums) {
    const auto value = [&](auto zero, const int32_t *sum, int at) {
        using V = decltype(zero);
        const V scaled = to_floats<V>(sum) * (load<V>(scales + at) * step);
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
template <int MR, int NV, int REST>
void convolve_u8_panel(const Block &block, const Op &op, const Source &source, const int32_t *weights,
                       const Epilogue<true> &epilogue, int column) {
    constexpr int CHANNELS = NV * LANES + (REST ? 8 : 0);
    const bool bytes = op.target_scale != 0;
    const float step = bytes ? op.target_scale : 1;
    const Finish finish = {op.scales, op.shift, (op.residual_scale != 0 ? op.residual_scale : 1) / step, op.relu != 0};
    const FinishRows finish_rows = finish_rows_of<NV, REST>(op);
    int32_t rows[MAX_TAPS * MR];
    alignas(64) int32_t sums[MR * CHANNELS];
    for (int first = block.first; first < block.last; first += MR) {
        fill_indirection<MR>(block, op, first, rows);
        for (int m = 0; m < MR && first + MR + m < block.last; ++m)
            epilogue.prefetch_residual(first + MR + m, column, CHANNELS);
        accumulate_u8<MR, NV, REST>(source, rows, op.taps, (op.in_channels + 3) / 4, weights, op.first_sums + column, sums);
        const int count = block.last - first < MR ? block.last - first : MR;
        if (epilogue.pre_activation)
            store_pre_activations(epilogue, first, count, op.scales, step, column, CHANNELS, sums);
        finish_rows(epilogue, finish, first, count, column, sums);
    }
}

#if VECTOR_BYTES == 64
// A panel of so many vectors, the last of which is cut, see REST.
template <int REST>
void convolve_u8_last_panel(const Block &block, const Op &op, const Source &source, const int32_t *weights,
                            const Epilogue<true> &epilogue, int column, int vectors) {
    switch (vectors) {
    case 1: convolve_u8_panel<MR_1, 0, REST>(block, op, source, weights, epilogue, column); break;
    case 2: convolve_u8_panel<MR_2, 1, REST>(block, op, source, weights, epilogue, column); break;
    case 3: convolve_u8_panel<MR_3, 2, REST>(block, op, source, weights, epilogue, column); break;
    case 4: convolve_u8_panel<MR_4, 3, REST>(block, op, source, weights, epilogue, column); break;
    }
}
#endif

// Source: u8 (rows of the source level, in_channels). Target: (rows of the block, out_channels). Weights: packed in
// panels. Taps: 1, or 9 (3x3 with padding 1) through the map, or 3 in the padded image.
void convolve_u8(const Block &block, const Op &op) {
    assert(op.taps == 1 || op.taps == 9 || (op.taps == 3 && op.addressing == PADDED_IMAGE));
    assert(op.source_scale != 0 && op.shift);
    assert(block.domain == ACTIVE || block.domain == HALO || block.domain == NEEDED);
    assert(op.addressing != SAME_ROW || (op.taps == 1 && op.stride == 1 && !op.from_previous));
    assert(op.stride >= 1 && op.in_channels > 0 && op.out_channels > 0);
    const Epilogue<true> epilogue = make_epilogue<true>(block, op);
    const Source source = {row_zero(block, op.source), block.context->slots[op.source].row_bytes};
    const Panels panels(op.out_channels);
    // Words of weights in one vector's width.
    const ptrdiff_t depth = (ptrdiff_t)op.taps * ((op.in_channels + 3) / 4) * DOT_PARTS * LANES;
    for (int p = panels.count * block.group / block.groups; p < panels.count * (block.group + 1) / block.groups; ++p) {
        const int32_t *weights = (const int32_t *)op.weights + panels.begin(p) * depth;
        const int column = panels.begin(p) * LANES;
#if VECTOR_BYTES == 64
        if (padded(op.out_channels) - column < panels.width(p) * LANES) { // the last vector is a half one
            const int rest = op.out_channels % LANES;
            switch (rest > DOT_TAIL ? 8 : (rest + 1) / 2 * 2) {
#if DOT_TAIL == 4
            case 2: convolve_u8_last_panel<2>(block, op, source, weights, epilogue, column, panels.width(p)); break;
            case 4: convolve_u8_last_panel<4>(block, op, source, weights, epilogue, column, panels.width(p)); break;
#endif
            default: convolve_u8_last_panel<8>(block, op, source, weights, epilogue, column, panels.width(p));
            }
            continue;
        }
#endif
        switch (panels.width(p)) {
        case 1: convolve_u8_panel<MR_1, 1, 0>(block, op, source, weights, epilogue, column); break;
        case 2: convolve_u8_panel<MR_2, 2, 0>(block, op, source, weights, epilogue, column); break;
        case 3: convolve_u8_panel<MR_3, 3, 0>(block, op, source, weights, epilogue, column); break;
#if PANEL_VECTORS >= 4
        case 4: convolve_u8_panel<MR_4, 4, 0>(block, op, source, weights, epilogue, column); break;
#endif
        }
    }
}
