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
// A panel has NV whole vectors of output channels. REST: remaining output channels of the panel. 8: computed as a half
// vector; 2 or 4: computed by Tail, where `dot_*.h` specialises it, and stored as a half vector.

// The sums of MR rows and one panel.
template <int MR, int NV> struct Sums {
    IntVector whole[MR][NV ? NV : 1];
    HalfIntVector half[MR];
};

// The sums of a rest of 2 or 4 channels.
template <int MR, int REST> struct Tail {
    void clear() {}
    const int32_t *add(const uint8_t *const *, int, const int32_t *words) { return words; }
    void finish(HalfIntVector *) const {}
};
#if DOT_TAIL
#include "dot_tail.h"
#endif

// `rows`: (taps, MR) numbers of source rows. `words`: the panel's weights. `first`: what the sums begin with, if
// DOT_SIGNED.
template <int MR, int NV, int REST>
__attribute__((always_inline)) inline void accumulate_u8(const Source &source, const int32_t *rows, int taps, int groups,
                                                         const int32_t *words, const int32_t *first, Sums<MR, NV> &sums) {
    Tail<MR, REST> tail;
    tail.clear();
    for (int m = 0; m < MR; ++m) {
        for (int n = 0; n < NV; ++n)
            sums.whole[m][n] = DOT_SIGNED ? load_ints<IntVector>(first + n * LANES) : IntVector{};
        if (REST == 8) sums.half[m] = DOT_SIGNED ? load_ints<HalfIntVector>(first + NV * LANES) : HalfIntVector{};
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
                    for (int n = 0; n < NV; ++n) sums.whole[m][n] = dot(sums.whole[m][n], a, w[n]);
                    if (REST == 8) sums.half[m] = dot(sums.half[m], lower(a), w_half);
                }
            }
        } while ((c += 4) < 4 * groups);
        words = tail.add(x, groups, words);
    } while (--taps);
    tail.finish(sums.half);
}

// What a target or a residual holds; NONE: there is no residual.
enum Values { NONE, FLOATS, BYTES };

// What follows the sums of one panel. For a target of u8, scales, shift and residual_scale count in steps of the target,
// and a value of 1 step is `step`.
struct Finish {
    const float *scales, *shift; // of the panel's first channel, like all that follow
    const float *bias;
    uint8_t *target, *pre_activation;
    const uint8_t *residual;
    float residual_scale, step;
    bool relu;
};

// The results of one row, but for a target's ReLU, at the channels that the arguments point to, and its pre-activations.
template <Values TARGET, Values RESIDUAL, class V, class I>
inline V finish(const Finish &f, I sums, int column, const uint8_t *residual, float *pre_activation) {
    const V scaled = __builtin_convertvector(sums, V) * load<V>(f.scales + column);
    if (__builtin_expect(pre_activation != nullptr, 0)) {
        const V value = TARGET == BYTES ? scaled * f.step : scaled;
        store(pre_activation + column, f.bias ? value + load<V>(f.bias + column) : value, LANES);
    }
    V value = scaled + load<V>(f.shift + column);
    if (RESIDUAL == BYTES) value += load<V>(residual + column) * f.residual_scale;
    if (RESIDUAL == FLOATS) {
        const V added = load<V>((const float *)residual + column);
        value += TARGET == BYTES ? added * f.residual_scale : added;
    }
    return value;
}

// target = relu(scales * sums + shift + residual) for rows [first, first + count) and the channels of a panel.
template <int MR, int NV, int REST, Values TARGET, Values RESIDUAL>
__attribute__((always_inline)) inline void finish_rows(const Epilogue<true> &epilogue, const Finish &f, int first,
                                                       int count, const Sums<MR, NV> &sums) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
        if (m >= count) break;
        const int i = first + m;
        uint8_t *const to = f.target + (epilogue.scatter ? epilogue.position(i) : i) * epilogue.target_pitch;
        const uint8_t *residual = RESIDUAL == NONE ? nullptr : f.residual + i * epilogue.residual_pitch;
        float *before = nullptr;
        if (f.pre_activation && epilogue.read_by_halo[i])
            before = (float *)(f.pre_activation + i * epilogue.pre_activation_pitch);
        Vector values[NV ? NV : 1];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n)
            values[n] = finish<TARGET, RESIDUAL, Vector>(f, sums.whole[m][n], n * LANES, residual, before);
        HalfVector half;
        if (REST) half = finish<TARGET, RESIDUAL, HalfVector>(f, sums.half[m], NV * LANES, residual, before);
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

// One panel of output channels from `column` on, for all rows of the block.
template <int MR, int NV, int REST>
void convolve_u8_panel(const Block &block, const Op &op, const Source &source, const int32_t *weights,
                       const Epilogue<true> &epilogue, int column) {
    const bool bytes = op.target_scale != 0, residual_bytes = op.residual_scale != 0;
    const float step = bytes ? op.target_scale : 1;
    const Finish finish = {op.scales + column,
                           op.shift + column,
                           op.bias ? op.bias + column : nullptr,
                           epilogue.target + column * (bytes ? 1 : 4),
                           epilogue.pre_activation ? epilogue.pre_activation + column * 4 : nullptr,
                           epilogue.residual + column * (residual_bytes ? 1 : 4),
                           (residual_bytes ? op.residual_scale : 1) / step,
                           step,
                           op.relu != 0};
    const int kind = (bytes ? 3 : 0) + (op.residual < 0 ? 0 : residual_bytes ? 2 : 1);
    int32_t rows[MAX_TAPS * MR];
    for (int first = block.first; first < block.last; first += MR) {
        fill_indirection<MR>(block, op, first, rows);
        for (int m = 0; m < MR && first + MR + m < block.last; ++m)
            epilogue.prefetch_residual(first + MR + m, column, NV * LANES + (REST ? 8 : 0));
        Sums<MR, NV> sums;
        accumulate_u8<MR, NV, REST>(source, rows, op.taps, (op.in_channels + 3) / 4, weights, op.first_sums + column, sums);
        const int count = block.last - first;
        switch (kind) {
        case 0: finish_rows<MR, NV, REST, FLOATS, NONE>(epilogue, finish, first, count, sums); break;
        case 1: finish_rows<MR, NV, REST, FLOATS, FLOATS>(epilogue, finish, first, count, sums); break;
        case 2: finish_rows<MR, NV, REST, FLOATS, BYTES>(epilogue, finish, first, count, sums); break;
        case 3: finish_rows<MR, NV, REST, BYTES, NONE>(epilogue, finish, first, count, sums); break;
        case 4: finish_rows<MR, NV, REST, BYTES, FLOATS>(epilogue, finish, first, count, sums); break;
        case 5: finish_rows<MR, NV, REST, BYTES, BYTES>(epilogue, finish, first, count, sums); break;
        }
    }
}

#if VECTOR_BYTES == 64
// A panel of so many vectors, the last of which is cut, see REST.
template <int REST>
void convolve_u8_last_panel(const Block &block, const Op &op, const Source &source, const int32_t *weights,
                            const Epilogue<true> &epilogue, int column, int vectors) {
    switch (vectors) {
    case 1: convolve_u8_panel<MR_U8_1, 0, REST>(block, op, source, weights, epilogue, column); break;
    case 2: convolve_u8_panel<MR_U8_2, 1, REST>(block, op, source, weights, epilogue, column); break;
    case 3: convolve_u8_panel<MR_U8_3, 2, REST>(block, op, source, weights, epilogue, column); break;
    case 4: convolve_u8_panel<MR_U8_4, 3, REST>(block, op, source, weights, epilogue, column); break;
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
        case 1: convolve_u8_panel<MR_U8_1, 1, 0>(block, op, source, weights, epilogue, column); break;
        case 2: convolve_u8_panel<MR_U8_2, 2, 0>(block, op, source, weights, epilogue, column); break;
        case 3: convolve_u8_panel<MR_U8_3, 3, 0>(block, op, source, weights, epilogue, column); break;
#if PANEL_VECTORS >= 4
        case 4: convolve_u8_panel<MR_U8_4, 4, 0>(block, op, source, weights, epilogue, column); break;
#endif
        }
    }
}
