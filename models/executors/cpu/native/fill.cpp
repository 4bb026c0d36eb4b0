// Masked interpolation fused into one pass over memory, forward or backward, for training (equations 3-6 of the paper).
// models/training/fused calls it.
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <new>
#include <vector>

namespace {

// The upper half of a float: sign, exponent and 7 bits of the mantissa.
struct BFloat16 {
    uint16_t bits;

    operator float() const {
        const uint32_t whole = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &whole, sizeof value);
        return value;
    }
    BFloat16 &operator=(float value) {
        uint32_t whole;
        memcpy(&whole, &value, sizeof whole);
        bits = (uint16_t)((whole + 0x7fff + (whole >> 16 & 1)) >> 16); // rounds to nearest, ties to even
        return *this;
    }
};

// Bits of a position's code. BORDER: the window around it holds a position of the other kind, active or inactive.
enum Code { ACTIVE = 1, BORDER = 2 };

} // namespace

// A neighbour in the window: its offset, its weight, and the derivative of the weight by the kernel's scale.
struct StencilTap {
    int32_t dy, dx;
    float weight, derivative;
};

// The shape of one image's features, (height, width, channels).
struct FeatureShape {
    int32_t height, width, channels;
};

namespace {

// See fill_lines. Returns the gradient of the scale.
template <class T>
double fill(const T *x, const T *y, const uint8_t *codes, const FeatureShape &shape, const StencilTap *taps,
            int tap_count, T *out, int64_t first, int64_t last, bool backward) {
    // Forward, inactive positions gather from active ones; the kernel is symmetric, so that backward, active positions
    // gather from inactive ones.
    const int channels = shape.channels;
    const int gathers = backward ? ACTIVE | BORDER : BORDER, from_kind = backward ? 0 : ACTIVE;
    assert(0 <= first && first <= last && channels > 0);
    const size_t bytes = channels * sizeof(T);
    std::vector<float> sums(2 * (size_t)channels);
    float *sum = sums.data(), *derivative = sum + channels;
    double scale_gradient = 0;
    for (int64_t line = first; line < last; ++line) {
        const int row = (int)(line % shape.height);
        for (int column = 0; column < shape.width; ++column) {
            const ptrdiff_t at = line * shape.width + column;
            T *to = out + at * channels;
            if (codes[at] != gathers) {
                if (codes[at] & ACTIVE) memcpy(to, x + at * channels, bytes);
                else memset((void *)to, 0, bytes);
                continue;
            }
            for (int c = 0; c < channels; ++c) sum[c] = backward ? (float)x[at * channels + c] : 0, derivative[c] = 0;
            for (int k = 0; k < tap_count; ++k) {
                const StencilTap &tap = taps[k];
                if (row + tap.dy < 0 || row + tap.dy >= shape.height) continue;
                if (column + tap.dx < 0 || column + tap.dx >= shape.width) continue;
                const ptrdiff_t other = at + (ptrdiff_t)tap.dy * shape.width + tap.dx;
                if ((codes[other] & ACTIVE) != from_kind) continue;
                const T *from = x + other * channels;
                for (int c = 0; c < channels; ++c) sum[c] += tap.weight * from[c];
                if (backward)
                    for (int c = 0; c < channels; ++c) derivative[c] += tap.derivative * from[c];
            }
            for (int c = 0; c < channels; ++c) to[c] = sum[c];
            if (backward)
                for (int c = 0; c < channels; ++c) scale_gradient += (float)y[at * channels + c] * derivative[c];
        }
    }
    return scale_gradient;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// Lines [first, last) of features (images, height, width, channels), float32 or bfloat16; lines of all images are
// numbered in a row. `codes`: (images, height, width), see Code. `taps`: (tap_count,), without the window's centre.
// Forward: out = x at active positions, elsewhere the weighted sum of the active neighbours; `y` is not read, and
// *scale_gradient = 0.
// Backward: `x` is the gradient of the forward result and `y` the forward input; out = the gradient of `y`: 0 at
// inactive positions, and at active ones their own plus what they gave to inactive neighbours. *scale_gradient = these
// lines' part of the gradient of the kernel's scale.
// Returns 0, or 1 if there is no memory for two lines of channels.
int32_t fill_lines(int32_t bfloat16, const void *x, const void *y, const uint8_t *codes, const FeatureShape *shape,
                   const StencilTap *taps, int32_t tap_count, void *out, int64_t first, int64_t last, int32_t backward,
                   double *scale_gradient) {
    try {
        *scale_gradient = bfloat16 ? fill((const BFloat16 *)x, (const BFloat16 *)y, codes, *shape, taps, tap_count,
                                          (BFloat16 *)out, first, last, backward)
                                   : fill((const float *)x, (const float *)y, codes, *shape, taps, tap_count,
                                          (float *)out, first, last, backward);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}
