// The tables of one level of a geometry: which positions are active, which belong to the halo, which rows they have, and
// which tiles cover them. The work can pause between lines. Included by geometry.cpp alone.
#pragma once
#include "slice.h"
#include "tile_cover.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

namespace {

// Memory whose values are not initialised: to write a large table twice would cost time.
struct Free {
    void operator()(void *memory) const { free(memory); }
};
template <class T>
using Array = std::unique_ptr<T[], Free>;

// Makes room for `size` values, and keeps those that are there.
template <class T>
void resize(Array<T> &array, size_t size) {
    T *const memory = (T *)realloc(array.get(), (size + 1) * sizeof(T));
    if (!memory) throw std::bad_alloc();
    (void)array.release();
    array.reset(memory);
}

// Calls `use` with the index of every byte of a line that is not 0. Lines are mostly empty or mostly full, so that most
// groups of eight bytes need one test.
template <class Use>
inline void for_each_set(const uint8_t *line, int width, const Use &use) {
    int x = 0;
    for (uint64_t eight; x + 8 <= width; x += 8) {
        memcpy(&eight, line + x, sizeof eight);
        if (!eight) continue;
        for (int k = 0; k < 8; ++k)
            if (line[x + k]) use(x + k);
    }
    for (; x < width; ++x)
        if (line[x]) use(x);
}

// A position of the interpolation window, from its centre; `distance` is squared.
struct Offset {
    int dy, dx, distance;
};

// What a geometry is made from; see geometry_begin.
struct Source {
    const uint8_t *mask;
    int32_t height, width, window;
    const int32_t *classes;
    const TileCosts *tile_costs;
    bool full_halo;
    std::vector<Offset> offsets; // of the window
};

// Makes the tables of one level, and owns them. Each pass goes through lines, or rows, in ascending order.
class LevelBuilder {
  public:
    LevelBuilder() = default;
    LevelBuilder(const Source &source, int number, Level &level) : source_(&source), level_(&level), number_(number) {
        height_ = level.height = number < 2 ? source.height << (2 - number) : source.height >> (number - 2);
        width_ = level.width = number < 2 ? source.width << (2 - number) : source.width >> (number - 2);
        level.map_pitch = width_ + (number == 0 ? 2 : MARGIN); // of the padded image, which has no map
        // The image has pixels, not rows; the stem is never masked.
        pass_ = number < 2 && (source.mask || number == 0) ? DONE : ACTIVE;
    }

    // Goes on until the tables are made or the slice is over; returns whether they are made. `finer`: the level before.
    bool build(const LevelBuilder *finer, const Slice &slice) {
        for (; pass_ < COVER; ++pass_, next_ = -1) {
            if (next_ < 0) end_ = begin_pass(), next_ = 0;
            while (next_ < end_) {
                const int first = next_, some = pass_ == NEIGHBOURS ? 256 : 1 + 8192 / width_;
                next_ = std::min(first + some, end_);
                run_pass(first, next_, finer);
                if (slice.over()) return false;
            }
        }
        if (pass_ == COVER && source_->tile_costs) {
            if (next_ < 0) cover_.begin(map_.get(), *level_, active_.get(), source_->tile_costs[number_]), next_ = 0;
            if (!cover_.search(slice)) return false;
        }
        if (pass_ == COVER) {
            point();
            ++pass_;
        }
        return true;
    }

    // Drops what only the building needs.
    void end() {
        active_.reset();
        needed_.reset();
        windows_.reset();
    }

  private:
    enum Pass { ACTIVE, NEEDED, UPSAMPLING, COUNT, ROWS, WINDOWS, NEIGHBOURS, COVER, DONE };

    bool all_needed() const { return !source_->mask || source_->full_halo; }
    int halo_rows() const { return level_->needed_rows - level_->active_rows; }
    int radius() const { return source_->window / 2; }
    ptrdiff_t windows_pitch() const { return width_ + 2 * radius(); }

    // Makes room for what a pass writes. Returns how many lines or rows it goes through.
    int begin_pass() {
        const size_t size = (size_t)height_ * width_;
        switch (pass_) {
        case ACTIVE: resize(active_, size); return height_;
        case NEEDED: resize(needed_, size); return height_;
        case UPSAMPLING: return all_needed() || number_ == 2 ? 0 : 2 * height_;
        case COUNT: level_->active_rows = level_->needed_rows = 0; return height_;
        case ROWS:
            resize(map_, (size_t)(height_ + MARGIN) * level_->map_pitch);
            resize(yx_, (size_t)level_->needed_rows * 2);
            next_row_[0] = level_->active_rows;
            next_row_[1] = 0;
            return height_ + MARGIN;
        case WINDOWS:
            resize(window_begin_, 1 + halo_rows());
            window_begin_[0] = 0;
            resize(read_by_halo_, level_->active_rows);
            memset(read_by_halo_.get(), 0, level_->active_rows);
            if (!halo_rows()) return 0;
            resize(windows_, (height_ + 2 * radius()) * windows_pitch());
            return height_ + 2 * radius();
        case NEIGHBOURS: resize(neighbours_, halo_rows() * source_->offsets.size()); return halo_rows();
        }
        return 0;
    }

    void run_pass(int first, int last, const LevelBuilder *finer) {
        switch (pass_) {
        case ACTIVE: for (int y = first; y < last; ++y) find_active(y); break;
        case NEEDED: for (int y = first; y < last; ++y) find_needed(y); break;
        case UPSAMPLING: for (int y = first; y < last; ++y) add_upsampling_sources(finer, y); break;
        case COUNT: count(first, last); break;
        case ROWS: for (int y = first; y < last; ++y) number_rows(y - 1); break;
        case WINDOWS: for (int y = first; y < last; ++y) fill_windows(y); break;
        case NEIGHBOURS: list_neighbours(first, last); break;
        }
    }

    void find_active(int y) {
        uint8_t *const active = &active_[(size_t)y * width_];
        if (!source_->mask) {
            memset(active, 1, width_);
            return;
        }
        const int width = width_, shift = number_ - 2;
        const uint8_t *const from = source_->mask + ((size_t)y << shift) * source_->width;
        for (int x = 0; x < width; ++x) active[x] = from[x << shift];
    }

    // Needed are the active positions and every position around them that a 3x3 convolution reads.
    void find_needed(int y) {
        uint8_t *const needed = &needed_[(size_t)y * width_];
        if (all_needed()) {
            memset(needed, 1, width_);
            return;
        }
        const int width = width_;
        const uint8_t *const line = &active_[(size_t)y * width];
        const uint8_t *const above = y ? line - width : line, *const below = y + 1 < height_ ? line + width : line;
        near_.resize(width + 2);
        uint8_t *const near = near_.data();
        for (int x = 0; x < width; ++x) near[x + 1] = above[x] | line[x] | below[x];
        for (int x = 0; x < width; ++x) needed[x] = near[x] | near[x + 1] | near[x + 2];
    }

    // Needed are also the positions that bilinear upsampling to line `y` of the finer level reads. Nearest upsampling
    // reads some of them.
    void add_upsampling_sources(const LevelBuilder *finer, int y) {
        const int y0 = std::max((y - 1) >> 1, 0), y1 = std::min(((y - 1) >> 1) + 1, height_ - 1), width = width_;
        uint8_t *const line0 = &needed_[(size_t)y0 * width], *const line1 = &needed_[(size_t)y1 * width];
        for_each_set(&finer->needed_[(size_t)y * 2 * width], 2 * width, [&](int x) {
            const int x0 = std::max((x - 1) >> 1, 0), x1 = std::min(((x - 1) >> 1) + 1, width - 1);
            line0[x0] = line0[x1] = line1[x0] = line1[x1] = 1;
        });
    }

    void count(int first, int last) {
        const size_t begin = (size_t)first * width_, end = (size_t)last * width_;
        level_->active_rows += std::accumulate(&active_[begin], &active_[end], 0);
        level_->needed_rows += std::accumulate(&needed_[begin], &needed_[end], 0);
    }

    // Gives every needed position its row: first the active ones, then the halo, each in order of its positions.
    void number_rows(int y) {
        int32_t *const map = &map_[(size_t)(y + 1) * level_->map_pitch];
        std::fill_n(map, level_->map_pitch, -1);
        if (y < 0 || y >= height_) return;
        const uint8_t *const active = &active_[(size_t)y * width_];
        uint16_t *const yx = yx_.get();
        int next[2] = {next_row_[0], next_row_[1]};
        for_each_set(&needed_[(size_t)y * width_], width_, [&](int x) {
            const int row = map[x + 1] = next[active[x]]++;
            yx[2 * row] = (uint16_t)y;
            yx[2 * row + 1] = (uint16_t)x;
        });
        std::copy_n(next, 2, next_row_);
    }

    // The windows' lines hold the row of each active position, -1 elsewhere and as far around the map as any window
    // reaches.
    void fill_windows(int y) {
        int32_t *const line = &windows_[y * windows_pitch()], *const middle = line + radius();
        const int inside = radius() <= y && y < radius() + height_ ? width_ : 0;
        const int32_t *const map = &map_[(y - radius() + 1) * (ptrdiff_t)level_->map_pitch + 1];
        const uint8_t *const active = &active_[(y - radius()) * (ptrdiff_t)width_];
        std::fill(line, middle, -1);
        for (int x = 0; x < inside; ++x) middle[x] = active[x] ? map[x] : -1;
        std::fill(middle + inside, line + windows_pitch(), -1);
    }

    // Lists the active positions in the window around halo rows, the nearest first.
    void list_neighbours(int first, int last) {
        std::vector<std::pair<ptrdiff_t, int>> steps; // in the windows, and their distance classes
        for (const Offset &o : source_->offsets)
            steps.emplace_back(o.dy * windows_pitch() + o.dx, source_->classes[o.distance]);
        const int32_t *const middle = &windows_[radius() * windows_pitch() + radius()];
        int32_t *const neighbours = neighbours_.get();
        uint8_t *const read_by_halo = read_by_halo_.get();
        size_t count = window_begin_[first];
        for (int halo = first; halo < last; ++halo) {
            const uint16_t *const yx = &yx_[2 * (size_t)(level_->active_rows + halo)];
            const int32_t *const from = middle + yx[0] * windows_pitch() + yx[1];
            const size_t begin = count;
            for (const auto &[step, distance_class] : steps) {
                const int32_t neighbour = from[step];
                // Always written, but counted only if there is a neighbour: without a branch, nothing is mispredicted.
                neighbours[count] = neighbour * 256 | distance_class;
                count += neighbour >= 0;
            }
            for (size_t k = begin; k < count; ++k) read_by_halo[neighbours[k] >> 8] = 1;
            window_begin_[halo + 1] = (int32_t)count;
        }
    }

    // Tells the level where its tables are.
    void point() {
        resize(neighbours_, window_begin_[halo_rows()]);
        const Cover &cover = cover_.best;
        level_->tiles_4x4 = (int32_t)cover.tiles_4x4.size() / 2;
        level_->tiles_2x2 = (int32_t)cover.tiles_2x2.size() / 2;
        level_->singles = (int32_t)cover.singles.size();
        level_->tile_4x4_yx = cover.tiles_4x4.data();
        level_->tile_2x2_yx = cover.tiles_2x2.data();
        level_->single_rows = cover.singles.data();
        level_->map = map_.get();
        level_->yx = yx_.get();
        level_->read_by_halo = read_by_halo_.get();
        level_->window_begin = window_begin_.get();
        level_->neighbours = neighbours_.get();
    }

    const Source *source_ = nullptr;
    Level *level_ = nullptr;
    int number_ = 0, height_ = 0, width_ = 0;
    int pass_ = ACTIVE, next_ = -1, end_ = 0; // the next line or row of the pass, -1 before it begins
    int next_row_[2] = {0, 0};                // of the halo, and active
    Array<uint8_t> active_, needed_;          // (height, width)
    std::vector<uint8_t> near_;               // (width + 2,): whether one of three lines is active; 0 at both ends
    Array<int32_t> windows_;                  // (height + 2 * radius, width + 2 * radius)
    Array<int32_t> map_, window_begin_, neighbours_;
    Array<uint8_t> read_by_halo_;
    Array<uint16_t> yx_;
    CoverSearch cover_;
};

} // namespace
