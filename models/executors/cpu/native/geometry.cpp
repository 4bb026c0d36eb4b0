// From a mask to its geometry, level by level.
#include "level_builder.h"
#include <assert.h>

namespace {

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

// A geometry and the memory that it points into.
class OwningGeometry : public Geometry {
  public:
    explicit OwningGeometry(const Source &source) : Geometry(), source_(source) {
        restart();
    }

    void restart() {
        built_ = 0;
        for (int l = 0; l < LEVELS; ++l) builders_[l] = LevelBuilder(source_, l, level[l]);
    }

    bool build(const Slice &slice) {
        for (; built_ < LEVELS; ++built_)
            if (!builders_[built_].build(built_ ? &builders_[built_ - 1] : nullptr, slice)) return false;
        for (LevelBuilder &builder : builders_) builder.end();
        return true;
    }

  private:
    const Source source_;
    LevelBuilder builders_[LEVELS];
    int built_; // levels
};

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// A geometry whose tables are still to be built. The arguments must live until then.
// `mask`: bytes (height, width), multiples of 8, at level 2, 1 where active; null if all is active. `window`: side of the
// interpolation window, odd. `classes`: (2 * (window / 2)^2 + 1,), the distance class of each squared distance, -1 for
// distances too far to matter. `tile_costs`: (LEVELS,), null for neither tiles nor singles. `full_halo`: the halo is
// every inactive position, for masks that may grow again at the next exit. Returns null if there is no memory.
Geometry *geometry_begin(const uint8_t *mask, int32_t height, int32_t width, int32_t window, const int32_t *classes,
                         const TileCosts *tile_costs, int32_t full_halo) {
    assert(height % 8 == 0 && width % 8 == 0 && window % 2 == 1); // the coarsest level is an eighth
    try {
        return new OwningGeometry({mask, height, width, window, classes, tile_costs, full_halo != 0,
                                   window_offsets(window, classes)});
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

// Goes on building the tables for `slice_s` seconds; infinity: to the end. Returns 1 if they are complete, 0 if not, and
// -1 if there is no memory for them; the next call then begins anew.
int32_t geometry_build(Geometry *geometry, double slice_s) {
    auto &owning = *static_cast<OwningGeometry *>(geometry);
    try {
        return owning.build(Slice(slice_s));
    } catch (const std::bad_alloc &) {
        owning.restart();
        return -1;
    }
}

void geometry_free(Geometry *geometry) { delete static_cast<OwningGeometry *>(geometry); }

}
