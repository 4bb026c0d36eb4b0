// Masked interpolation in one pass, forward or backward, for training (equations 3-6; models/training/fused).
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <new>
#include <vector>

namespace {

// Half of a float: its sign, exponent and first 7 bits.
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
        bits = (uint16_t)((whole + 0x7fff + (whole >> 16 & 1)) >> 16); // to the nearest, ties to even
        return *this;
    }
};

enum Code { ACTIVE = 1, BORDER = 2 }; // bits; border: a position of the other kind lies within the window

} // namespace

// A neighbour that weighs anything: its weight, and the derivative of that by the kernel's scale.
struct Neighbour {
    int32_t dy, dx;
    float weight, slope;
};

struct Rows {
    int32_t height, width, channels;
};

namespace {

template <class T>
double fill(const T *x, const T *y, const uint8_t *codes, const Rows &rows, const Neighbour *neighbours, int count, T *out,
            int64_t first, int64_t last, bool backward) {
    const int channels = rows.channels, gathers = backward ? ACTIVE | BORDER : BORDER, seen = backward ? 0 : ACTIVE;
    const size_t bytes = channels * sizeof(T);
    std::vector<float> sums(2 * (size_t)channels);
    float *sum = sums.data(), *slope = sum + channels;
    double scale_gradient = 0;
    for (int64_t line = first; line < last; ++line) {
        const int row = (int)(line % rows.height);
        for (int column = 0; column < rows.width; ++column) {
            const ptrdiff_t at = line * rows.width + column;
            T *to = out + at * channels;
            if (codes[at] != gathers) {
                if (codes[at] & ACTIVE) memcpy(to, x + at * channels, bytes);
                else memset((void *)to, 0, bytes);
                continue;
            }
            for (int c = 0; c < channels; ++c) sum[c] = backward ? (float)x[at * channels + c] : 0, slope[c] = 0;
            for (int k = 0; k < count; ++k) {
                const Neighbour &n = neighbours[k];
                if (row + n.dy < 0 || row + n.dy >= rows.height || column + n.dx < 0 || column + n.dx >= rows.width) continue;
                const ptrdiff_t other = at + (ptrdiff_t)n.dy * rows.width + n.dx;
                if ((codes[other] & ACTIVE) != seen) continue;
                const T *from = x + other * channels;
                for (int c = 0; c < channels; ++c) sum[c] += n.weight * from[c];
                if (backward)
                    for (int c = 0; c < channels; ++c) slope[c] += n.slope * from[c];
            }
            for (int c = 0; c < channels; ++c) to[c] = sum[c];
            if (backward)
                for (int c = 0; c < channels; ++c) scale_gradient += (float)y[at * channels + c] * slope[c];
        }
    }
    return scale_gradient;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// Lines [first, last) of `x` (images, height, width, channels), float32 or bfloat16; `codes`: a byte a position.
// Forward: `x` where active, and the weighted sum of the active neighbours elsewhere. Backward: `x` is the gradient of
// that and `y` what was filled; active positions add what their inactive neighbours took from them. `scale_gradient`:
// the part of these lines. Returns 0, or 1 without memory.
int32_t fill_lines(int32_t bfloat16, const void *x, const void *y, const uint8_t *codes, const Rows *rows,
                   const Neighbour *neighbours, int32_t count, void *out, int64_t first, int64_t last, int32_t backward,
                   double *scale_gradient) {
    try {
        *scale_gradient = bfloat16 ? fill((const BFloat16 *)x, (const BFloat16 *)y, codes, *rows, neighbours, count,
                                          (BFloat16 *)out, first, last, backward)
                                   : fill((const float *)x, (const float *)y, codes, *rows, neighbours, count, (float *)out,
                                          first, last, backward);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

}
