// The image as the first convolution reads it.
#include "thread_pool.h"
#include <assert.h>
#include <stddef.h>

#pragma GCC visibility push(default)
extern "C" {

// out = pixel * scale + shift, and zeros below and to the right of the image.
// `pixels`: (height, values), values = 3 * width: the colours of a pixel are adjacent. `scale`, `shift`: (values,).
// `out`: (rows, columns) with rows >= height and columns >= values; lines are `out_pitch` floats apart.
void normalise(ThreadPool *pool, const uint8_t *pixels, int32_t height, int32_t values, const float *scale,
               const float *shift, float *out, int32_t rows, int32_t columns, int32_t out_pitch) {
    assert(height <= rows && values <= columns && columns <= out_pitch);
    pool->parallel_for(rows, [&](int y) {
        const uint8_t *from = pixels + (ptrdiff_t)y * values;
        float *to = out + (ptrdiff_t)y * out_pitch;
        const int filled = y < height ? values : 0;
        for (int x = 0; x < filled; ++x) to[x] = from[x] * scale[x] + shift[x];
        for (int x = filled; x < columns; ++x) to[x] = 0;
    });
}

}
