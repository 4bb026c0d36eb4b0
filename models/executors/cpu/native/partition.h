// The work of one phase, split into blocks, and the blocks split among threads.
#pragma once
#include "structures.h"
#include <stddef.h>
#include <algorithm>
#include <vector>

// Rows, tiles or singles [first, last).
struct Range {
    int first, last;
};

inline Range domain_of(const RowLoop &loop, const Level &level) {
    switch (loop.domain) {
    case ACTIVE: return {0, level.active_rows};
    case HALO: return {level.active_rows, level.needed_rows};
    case TILES_4X4: return {0, level.tiles_4x4};
    case TILES_2X2: return {0, level.tiles_2x2};
    case SINGLES: return {0, level.singles};
    }
    return {0, level.needed_rows};
}

// A row loop for one request: its items, numbered from `first_item` on, and their cost together. An item is one channel
// group of one block of rows.
struct LoopItems {
    const RowLoop *loop;
    const Context *context;
    Range domain;
    int first_item, blocks;
    int64_t cost;

    int count() const { return blocks * loop->groups; }
};

// The items of one phase for all requests, numbered in a row: loop by loop, request by request.
class Partition {
  public:
    void reserve(size_t loops) { loops_.reserve(loops); }

    void assign(const Program &program, const Phase &phase, const Context *contexts, int context_count) {
        loops_.clear();
        items_ = 0;
        cost_ = 0;
        for (int l = phase.first_loop; l < phase.first_loop + phase.loop_count; ++l)
            for (int c = 0; c < context_count; ++c) {
                const RowLoop &loop = program.loops[l];
                const Range domain = domain_of(loop, contexts[c].geometry->level[loop.level]);
                const int rows = domain.last - domain.first, blocks = (rows + loop.block_rows - 1) / loop.block_rows;
                if (!blocks) continue;
                loops_.push_back({&loop, &contexts[c], domain, items_, blocks, (int64_t)rows * loop.cost});
                items_ += loops_.back().count();
                cost_ += loops_.back().cost;
            }
    }

    int items() const { return items_; }

    // The first item of thread `thread` of `threads`. Threads get equal parts of the cost, each of adjacent items. Phases
    // are alike, so that a thread finds in its caches what it computed in the phase before; and it reads the weights of
    // few loops.
    int first_item(int thread, int threads) const {
        int64_t left = cost_ * thread / threads;
        for (const LoopItems &loop : loops_) {
            if (left < loop.cost) return loop.first_item + (int)((left * loop.count() + loop.cost / 2) / loop.cost);
            left -= loop.cost;
        }
        return items_;
    }

    // What the kernels compute for an item. `scratch`: that of the calling thread.
    Block block(int item, const Program &program, uint8_t *scratch) const {
        const auto after = std::upper_bound(loops_.begin(), loops_.end(), item,
                                            [](int at, const LoopItems &loop) { return at < loop.first_item; });
        const LoopItems &items = after[-1];
        const RowLoop &loop = *items.loop;
        item -= items.first_item;
        const int first = items.domain.first + item % items.blocks * loop.block_rows;
        const int last = std::min(first + loop.block_rows, items.domain.last);
        const int group = item / items.blocks;
        return {program.ops + loop.first_op, loop.op_count, loop.level, loop.domain, first, last, group, loop.groups,
                scratch, items.context};
    }

  private:
    std::vector<LoopItems> loops_;
    int items_ = 0;
    int64_t cost_ = 0;
};
