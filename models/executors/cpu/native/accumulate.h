// Accumulation in float32: products of source rows and packed weights, summed in registers. Included by kernels.h, in
// its namespace. For eight bits see convolution_u8.h.

// Rows of a source matrix.
struct Source {
    const uint8_t *data; // row 0; row -1 is zeros
    ptrdiff_t row_bytes; // from one row to the next
};

// sum[m][n] = the products of MR rows and one panel of NV vectors of output channels.
// `rows`: (taps, MR) numbers of source rows. `weights`: (taps, in_channels, NV * LANES) floats.
// MR * NV sums and NV weights fit into the registers of the instruction set.
template <int MR, int NV>
inline void accumulate(const Source &source, const int32_t *rows, int taps, int in_channels, const float *weights,
                       Vector (&sum)[MR][NV]) {
    for (int m = 0; m < MR; ++m)
        for (int n = 0; n < NV; ++n) sum[m][n] = Vector{};
    for (int t = 0; t < taps; ++t) {
        const float *x[MR];
        for (int m = 0; m < MR; ++m) x[m] = (const float *)(source.data + rows[t * MR + m] * source.row_bytes);
        for (int c = 0; c < in_channels; ++c, weights += NV * LANES) {
            Vector w[NV];
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) w[n] = load(weights + n * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < MR; ++m) {
                Vector a = splat(x[m][c]);
#pragma GCC unroll 4
                for (int n = 0; n < NV; ++n) sum[m][n] += a * w[n];
            }
        }
    }
}

// How output channels are cut into panels of at most PANEL_VECTORS vectors, as even as possible. Weights are packed as
// [panel][tap][input channel][output channel of the panel]. The panels fill a row to its end: a later op may multiply
// what lies there by 0, so it must be a number.
struct Panels {
    int vectors, count;

    explicit Panels(int channels)
        : vectors((padded(channels) + LANES - 1) / LANES), count((vectors + PANEL_VECTORS - 1) / PANEL_VECTORS) {}
    int begin(int panel) const { return vectors * panel / count; } // in vectors
    int width(int panel) const { return begin(panel + 1) - begin(panel); }
};
