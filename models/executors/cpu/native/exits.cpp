// What an exit's scores say: the label map at the image's size, by bilinear upsampling by 4 (pixel areas correspond), and
// the positions that stay active (equation 2 of the paper).
#include "pool.h"
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <algorithm>

namespace {

constexpr int SCALE = 4;

// Four pixels side by side.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadInt __attribute__((vector_size(16)));

constexpr Quad RIGHT = {0.125f, 0.375f, 0.625f, 0.875f}, LEFT = {0.875f, 0.625f, 0.375f, 0.125f};

// Calls `work` for every line of a map, some neighbours by each thread at a time.
template <class Work>
void in_bands(Pool &pool, int lines, const Work &work) {
    constexpr int BAND = 8;
    pool.each((lines + BAND - 1) / BAND, [&](int band) {
        for (int y = BAND * band; y < std::min(BAND * (band + 1), lines); ++y) work(y);
    });
}

// The first of the largest scores at each of `width` positions.
void likeliest(const float *scores, ptrdiff_t stride, int width, int classes, uint8_t *best) {
    for (int x = 0; x < width; ++x, scores += stride) {
        int found = 0;
        for (int c = 1; c < classes; ++c) found = scores[c] > scores[found] ? c : found;
        best[x] = (uint8_t)found;
    }
}

// The labels of the pixels between four positions: `corner`: their scores, two above and two below.
void between(const float *const corner[4], int classes, uint8_t (&labels)[SCALE][SCALE]) {
    Quad best[SCALE];
    QuadInt found[SCALE] = {};
    for (Quad &value : best) value = Quad{} - __builtin_inff();
    for (int c = 0; c < classes; ++c) {
        for (int y = 0; y < SCALE; ++y) {
            const float left = LEFT[y] * corner[0][c] + RIGHT[y] * corner[2][c];
            const float right = LEFT[y] * corner[1][c] + RIGHT[y] * corner[3][c];
            const Quad value = LEFT * left + RIGHT * right;
            const QuadInt larger = value > best[y];
            best[y] = larger ? value : best[y];
            found[y] = larger ? c - QuadInt{} : found[y];
        }
    }
    for (int y = 0; y < SCALE; ++y)
        for (int x = 0; x < SCALE; ++x) labels[y][x] = (uint8_t)found[y][x];
}

// Whether the largest softmax probability, 1 / sum(exp(score - largest)), is at most `threshold`. Mostly the gap between
// the two largest scores tells: the sum lies between 1 + exp(-gap) and 1 + (classes - 1) * exp(-gap).
class Unsure {
  public:
    Unsure(int classes, float threshold)
        : classes_(classes), threshold_(threshold), near_(-logf(1 / threshold - 1)), far_(near_ + logf(classes - 1.0f)) {}

    bool operator()(const float *scores) const {
        float largest = -INFINITY, second = -INFINITY;
        const auto take = [&](float score) { // what is not a number is larger than nothing
            const float lower = score > largest ? largest : score;
            second = lower > second ? lower : second;
            largest = score > largest ? score : largest;
        };
        int c = 0;
        if (classes_ >= 8) {
            Quad largests, seconds = Quad{} - INFINITY;
            memcpy(&largests, scores, sizeof largests);
            for (c = 4; c + 4 <= classes_; c += 4) {
                Quad four;
                memcpy(&four, scores + c, sizeof four);
                const Quad lower = four > largests ? largests : four;
                seconds = lower > seconds ? lower : seconds;
                largests = four > largests ? four : largests;
            }
            for (int k = 0; k < 4; ++k) take(largests[k]), take(seconds[k]);
        }
        for (; c < classes_; ++c) take(scores[c]);
        const float gap = largest - second;
        return gap <= near_ || (!(gap > far_) && exactly(scores, largest));
    }

  private:
    bool exactly(const float *scores, float largest) const {
        constexpr float NOTHING = -18; // exp(-18) is lost beside the 1 of the largest
        const float enough = 1 / threshold_;
        float sum = 0;
        for (int c = 0; c < classes_ && sum < enough; ++c)
            if (scores[c] - largest > NOTHING) sum += expf(scores[c] - largest);
        return 1 / sum <= threshold_;
    }

    int classes_;
    float threshold_, near_, far_; // gaps up to which it is unsure for certain, and from which it is sure
};

} // namespace

enum Criterion { MAX_PROBABILITY, MAX_SCORE };

#pragma GCC visibility push(default)
extern "C" {

// `scores`: (height, width, classes), positions `stride` floats apart, at most 256 classes. `best`: room for (height,
// width). `labels`: (rows, columns), at most SCALE times as large. Whatever its weights, a mean of four scores of which
// one class has the largest has that class, too; only pixels between positions that disagree are worth interpolating.
void labels_of(Pool *pool, const float *scores, int32_t height, int32_t width, int32_t stride, int32_t classes,
               uint8_t *best, uint8_t *labels, int32_t rows, int32_t columns) {
    const ptrdiff_t line = (ptrdiff_t)width * stride;
    in_bands(*pool, height, [&](int y) { likeliest(scores + y * line, stride, width, classes, best + (ptrdiff_t)y * width); });
    // A cell is the pixels between four positions; around the border it is one half or quarter.
    in_bands(*pool, height + 1, [&](int y) {
        const int y0 = std::max(y - 1, 0), y1 = std::min(y, height - 1);
        const uint8_t *above = best + (ptrdiff_t)y0 * width, *below = best + (ptrdiff_t)y1 * width;
        const int top = SCALE * y - SCALE / 2, first_row = std::max(top, 0), last_row = std::min(top + SCALE, rows);
        for (int x = 0; x <= width; ++x) {
            const int x0 = std::max(x - 1, 0), x1 = std::min(x, width - 1);
            const int start = SCALE * x - SCALE / 2, first = std::max(start, 0), last = std::min(start + SCALE, columns);
            if (first >= last) break;
            const uint8_t label = above[x0];
            if (label == above[x1] && label == below[x0] && label == below[x1]) {
                for (int row = first_row; row < last_row; ++row)
                    memset(labels + (ptrdiff_t)row * columns + first, label, last - first);
                continue;
            }
            const float *const upper = scores + y0 * line, *const lower = scores + y1 * line;
            const float *const corner[4] = {upper + x0 * (ptrdiff_t)stride, upper + x1 * (ptrdiff_t)stride,
                                            lower + x0 * (ptrdiff_t)stride, lower + x1 * (ptrdiff_t)stride};
            uint8_t cell[SCALE][SCALE];
            between(corner, classes, cell);
            for (int row = first_row; row < last_row; ++row)
                memcpy(labels + (ptrdiff_t)row * columns + first, &cell[row - top][first - start], last - first);
        }
    });
}

// `scores`: of (height, width) positions, `stride` floats apart. Writes `active` where `computed` (null: everywhere).
void active_at(Pool *pool, const float *scores, int32_t height, int32_t width, int32_t stride, int32_t classes,
               int32_t criterion, float threshold, const uint8_t *computed, uint8_t *active) {
    const Unsure unsure(classes, threshold);
    in_bands(*pool, height, [&](int y) {
        for (ptrdiff_t i = (ptrdiff_t)y * width; i < (y + 1) * (ptrdiff_t)width; ++i) {
            if (computed && !computed[i]) continue;
            const float *of = scores + i * stride;
            active[i] = criterion == MAX_PROBABILITY ? unsure(of) : *std::max_element(of, of + classes) >= threshold;
        }
    });
}

}
