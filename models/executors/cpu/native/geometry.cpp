// From a mask to its geometry: at every level, which positions are active, which belong to the halo, which rows they
// have, and which tiles cover them.
#include "tile_cover.h"
#include <assert.h>
#include <stddef.h>
#include <string.h>
#include <memory>
#include <new>
#include <vector>

namespace {

using Bytes = std::vector<uint8_t>;

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

// `from`, (height, width), and every position around it that a 3x3 convolution reads.
Bytes dilated(const Bytes &from, int height, int width) {
    Bytes across(from.size()), both(from.size());
    for (int y = 0; y < height; ++y) {
        const uint8_t *in = &from[(size_t)y * width];
        uint8_t *out = &across[(size_t)y * width];
        for (int x = 0; x < width; ++x) out[x] = in[x];
        for (int x = 1; x < width; ++x) out[x] |= in[x - 1];
        for (int x = 0; x + 1 < width; ++x) out[x] |= in[x + 1];
    }
    for (int y = 0; y < height; ++y) {
        uint8_t *out = &both[(size_t)y * width];
        for (int other = std::max(y - 1, 0); other <= std::min(y + 1, height - 1); ++other) {
            const uint8_t *in = &across[(size_t)other * width];
            for (int x = 0; x < width; ++x) out[x] |= in[x];
        }
    }
    return both;
}

// Adds to `needed`, (height, width), the positions that bilinear upsampling to `finer`, (2 * height, 2 * width), reads.
// Nearest upsampling reads some of them.
void add_upsampling_sources(Bytes &needed, const Bytes &finer, int height, int width) {
    for (int y = 0; y < 2 * height; ++y) {
        const int y0 = std::max((y - 1) >> 1, 0), y1 = std::min(((y - 1) >> 1) + 1, height - 1);
        for_each_set(&finer[(size_t)y * 2 * width], 2 * width, [&](int x) {
            const int x0 = std::max((x - 1) >> 1, 0), x1 = std::min(((x - 1) >> 1) + 1, width - 1);
            needed[(size_t)y0 * width + x0] = needed[(size_t)y0 * width + x1] = 1;
            needed[(size_t)y1 * width + x0] = needed[(size_t)y1 * width + x1] = 1;
        });
    }
}

// The memory of one level's tables.
struct Tables {
    std::vector<int32_t> map, window_begin, neighbours;
    std::vector<uint8_t> read_by_halo;
    std::vector<uint16_t> yx;
    Cover cover;
};

// A geometry and the memory that it points into.
struct OwningGeometry : Geometry {
    Tables tables[LEVELS];
};

// A position of the interpolation window, from its centre; `distance` is squared.
struct Offset {
    int dy, dx, distance;
};

// The offsets of the window that have a distance class, the nearest first.
std::vector<Offset> window_offsets(int window, const int32_t *classes) {
    std::vector<Offset> all;
    const int radius = window / 2;
    for (int dy = -radius; dy <= radius; ++dy)
        for (int dx = -radius; dx <= radius; ++dx)
            if ((dy || dx) && classes[dy * dy + dx * dx] >= 0) all.push_back({dy, dx, dy * dy + dx * dx});
    std::stable_sort(all.begin(), all.end(), [](auto &a, auto &b) { return a.distance < b.distance; });
    return all;
}

// Gives every needed position its row: first the active ones, then the halo, each in order of its positions. Sets `map`,
// `yx` and the counts of rows.
void number_rows(Tables &t, Level &level, const Bytes &active, const Bytes &needed) {
    const int height = level.height, width = level.width, pitch = level.map_pitch;
    int actives = 0, all = 0;
    for (size_t i = 0; i < active.size(); ++i) actives += active[i], all += needed[i];
    level.active_rows = actives;
    level.needed_rows = all;
    t.map.assign((size_t)(height + MARGIN) * pitch, -1);
    t.yx.resize((size_t)all * 2);
    int next[2] = {actives, 0};
    for (int y = 0; y < height; ++y) {
        const uint8_t *of_active = &active[(size_t)y * width];
        int32_t *map = &t.map[(size_t)(y + 1) * pitch + 1];
        for_each_set(&needed[(size_t)y * width], width, [&](int x) {
            const int row = map[x] = next[of_active[x]]++;
            t.yx[2 * row] = (uint16_t)y;
            t.yx[2 * row + 1] = (uint16_t)x;
        });
    }
}

// Lists the active positions in the window around each halo row, the nearest first. Sets `window_begin`, `neighbours` and
// `read_by_halo`.
void list_neighbours(Tables &t, const Level &level, const std::vector<Offset> &window, const int32_t *classes, int radius) {
    // The row of each active position, -1 elsewhere and as far around the map as any window reaches.
    const ptrdiff_t pitch = level.width + 2 * radius;
    std::vector<int32_t> rows((level.height + 2 * radius) * pitch, -1);
    const auto at = [&](int row) { return &rows[(t.yx[2 * row] + radius) * pitch + t.yx[2 * row + 1] + radius]; };
    for (int row = 0; row < level.active_rows; ++row) *at(row) = row;
    std::vector<ptrdiff_t> offset;
    for (const Offset &o : window) offset.push_back(o.dy * pitch + o.dx);
    const size_t halo = level.needed_rows - level.active_rows;
    const std::unique_ptr<int32_t[]> found(new int32_t[halo * window.size()]);
    size_t count = 0;
    t.window_begin.assign(1, 0);
    t.window_begin.reserve(1 + halo);
    for (int row = level.active_rows; row < level.needed_rows; ++row) {
        const int32_t *const from = at(row);
        for (size_t k = 0; k < window.size(); ++k) {
            const int32_t neighbour = from[offset[k]];
            // Always written, but counted only if there is a neighbour: without a branch, nothing is mispredicted.
            found[count] = neighbour * 256 | classes[window[k].distance];
            count += neighbour >= 0;
        }
        t.window_begin.push_back((int32_t)count);
    }
    t.neighbours.assign(found.get(), found.get() + count);
    t.read_by_halo.assign(level.active_rows, 0);
    for (const int32_t neighbour : t.neighbours) t.read_by_halo[neighbour >> 8] = 1;
}

std::unique_ptr<OwningGeometry> build(const uint8_t *mask, int32_t height, int32_t width, int32_t window,
                                      const int32_t *classes, const TileCosts *tile_costs, int32_t full_halo) {
    assert(height % 8 == 0 && width % 8 == 0 && window % 2 == 1); // the coarsest level is an eighth
    auto built = std::make_unique<OwningGeometry>();
    const std::vector<Offset> offsets = window_offsets(window, classes);
    Bytes finer; // needed positions of the level before
    for (int l = 0; l < LEVELS; ++l) {
        Level &level = built->level[l];
        Tables &t = built->tables[l];
        level.height = l < 2 ? height << (2 - l) : height >> (l - 2);
        level.width = l < 2 ? width << (2 - l) : width >> (l - 2);
        level.map_pitch = level.width + (l == 0 ? 2 : MARGIN); // of the padded image, which has no map
        const size_t size = (size_t)level.height * level.width;
        if (l < 2 && (mask || l == 0)) continue; // the image has pixels, not rows; the stem is never masked
        Bytes active(size, 1);
        if (mask)
            for (int y = 0; y < level.height; ++y) {
                const uint8_t *from = mask + ((size_t)y << (l - 2)) * width;
                for (int x = 0; x < level.width; ++x) active[(size_t)y * level.width + x] = from[x << (l - 2)];
            }
        Bytes needed = full_halo || !mask ? Bytes(size, 1) : dilated(active, level.height, level.width);
        if (mask && !full_halo && l > 2) add_upsampling_sources(needed, finer, level.height, level.width);
        number_rows(t, level, active, needed);
        list_neighbours(t, level, offsets, classes, window / 2);
        if (tile_costs) t.cover = cheapest_cover(t.map, level, active, tile_costs[l]);
        level.tiles_4x4 = (int32_t)t.cover.tiles_4x4.size() / 2;
        level.tiles_2x2 = (int32_t)t.cover.tiles_2x2.size() / 2;
        level.singles = (int32_t)t.cover.singles.size();
        level.tile_4x4_yx = t.cover.tiles_4x4.data();
        level.tile_2x2_yx = t.cover.tiles_2x2.data();
        level.single_rows = t.cover.singles.data();
        level.map = t.map.data();
        level.yx = t.yx.data();
        level.read_by_halo = t.read_by_halo.data();
        level.window_begin = t.window_begin.data();
        level.neighbours = t.neighbours.data();
        finer.swap(needed);
    }
    return built;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// `mask`: bytes (height, width), multiples of 8, at level 2, 1 where active; null if all is active. `window`: side of the
// interpolation window, odd. `classes`: (2 * (window / 2)^2 + 1,), the distance class of each squared distance, -1 for
// distances too far to matter. `tile_costs`: (LEVELS,), null for neither tiles nor singles. `full_halo`: the halo is every inactive position, for masks that may grow
// again at the next exit. Returns null if there is no memory for the tables.
Geometry *geometry_create(const uint8_t *mask, int32_t height, int32_t width, int32_t window, const int32_t *classes,
                          const TileCosts *tile_costs, int32_t full_halo) {
    try {
        return build(mask, height, width, window, classes, tile_costs, full_halo).release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void geometry_free(Geometry *geometry) { delete static_cast<OwningGeometry *>(geometry); }

}
