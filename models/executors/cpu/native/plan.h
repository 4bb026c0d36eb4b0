// The items of one pass, and which thread they are for.
#pragma once
#include "native.h"
#include <stddef.h>
#include <algorithm>
#include <vector>

// First and last row, or tile, of a job.
struct Range {
    int first, last;
};

inline Range range_of(const Job &job, const Level &level) {
    switch (job.rows) {
    case ACTIVE: return {0, level.active};
    case HALO: return {level.active, level.needed};
    case TILES_4: return {0, level.tiles_4};
    case TILES_2: return {0, level.tiles_2};
    case SINGLES: return {0, level.singles};
    }
    return {0, level.needed};
}

// A job for one context: items from `first_item` on, and what they cost together.
struct Share {
    const Job *job;
    const Context *context;
    Range range;
    int first_item, blocks;
    int64_t cost;

    int items() const { return blocks * job->groups; }
};

// One pass for all contexts, its items in a row.
class Plan {
  public:
    void reserve(size_t shares) { shares_.reserve(shares); }

    void make(const Program &program, const Pass &pass, const Context *contexts, int count) {
        shares_.clear();
        items_ = 0;
        cost_ = 0;
        for (int j = pass.first_job; j < pass.first_job + pass.jobs; ++j)
            for (int c = 0; c < count; ++c) {
                const Job &job = program.jobs[j];
                const Range range = range_of(job, contexts[c].now->level[job.level]);
                const int rows = range.last - range.first, blocks = (rows + job.block - 1) / job.block;
                if (!blocks) continue;
                shares_.push_back({&job, &contexts[c], range, items_, blocks, (int64_t)rows * job.cost});
                items_ += shares_.back().items();
                cost_ += shares_.back().cost;
            }
    }

    int items() const { return items_; }

    // The first item of thread `index` of `threads`. They have equal parts of the cost, each of neighbours: passes are
    // alike, so that a thread finds in its caches what it made in the pass before, and it reads the weights of few jobs.
    int first_of(int index, int threads) const {
        int64_t left = cost_ * index / threads;
        for (const Share &share : shares_) {
            if (left < share.cost) return share.first_item + (int)((left * share.items() + share.cost / 2) / share.cost);
            left -= share.cost;
        }
        return items_;
    }

    Block block(int item, const Program &program, float *scratch) const {
        const auto after = std::upper_bound(shares_.begin(), shares_.end(), item,
                                            [](int at, const Share &share) { return at < share.first_item; });
        const Share &share = after[-1];
        const Job &job = *share.job;
        item -= share.first_item;
        const int first = share.range.first + item % share.blocks * job.block;
        const int last = std::min(first + job.block, share.range.last);
        const int group = item / share.blocks;
        return {program.ops + job.first_op, job.ops, job.level, job.rows, first, last, group, job.groups, scratch, share.context};
    }

  private:
    std::vector<Share> shares_;
    int items_ = 0;
    int64_t cost_ = 0;
};
