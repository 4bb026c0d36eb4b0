// From a mask to geometries: which positions of every feature size are computed, which are interpolated because
// something active reads them, and which rows they have.
#include "native.h"
#include <math.h>
#include <stddef.h>
#include <string.h>
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

namespace {

using Bytes = std::vector<uint8_t>;

// Calls `use` with the index of every byte of a line that is set; lines are mostly empty, or mostly full.
template <class Use>
inline void each(const uint8_t *line, int width, const Use &use) {
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

// Positions around `from` that a 3x3 convolution reads.
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

// Positions of half the size that bilinear upsampling to `fine` reads; a superset of those of nearest upsampling.
void add_sources(Bytes &needed, const Bytes &fine, int height, int width) {
    for (int y = 0; y < 2 * height; ++y) {
        const int y0 = std::max((y - 1) >> 1, 0), y1 = std::min(((y - 1) >> 1) + 1, height - 1);
        each(&fine[(size_t)y * 2 * width], 2 * width, [&](int x) {
            const int x0 = std::max((x - 1) >> 1, 0), x1 = std::min(((x - 1) >> 1) + 1, width - 1);
            needed[(size_t)y0 * width + x0] = needed[(size_t)y0 * width + x1] = 1;
            needed[(size_t)y1 * width + x0] = needed[(size_t)y1 * width + x1] = 1;
        });
    }
}

// Tiles and single rows that together hold every active position once.
struct Cover {
    std::vector<uint16_t> fours, twos;
    std::vector<int32_t> singles;
    float price = 0;
};

struct Tables {
    std::vector<int32_t> map, window, neighbour;
    std::vector<uint8_t> kept;
    std::vector<uint16_t> yx;
    Cover cover;
};

struct Built : Geometry {
    Tables tables[LEVELS];
};

struct Offset {
    int dy, dx, distance;
};

// The window's offsets that weigh anything, nearest first.
std::vector<Offset> offsets(int window, const int32_t *classes) {
    std::vector<Offset> all;
    const int radius = window / 2;
    for (int dy = -radius; dy <= radius; ++dy)
        for (int dx = -radius; dx <= radius; ++dx)
            if ((dy || dx) && classes[dy * dy + dx * dx] >= 0) all.push_back({dy, dx, dy * dy + dx * dx});
    std::stable_sort(all.begin(), all.end(), [](auto &a, auto &b) { return a.distance < b.distance; });
    return all;
}

void number(Tables &t, Level &level, const Bytes &active, const Bytes &needed) {
    const int height = level.height, width = level.width, pitch = level.pitch;
    int actives = 0, all = 0;
    for (size_t i = 0; i < active.size(); ++i) actives += active[i], all += needed[i];
    level.active = actives;
    level.needed = all;
    t.map.assign((size_t)(height + MARGIN) * pitch, -1);
    t.yx.resize((size_t)all * 2);
    int next[2] = {actives, 0};
    for (int y = 0; y < height; ++y) {
        const uint8_t *of_active = &active[(size_t)y * width];
        int32_t *map = &t.map[(size_t)(y + 1) * pitch + 1];
        each(&needed[(size_t)y * width], width, [&](int x) {
            const int row = map[x] = next[of_active[x]]++;
            t.yx[2 * row] = (uint16_t)y;
            t.yx[2 * row + 1] = (uint16_t)x;
        });
    }
}

// The cheapest cover. Rows are taken in bands as high as the largest tile; along a band, the cheapest way to cover what
// is right of each column is found from right to left. Two columns are cut into halves of the band, each either a tile
// or singles.
Cover cover(const Tables &t, const Level &level, const Bytes &active, const Prices &price) {
    Cover found;
    const int height = level.height, width = level.width, band = price.four < INFINITY ? 4 : 2;
    std::vector<int> halves[2];
    std::vector<float> right(width + 4);
    std::vector<uint8_t> step(width);
    for (int y = 0; y < height; y += band) {
        const int middle = std::min(y + 2, height), end = std::min(y + band, height);
        for (int half = 0; half < 2; ++half) {
            halves[half].assign(width + 1, 0);
            for (int other = half ? middle : y; other < (half ? end : middle); ++other)
                for (int x = 0; x < width; ++x) halves[half][x] += active[(size_t)other * width + x];
        }
        const auto count = [&](int half, int x) { return halves[half][x] + halves[half][x + 1]; };
        for (int x = width - 1; x >= 0; --x) {
            if (halves[0][x] + halves[1][x] == 0) { // a tile from here on covers no more than one from the next column on
                right[x] = right[x + 1];
                step[x] = 1;
                continue;
            }
            const float single = right[x + 1] + halves[0][x] + halves[1][x];
            const float two = right[x + 2] + std::min<float>(price.two, count(0, x)) + std::min<float>(price.two, count(1, x));
            const float four = right[x + 4] + price.four;
            right[x] = std::min({single, two, four});
            step[x] = right[x] == single ? 1 : right[x] == two ? 2 : 4;
        }
        found.price += right[0];
        for (int x = 0; x < width; x += step[x]) {
            if (right[x] == right[x + step[x]]) continue; // nothing to cover
            if (step[x] == 4) {
                found.fours.insert(found.fours.end(), {(uint16_t)y, (uint16_t)x});
                continue;
            }
            for (int half = 0; half < 2; ++half) {
                if (step[x] == 2 && count(half, x) > price.two) {
                    found.twos.insert(found.twos.end(), {(uint16_t)(half ? middle : y), (uint16_t)x});
                    continue;
                }
                for (int other = half ? middle : y; other < (half ? end : middle); ++other)
                    for (int column = x; column < std::min(x + step[x], width); ++column)
                        if (active[(size_t)other * width + column])
                            found.singles.push_back(t.map[(size_t)(other + 1) * level.pitch + column + 1]);
            }
        }
    }
    found.price += (found.fours.empty() ? 0 : price.first_four) + (found.twos.empty() ? 0 : price.first_two);
    return found;
}

// `cover`, without a kind of tile so few of which are worth having that fetching its weights is not.
Cover cheapest_cover(const Tables &t, const Level &level, const Bytes &active, Prices price) {
    constexpr size_t FEW = 2 * 64;
    Cover best = cover(t, level, active, price);
    for (float Prices::*kind : {&Prices::four, &Prices::two}) {
        const size_t tiles = (kind == &Prices::four ? best.fours : best.twos).size();
        if (!tiles || tiles > FEW) continue;
        Prices without = price;
        without.*kind = INFINITY;
        Cover other = cover(t, level, active, without);
        if (other.price >= best.price) continue;
        best = std::move(other);
        price = without;
    }
    return best;
}

// For each halo row its active neighbours, the nearest first.
void link(Tables &t, const Level &level, const std::vector<Offset> &around, const int32_t *classes, int radius) {
    // The row of each active position, -1 elsewhere and as far around the map as any window reaches.
    const ptrdiff_t pitch = level.width + 2 * radius;
    std::vector<int32_t> rows((level.height + 2 * radius) * pitch, -1);
    const auto at = [&](int row) { return &rows[(t.yx[2 * row] + radius) * pitch + t.yx[2 * row + 1] + radius]; };
    for (int row = 0; row < level.active; ++row) *at(row) = row;
    std::vector<ptrdiff_t> step;
    for (const Offset &o : around) step.push_back(o.dy * pitch + o.dx);
    const size_t halo = level.needed - level.active;
    const std::unique_ptr<int32_t[]> found(new int32_t[halo * around.size()]);
    size_t count = 0;
    t.window.assign(1, 0);
    t.window.reserve(1 + halo);
    for (int row = level.active; row < level.needed; ++row) {
        const int32_t *const from = at(row);
        for (size_t k = 0; k < around.size(); ++k) {
            const int32_t neighbour = from[step[k]];
            found[count] = neighbour * 256 | classes[around[k].distance]; // stays only if there is one: no branch to mispredict
            count += neighbour >= 0;
        }
        t.window.push_back((int32_t)count);
    }
    t.neighbour.assign(found.get(), found.get() + count);
    t.kept.assign(level.active, 0);
    for (const int32_t neighbour : t.neighbour) t.kept[neighbour >> 8] = 1;
}

std::unique_ptr<Built> build(const uint8_t *mask, int32_t height, int32_t width, int32_t window, const int32_t *classes,
                             const Prices *prices, int32_t everywhere) {
    auto built = std::make_unique<Built>();
    const std::vector<Offset> around = offsets(window, classes);
    Bytes finer;
    for (int l = 0; l < LEVELS; ++l) {
        Level &level = built->level[l];
        Tables &t = built->tables[l];
        level.height = l < 2 ? height << (2 - l) : height >> (l - 2);
        level.width = l < 2 ? width << (2 - l) : width >> (l - 2);
        level.pitch = level.width + (l == 0 ? 2 : MARGIN); // the image is padded by 1
        const size_t size = (size_t)level.height * level.width;
        if (l < 2 && (mask || l == 0)) continue; // the image has pixels only, and the stem is never masked
        Bytes active(size, 1);
        if (mask)
            for (int y = 0; y < level.height; ++y) {
                const uint8_t *from = mask + ((size_t)y << (l - 2)) * width;
                for (int x = 0; x < level.width; ++x) active[(size_t)y * level.width + x] = from[x << (l - 2)];
            }
        Bytes needed = everywhere || !mask ? Bytes(size, 1) : dilated(active, level.height, level.width);
        if (mask && !everywhere && l > 2) add_sources(needed, finer, level.height, level.width);
        number(t, level, active, needed);
        link(t, level, around, classes, window / 2);
        t.cover = cheapest_cover(t, level, active, prices[l]);
        level.tiles_4 = (int32_t)t.cover.fours.size() / 2;
        level.tiles_2 = (int32_t)t.cover.twos.size() / 2;
        level.singles = (int32_t)t.cover.singles.size();
        level.tile_4 = t.cover.fours.data();
        level.tile_2 = t.cover.twos.data();
        level.single = t.cover.singles.data();
        level.map = t.map.data();
        level.yx = t.yx.data();
        level.kept = t.kept.data();
        level.window = t.window.data();
        level.neighbour = t.neighbour.data();
        finer.swap(needed);
    }
    return built;
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// `mask`: (height, width) bytes at level 2, null for all active. `classes`: of each squared distance in the window, -1
// for those too far to weigh anything. `prices`: of every level. `everywhere`: interpolate every inactive position,
// for masks that may grow again at the next exit. Null without memory for it.
Geometry *geometry_create(const uint8_t *mask, int32_t height, int32_t width, int32_t window, const int32_t *classes,
                          const Prices *prices, int32_t everywhere) {
    try {
        return build(mask, height, width, window, classes, prices, everywhere).release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

void geometry_free(Geometry *geometry) { delete static_cast<Built *>(geometry); }

}
