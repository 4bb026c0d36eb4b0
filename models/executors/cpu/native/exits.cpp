// From an exit's scores to its label map at the image's size and to its mask (equation 2 of the paper). The label map is
// the argmax of the scores, upsampled bilinearly by 4 without aligned corners.
#include "thread_pool.h"
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <algorithm>

namespace {

constexpr int SCALE = 4;

// Four adjacent pixels.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadInt __attribute__((vector_size(16)));

// Weights of the position to the right (below) and to the left (above) of four pixels between two positions.
constexpr Quad RIGHT = {0.125f, 0.375f, 0.625f, 0.875f}, LEFT = {0.875f, 0.625f, 0.375f, 0.125f};

// Calls `work` for the lines [first, last) of a map; each thread takes a few adjacent lines at a time.
template <class Work>
void for_each_line(ThreadPool &pool, int first, int last, const Work &work) {
    constexpr int FEW = 8;
    pool.parallel_for((last - first + FEW - 1) / FEW, [&](int few) {
        for (int y = first + FEW * few; y < std::min(first + FEW * (few + 1), last); ++y) work(y);
    });
}

// The scores of up to four adjacent positions, which are `row_pitch` floats apart. The last one stands for those beyond
// `count`.
class FourPositions {
  public:
    FourPositions(const float *scores, ptrdiff_t row_pitch, int count) {
        for (int k = 0; k < 4; ++k) positions_[k] = scores + std::min(k, count - 1) * row_pitch;
    }

    const float *operator[](int k) const { return positions_[k]; }

    // The scores of one class.
    Quad of_class(int c) const { return Quad{positions_[0][c], positions_[1][c], positions_[2][c], positions_[3][c]}; }

  private:
    const float *positions_[4];
};

// The class of the largest score at each of `width` positions, the first one if several are equal. Positions are
// `row_pitch` floats apart.
void argmax(const float *scores, ptrdiff_t row_pitch, int width, int classes, uint8_t *best) {
    for (int x = 0; x < width; x += 4) {
        const int count = std::min(4, width - x);
        const FourPositions four(scores + x * row_pitch, row_pitch, count);
        Quad largest = four.of_class(0);
        QuadInt found = {};
        for (int c = 1; c < classes; ++c) {
            const Quad score = four.of_class(c);
            const QuadInt larger = score > largest;
            largest = larger ? score : largest;
            found = larger ? c - QuadInt{} : found;
        }
        for (int k = 0; k < count; ++k) best[x + k] = (uint8_t)found[k];
    }
}

// Labels of the SCALE x SCALE pixels between four positions. `corner`: their scores, upper left, upper right, lower left,
// lower right.
void label_cell(const float *const corner[4], int classes, uint8_t (&labels)[SCALE][SCALE]) {
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

// Whether the largest softmax probability, 1 / sum(exp(score - largest)), is at most `threshold`. The gap between the two
// largest scores mostly decides: the sum lies between 1 + exp(-gap) and 1 + (classes - 1) * exp(-gap).
class MaxProbabilityAtMost {
  public:
    MaxProbabilityAtMost(int classes, float threshold)
        : classes_(classes), threshold_(threshold), true_up_to_(-logf(1 / threshold - 1)),
          false_beyond_(true_up_to_ + logf(classes - 1.0f)) {}

    // For each of four positions.
    QuadInt operator()(const FourPositions &four) const {
        Quad largest = Quad{} - INFINITY, second = largest;
        for (int c = 0; c < classes_; ++c) {
            const Quad score = four.of_class(c); // comparisons with NaN are false: NaN never becomes the largest
            const Quad lower = score > largest ? largest : score;
            second = lower > second ? lower : second;
            largest = score > largest ? score : largest;
        }
        const Quad gap = largest - second;
        QuadInt holds = gap <= true_up_to_;
        const QuadInt open = ~(holds | (gap > false_beyond_));
        for (int k = 0; k < 4; ++k)
            if (open[k]) holds[k] = by_sum(four[k], largest[k]);
        return holds;
    }

  private:
    bool by_sum(const float *scores, float largest) const {
        constexpr float NEGLIGIBLE = -18; // exp(-18) is lost in rounding beside the 1 of the largest score
        const float enough = 1 / threshold_;
        float sum = 0;
        for (int c = 0; c < classes_ && sum < enough; ++c)
            if (scores[c] - largest > NEGLIGIBLE) sum += expf(scores[c] - largest);
        return 1 / sum <= threshold_;
    }

    int classes_;
    float threshold_;
    float true_up_to_, false_beyond_; // gaps that decide without the sum
};

} // namespace

// Criteria of a mask; CRITERIA in exits.py numbers them.
enum Criterion { MAX_PROBABILITY, MAX_SCORE };

#pragma GCC visibility push(default)
extern "C" {

// Writes the lines of cells [first_line, last_line) of `labels`, (rows, columns), rows <= SCALE * height and
// columns <= SCALE * width. There are height + 1 lines of cells; those before `first_line` must be written already.
// `scores`: (height, width, classes), at most 256 classes; positions are `row_pitch` floats apart. `best`: room for
// (height, width). A cell whose four positions agree takes their label: a mean of scores of which one class is the
// largest everywhere has the same largest class. Only cells whose positions disagree are interpolated.
void label_map(ThreadPool *pool, const float *scores, int32_t height, int32_t width, int32_t row_pitch, int32_t classes,
               uint8_t *best, uint8_t *labels, int32_t rows, int32_t columns, int32_t first_line, int32_t last_line) {
    assert(1 <= classes && classes <= 256 && classes <= row_pitch);
    assert(rows <= SCALE * height && columns <= SCALE * width);
    assert(0 <= first_line && first_line <= last_line && last_line <= height + 1);
    const ptrdiff_t line_pitch = (ptrdiff_t)width * row_pitch;
    for_each_line(*pool, first_line, std::min(last_line, height), [&](int y) {
        argmax(scores + y * line_pitch, row_pitch, width, classes, best + (ptrdiff_t)y * width);
    });
    // A cell is the pixels between four positions; at the border only a half or a quarter of it lies in the image.
    for_each_line(*pool, first_line, last_line, [&](int y) {
        const int y0 = std::max(y - 1, 0), y1 = std::min(y, height - 1);
        const uint8_t *above = best + (ptrdiff_t)y0 * width, *below = best + (ptrdiff_t)y1 * width;
        const int top = SCALE * y - SCALE / 2, first_row = std::max(top, 0), last_row = std::min(top + SCALE, rows);
        for (int x = 0; x <= width; ++x) {
            const int x0 = std::max(x - 1, 0), x1 = std::min(x, width - 1);
            const int start = SCALE * x - SCALE / 2, first = std::max(start, 0), last = std::min(start + SCALE, columns);
            if (first >= last) break;
            const auto write = [&](const auto &row_labels) { // four labels for each row of the cell
                for (int row = first_row; row < last_row; ++row) {
                    uint8_t *const to = labels + (ptrdiff_t)row * columns + first;
                    const uint8_t *const from = row_labels(row - top);
                    if (last - first == SCALE) {
                        memcpy(to, from, SCALE); // of constant size: no call
                    } else {
                        memcpy(to, from + (first - start), last - first);
                    }
                }
            };
            const uint8_t label = above[x0];
            if (label == above[x1] && label == below[x0] && label == below[x1]) {
                const uint8_t same[SCALE] = {label, label, label, label};
                write([&](int) { return same; });
                continue;
            }
            const float *const upper = scores + y0 * line_pitch, *const lower = scores + y1 * line_pitch;
            const float *const corner[4] = {upper + x0 * (ptrdiff_t)row_pitch, upper + x1 * (ptrdiff_t)row_pitch,
                                            lower + x0 * (ptrdiff_t)row_pitch, lower + x1 * (ptrdiff_t)row_pitch};
            uint8_t cell[SCALE][SCALE];
            label_cell(corner, classes, cell);
            write([&](int row) { return cell[row]; });
        }
    });
}

// Writes `mask`, bytes (height, width), 1 where the next stage computes. `active`: bytes (height, width), the mask under
// which the scores were computed, null if all of them were; inactive positions keep the value that `mask` has.
// `scores`: (height, width, classes), positions `row_pitch` floats apart. Active from now on is a position whose largest
// softmax probability is at most `threshold` (MAX_PROBABILITY), or whose largest score is at least `threshold`
// (MAX_SCORE).
void update_mask(ThreadPool *pool, const float *scores, int32_t height, int32_t width, int32_t row_pitch, int32_t classes,
                 int32_t criterion, float threshold, const uint8_t *active, uint8_t *mask) {
    assert(criterion == MAX_SCORE || criterion == MAX_PROBABILITY);
    assert(1 <= classes && classes <= row_pitch);
    const MaxProbabilityAtMost uncertain(classes, threshold);
    for_each_line(*pool, 0, height, [&](int y) {
        const ptrdiff_t line = (ptrdiff_t)y * width;
        for (int x = 0; x < width; x += 4) {
            const int count = std::min(4, width - x);
            const uint8_t *const computed = active ? active + line + x : nullptr;
            if (computed && std::all_of(computed, computed + count, [](uint8_t each) { return !each; })) continue;
            const FourPositions four(scores + (line + x) * row_pitch, row_pitch, count);
            const QuadInt at_most = criterion == MAX_PROBABILITY ? uncertain(four) : QuadInt{};
            for (int k = 0; k < count; ++k) {
                if (computed && !computed[k]) continue;
                mask[line + x + k] = criterion == MAX_PROBABILITY
                                         ? at_most[k] != 0
                                         : *std::max_element(four[k], four[k] + classes) >= threshold;
            }
        }
    });
}

}
