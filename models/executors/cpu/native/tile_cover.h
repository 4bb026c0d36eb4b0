// Covers the active positions of a level with Winograd tiles and single rows at the least cost. Included by geometry.cpp
// alone.
#pragma once
#include "slice.h"
#include "structures.h"
#include <math.h>
#include <stddef.h>
#include <algorithm>
#include <utility>
#include <vector>

namespace {

// Tiles and single rows that together hold every active position exactly once.
struct Cover {
    std::vector<uint16_t> tiles_4x4, tiles_2x2; // (tiles, 2): y, x of the upper left position
    std::vector<int32_t> singles;               // rows
    float cost = 0;
};

// Finds the cheapest cover among those whose tiles begin at these lines: the map is cut into bands as high as the largest
// tile, and 2x2 tiles stand in the upper or lower half of a band. Further attempts do without a tile size that the best
// cover uses too rarely to repay loading its weights.
class CoverSearch {
  public:
    Cover best;

    // `map`: the level's, already filled. `active`: bytes (height, width).
    void begin(const int32_t *map, const Level &level, const uint8_t *active, const TileCosts &costs) {
        map_ = map;
        level_ = &level;
        active_ = active;
        rest_.resize(level.width + 4);
        width_at_.resize(level.width);
        for (auto &half : halves_) half.resize(level.width + 1);
        begin_attempt(costs);
    }

    // Goes on until `best` is found or the slice is over; returns whether it is found.
    bool search(const Slice &slice) {
        while (attempt_ < ATTEMPTS) {
            for (int end = y_ + 1 + 8192 / level_->width; y_ < std::min(end, level_->height);) cover_band();
            if (y_ >= level_->height) end_attempt();
            if (slice.over()) break;
        }
        return attempt_ == ATTEMPTS;
    }

  private:
    enum { ALL_SIZES, WITHOUT_4X4, WITHOUT_2X2, ATTEMPTS };

    void begin_attempt(const TileCosts &costs) {
        costs_ = costs;
        found_ = {};
        y_ = 0;
    }

    // Keeps the cover of an attempt if it is the best one, and begins the next attempt that may find a better one.
    void end_attempt() {
        constexpr size_t FEW = 2 * 64; // two coordinates for each of 64 tiles; more tiles always repay
        found_.cost += (found_.tiles_4x4.empty() ? 0 : costs_.first_tile_4x4) +
                       (found_.tiles_2x2.empty() ? 0 : costs_.first_tile_2x2);
        if (attempt_ == ALL_SIZES || found_.cost < best.cost) {
            best = std::move(found_);
            best_costs_ = costs_;
        }
        while (++attempt_ < ATTEMPTS) {
            const size_t coordinates = (attempt_ == WITHOUT_4X4 ? best.tiles_4x4 : best.tiles_2x2).size();
            if (!coordinates || coordinates > FEW) continue;
            TileCosts without = best_costs_;
            (attempt_ == WITHOUT_4X4 ? without.tile_4x4 : without.tile_2x2) = INFINITY;
            begin_attempt(without);
            return;
        }
    }

    // Dynamic programming from right to left finds `rest_[x]`, the least cost of everything from column x on, and
    // `width_at_[x]`, how many columns its first piece takes: 1 for singles, 4 for a 4x4 tile, and 2 for two columns of
    // which each half of the band is either a 2x2 tile or singles.
    void cover_band() {
        const TileCosts costs = costs_;
        const int height = level_->height, width = level_->width, band = costs.tile_4x4 < INFINITY ? 4 : 2, y = y_;
        const uint8_t *const active = active_;
        float *const rest = rest_.data();
        uint8_t *const width_at = width_at_.data();
        const int middle = std::min(y + 2, height), end = std::min(y + band, height);
        int *const halves[2] = {halves_[0].data(), halves_[1].data()};
        for (int half = 0; half < 2; ++half) {
            std::fill_n(halves[half], width + 1, 0);
            for (int other = half ? middle : y; other < (half ? end : middle); ++other)
                for (int x = 0; x < width; ++x) halves[half][x] += active[(size_t)other * width + x];
        }
        const auto count = [&](int half, int x) { return halves[half][x] + halves[half][x + 1]; };
        for (int x = width - 1; x >= 0; --x) {
            if (halves[0][x] + halves[1][x] == 0) { // a tile that begins at the next column covers as much as one from here
                rest[x] = rest[x + 1];
                width_at[x] = 1;
                continue;
            }
            const float one = rest[x + 1] + halves[0][x] + halves[1][x];
            const float two = rest[x + 2] + std::min<float>(costs.tile_2x2, count(0, x)) +
                              std::min<float>(costs.tile_2x2, count(1, x));
            const float four = rest[x + 4] + costs.tile_4x4;
            rest[x] = std::min({one, two, four});
            width_at[x] = rest[x] == one ? 1 : rest[x] == two ? 2 : 4;
        }
        found_.cost += rest[0];
        for (int x = 0; x < width; x += width_at[x]) {
            if (rest[x] == rest[x + width_at[x]]) continue; // nothing to cover
            if (width_at[x] == 4) {
                found_.tiles_4x4.insert(found_.tiles_4x4.end(), {(uint16_t)y, (uint16_t)x});
                continue;
            }
            for (int half = 0; half < 2; ++half) {
                if (width_at[x] == 2 && count(half, x) > costs.tile_2x2) {
                    found_.tiles_2x2.insert(found_.tiles_2x2.end(), {(uint16_t)(half ? middle : y), (uint16_t)x});
                    continue;
                }
                for (int other = half ? middle : y; other < (half ? end : middle); ++other)
                    for (int column = x; column < std::min(x + width_at[x], width); ++column)
                        if (active[(size_t)other * width + column])
                            found_.singles.push_back(map_[(size_t)(other + 1) * level_->map_pitch + column + 1]);
            }
        }
        y_ += band;
    }

    const int32_t *map_ = nullptr;
    const Level *level_ = nullptr;
    const uint8_t *active_ = nullptr;
    int attempt_ = ALL_SIZES, y_ = 0;
    TileCosts costs_ = {}, best_costs_ = {};
    Cover found_;
    std::vector<int> halves_[2]; // active positions of each column in the upper and in the lower half of the band
    std::vector<float> rest_;    // (width + 4,); the last four are always 0
    std::vector<uint8_t> width_at_;
};

} // namespace
