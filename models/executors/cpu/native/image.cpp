// The image as the first convolution reads it.
#include "pool.h"
#include <stddef.h>

#pragma GCC visibility push(default)
extern "C" {

// `pixels`: (height, values), the colours of a line's pixels side by side. `scale`, `shift`: (values,). Writes pixel *
// scale + shift, and 0 where the image ends: `lines`: (rows, columns), `pitch` floats apart.
void normalise(Pool *pool, const uint8_t *pixels, int32_t height, int32_t values, const float *scale, const float *shift,
               float *lines, int32_t rows, int32_t columns, int32_t pitch) {
    pool->each(rows, [&](int y) {
        const uint8_t *from = pixels + (ptrdiff_t)y * values;
        float *to = lines + (ptrdiff_t)y * pitch;
        const int filled = y < height ? values : 0;
        for (int x = 0; x < filled; ++x) to[x] = from[x] * scale[x] + shift[x];
        for (int x = filled; x < columns; ++x) to[x] = 0;
    });
}

}
