// The image as the first convolution reads it.
#include "thread_pool.h"
#include <assert.h>
#include <stddef.h>
#include <algorithm>

#pragma GCC visibility push(default)
extern "C" {

// Writes the lines [first_line, last_line) of `out`, (.., columns): the image from line 1 and column 3 on, each value
// times scale plus shift, and zeros around it.
// `pixels`: (height, values), values = 3 * width: the colours of a pixel are adjacent. `scale`, `shift`: (values,).
void normalise(ThreadPool *pool, const uint8_t *pixels, int32_t height, int32_t values, const float *scale,
               const float *shift, float *out, int32_t columns, int32_t first_line, int32_t last_line) {
    constexpr int BEFORE = 3;
    assert(BEFORE + values <= columns);
    pool->parallel_for(last_line - first_line, [&](int line) {
        const int y = first_line + line - 1, filled = 0 <= y && y < height ? values : 0;
        const uint8_t *from = pixels + (ptrdiff_t)y * values;
        float *to = out + (ptrdiff_t)(y + 1) * columns;
        std::fill_n(to, BEFORE, 0.0f);
        to += BEFORE;
        for (int x = 0; x < filled; ++x) to[x] = from[x] * scale[x] + shift[x];
        std::fill(to + filled, to + columns - BEFORE, 0.0f);
    });
}

}
