// Covers the active positions of a level with Winograd tiles and single rows at the least cost. Included by geometry.cpp
// alone.
#pragma once
#include "structures.h"
#include <math.h>
#include <algorithm>
#include <vector>

namespace {

// Tiles and single rows that together hold every active position exactly once.
struct Cover {
    std::vector<uint16_t> tiles_4x4, tiles_2x2; // (tiles, 2): y, x of the upper left position
    std::vector<int32_t> singles;               // rows
    float cost = 0;
};

// The cheapest cover of `active`, bytes (height, width), among those whose tiles begin at these lines: the map is cut
// into bands as high as the largest tile, and 2x2 tiles stand in the upper or lower half of a band.
//
// In each band, dynamic programming from right to left finds `rest[x]`, the least cost of everything from column x on,
// and `width_at[x]`, how many columns its first piece takes: 1 for singles, 4 for a 4x4 tile, and 2 for two columns of
// which each half of the band is either a 2x2 tile or singles.
// `map`: the level's, already filled.
Cover cover(const std::vector<int32_t> &map, const Level &level, const std::vector<uint8_t> &active,
            const TileCosts &costs) {
    Cover found;
    const int height = level.height, width = level.width, band = costs.tile_4x4 < INFINITY ? 4 : 2;
    std::vector<int> halves[2]; // active positions of each column in the upper and in the lower half of the band
    std::vector<float> rest(width + 4);
    std::vector<uint8_t> width_at(width);
    for (int y = 0; y < height; y += band) {
        const int middle = std::min(y + 2, height), end = std::min(y + band, height);
        for (int half = 0; half < 2; ++half) {
            halves[half].assign(width + 1, 0);
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
        found.cost += rest[0];
        for (int x = 0; x < width; x += width_at[x]) {
            if (rest[x] == rest[x + width_at[x]]) continue; // nothing to cover
            if (width_at[x] == 4) {
                found.tiles_4x4.insert(found.tiles_4x4.end(), {(uint16_t)y, (uint16_t)x});
                continue;
            }
            for (int half = 0; half < 2; ++half) {
                if (width_at[x] == 2 && count(half, x) > costs.tile_2x2) {
                    found.tiles_2x2.insert(found.tiles_2x2.end(), {(uint16_t)(half ? middle : y), (uint16_t)x});
                    continue;
                }
                for (int other = half ? middle : y; other < (half ? end : middle); ++other)
                    for (int column = x; column < std::min(x + width_at[x], width); ++column)
                        if (active[(size_t)other * width + column])
                            found.singles.push_back(map[(size_t)(other + 1) * level.map_pitch + column + 1]);
            }
        }
    }
    found.cost += (found.tiles_4x4.empty() ? 0 : costs.first_tile_4x4) +
                  (found.tiles_2x2.empty() ? 0 : costs.first_tile_2x2);
    return found;
}

// `cover`, but drops a tile size that is used too rarely to repay loading its weights.
Cover cheapest_cover(const std::vector<int32_t> &map, const Level &level, const std::vector<uint8_t> &active,
                     TileCosts costs) {
    constexpr size_t FEW = 2 * 64; // two coordinates for each of 64 tiles; more tiles always repay
    Cover best = cover(map, level, active, costs);
    for (float TileCosts::*size : {&TileCosts::tile_4x4, &TileCosts::tile_2x2}) {
        const size_t coordinates = (size == &TileCosts::tile_4x4 ? best.tiles_4x4 : best.tiles_2x2).size();
        if (!coordinates || coordinates > FEW) continue;
        TileCosts without = costs;
        without.*size = INFINITY;
        Cover other = cover(map, level, active, without);
        if (other.cost >= best.cost) continue;
        best = std::move(other);
        costs = without;
    }
    return best;
}

} // namespace
