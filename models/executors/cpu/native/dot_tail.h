// Handles the last 2 or 4 output channels, which are left after whole vectors of 16, as with 18, 36 or (as 4) 19 output
// channels. In vectors of their own most lanes would multiply by 0. Here each quarter of a vector belongs to one output
// channel: one load copies sixteen channels of a source row to all quarters, and the lanes of a quarter are added at the
// end. Weights are packed as
//     [tap][sixteen input channels][output channel][16]
// after those of the whole vectors of the same tap. For AVX512-VNNI. Included by convolution_u8.h.

template <int CHANNELS> struct TailVector;
template <> struct TailVector<2> {
    typedef __m256i Type;
    static Type spread(const uint8_t *x) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)x)); }
    static Type dot(Type sum, Type x, const int32_t *words) {
        return _mm256_dpbusd_epi32(sum, x, _mm256_loadu_si256((const __m256i *)words));
    }
    static __m512i widened(Type x) { return _mm512_castsi256_si512(x); }
};
template <> struct TailVector<4> {
    typedef __m512i Type;
    static Type spread(const uint8_t *x) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)x)); }
    static Type dot(Type sum, Type x, const int32_t *words) {
        return _mm512_dpbusd_epi32(sum, x, _mm512_loadu_si512(words));
    }
    static __m512i widened(Type x) { return x; }
};

// Of MR rows.
template <int MR, int CHANNELS> struct SomeTail {
    typedef TailVector<CHANNELS> V;
    typename V::Type sum[MR];

    void clear() {
        for (int m = 0; m < MR; ++m) sum[m] = typename V::Type{};
    }

    // Adds one tap of source rows `x`. Returns where the weights of the next tap begin.
    __attribute__((always_inline)) const int32_t *add(const uint8_t *const *x, int groups, const int32_t *words) {
        int c = 0;
        do {
#pragma GCC unroll 16
            for (int m = 0; m < MR; ++m) sum[m] = V::dot(sum[m], V::spread(x[m] + c), words);
            words += 4 * CHANNELS;
        } while ((c += 16) < 4 * groups);
        return words;
    }

    // Eight sums of each row, zeros after the last channel.
    __attribute__((always_inline)) void finish(HalfIntVector *halves) const {
        const __m512i index = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 4
        for (int m = 0; m < MR; m += 4) {
            __m512i row[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) row[k] = V::widened(sum[m + k < MR ? m + k : MR - 1]);
            // Transposes the 4x4 lanes of each quarter while it adds them.
            const __m512i one = _mm512_add_epi32(_mm512_unpacklo_epi32(row[0], row[1]), _mm512_unpackhi_epi32(row[0], row[1]));
            const __m512i two = _mm512_add_epi32(_mm512_unpacklo_epi32(row[2], row[3]), _mm512_unpackhi_epi32(row[2], row[3]));
            const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(one, two), _mm512_unpackhi_epi64(one, two));
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                if (m + k >= MR) break;
                const __m512i order = _mm512_add_epi32(index, _mm512_set1_epi32(k));
                const __m512i eight = _mm512_maskz_permutexvar_epi32((1 << CHANNELS) - 1, order, all);
                halves[m + k] = (HalfIntVector)_mm512_castsi512_si256(eight);
            }
        }
    }
};
template <int MR> struct Tail<MR, 2> : SomeTail<MR, 2> {};
template <int MR> struct Tail<MR, 4> : SomeTail<MR, 4> {};
