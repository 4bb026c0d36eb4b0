// A run of a program. In each phase a thread computes its own part of the items, then takes items from threads that are
// not done; all threads wait at a barrier before the next phase. When a slice is over, every thread completes the item
// that it computes; the next slice goes on with the items that are left. Included by program.cpp alone.
#pragma once
#include "partition.h"
#include "slice.h"
#include "thread_pool.h"
#include <assert.h>
#include <string.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

// Tells the core that this thread spins.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Makes an x86 processor treat denormal numbers as zeros while an object of this class exists. An operation on a
// denormal number takes a hundred times as long as one on a normal number, and no result depends on numbers so small.
class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
    ~FlushDenormals() { __builtin_ia32_ldmxcsr(before_); }

  private:
    unsigned before_;
#else
    FlushDenormals() {}
#endif
};

// Bytes that a matrix takes in working memory, with its row of zeros; 0 if it lies elsewhere.
inline size_t workspace_bytes(const Matrix &matrix, const Context &context) {
    if (matrix.feature >= 0 || matrix.scratch >= 0) return 0;
    const Level &level = context.geometry->level[matrix.level];
    const size_t rows = matrix.row_domain == ACTIVE_ROWS ? level.active_rows : level.needed_rows;
    // A vector may be read and written past the end; the next matrix begins on a cache line.
    return ((1 + rows) * matrix.row_bytes + 191) & ~(size_t)63;
}

// Bytes of scratch for one thread, rounded up to whole cache lines.
inline size_t scratch_bytes(const Program &program) { return (program.scratch_bytes + 127) & ~(size_t)63; }

// Counters of claimed items, for one thread and phase. The owner claims from the front, thieves from the back (work
// stealing). They have a cache line of their own, so that threads do not slow each other down.
struct alignas(64) Claims {
    std::atomic<int> all{0}, by_others{0};
    int by_owner = 0; // only the owner counts them

    // Claims one of `items`; false if none is left.
    bool claim(int items) {
        return all.load(std::memory_order_relaxed) < items && all.fetch_add(1, std::memory_order_relaxed) < items;
    }
};

// A run of a program for some requests. Every thread goes through the same phases.
class ProgramRun {
  public:
    // For the arguments see program_begin.
    ProgramRun(int threads, const Kernels &kernels, const Program &program, Context *contexts, int context_count,
               uint8_t *workspace, double *phase_seconds)
        : kernels_(kernels), program_(program), contexts_(contexts), context_count_(context_count), threads_(threads),
          phase_seconds_(phase_seconds), partitions_(threads), claims_((size_t)program.phase_count * threads),
          unfinished_(program.phase_count) {
        slots_.reserve((size_t)context_count * program.matrix_count);
        for (int c = 0; c < context_count; ++c) {
            contexts[c].slots = slots_.data() + slots_.size();
            for (int m = 0; m < program.matrix_count; ++m) workspace = place(program.matrices[m], contexts[c], workspace);
        }
        scratch_ = workspace;
        int loops = 0;
        for (int p = 0; p < program.phase_count; ++p) loops = std::max(loops, (int)program.phases[p].loop_count);
        // Now, so that no thread has to allocate later.
        for (Partition &partition : partitions_) partition.reserve((size_t)loops * context_count);
        for (int p = 0; p < program.phase_count; ++p) {
            partitions_[0].assign(program, program.phases[p], contexts, context_count);
            unfinished_[p] = partitions_[0].items();
        }
    }

    // Goes on until all is done or the slice is over; each call computes a few items at least. Returns whether all is
    // done.
    bool run(ThreadPool &pool, const Slice &slice) {
        assert(pool.threads() == threads_);
        paused_ = false;
        pool.run([&](int thread) { run_phases(thread, slice); });
        while (phase_ < program_.phase_count && unfinished_[phase_] == 0) ++phase_;
        return phase_ == program_.phase_count;
    }

  private:
    // Gives a matrix its slot, and memory from `workspace` on if it has none. Returns where the memory ends.
    uint8_t *place(const Matrix &matrix, const Context &context, uint8_t *workspace) {
        if (matrix.scratch >= 0) {
            slots_.push_back({nullptr, matrix.row_bytes, matrix.scratch});
            return workspace;
        }
        uint8_t *const zeros = matrix.feature >= 0 ? context.features[matrix.feature] : workspace;
        memset(zeros, 0, matrix.row_bytes);
        slots_.push_back({zeros + matrix.row_bytes, matrix.row_bytes, -1});
        return workspace + workspace_bytes(matrix, context);
    }

    // Runs the remaining phases as thread `thread`.
    void run_phases(int thread, const Slice &slice) {
        const FlushDenormals flush;
        const bool timed = thread == 0 && phase_seconds_;
        double began = timed ? seconds() : 0;
        bool done = true;
        int computed = 0;
        for (int p = phase_; done && p < program_.phase_count; ++p) {
            done = run_phase(thread, p, slice, computed);
            if (timed) {
                const double now = seconds();
                phase_seconds_[p] += now - began;
                began = now;
            }
        }
    }

    // A thread looks at the clock after its first item and then after as many more, which is cheap: they take 0.1 ms, and
    // a look 50 ns.
    static constexpr int ITEMS_TO_A_LOOK = 4;

    // Runs the remaining items of phase `p`. Returns whether it is done; otherwise the run has paused. `computed`: items
    // of this thread since the slice began.
    bool run_phase(int thread, int p, const Slice &slice, int &computed) {
        Partition &partition = partitions_[thread];
        partition.assign(program_, program_.phases[p], contexts_, context_count_);
        for (int k = 0; k < threads_; ++k) {
            const int owner = (thread + k) % threads_;
            const int first = partition.first_item(owner, threads_), end = partition.first_item(owner + 1, threads_);
            Claims &claims = claims_[p * threads_ + owner];
            // The owner takes its items from the first on, other threads from the last on: the two sides meet only
            // when all items are claimed.
            while (claims.claim(end - first)) {
                const int item = k == 0 ? first + claims.by_owner++
                                        : end - 1 - claims.by_others.fetch_add(1, std::memory_order_relaxed);
                kernels_.run(partition.block(item, program_, scratch_ + thread * scratch_bytes(program_)));
                const bool last = unfinished_[p].fetch_sub(1, std::memory_order_acq_rel) == 1;
                const bool over = computed++ % ITEMS_TO_A_LOOK == 0 && slice.over();
                if (last || over) {
                    const std::lock_guard<std::mutex> lock(mutex_);
                    paused_ = paused_ || over;
                    wake_.notify_all();
                }
                if (over) return false;
            }
        }
        return barrier(unfinished_[p]);
    }

    static double seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    // A waiting thread spins for about 0.1 ms, as long as an uneven end of a phase lasts, then sleeps.
    static constexpr int SPINS = 2000;

    // Waits until nothing is unfinished or the run pauses. Returns whether nothing is unfinished.
    bool barrier(const std::atomic<int> &unfinished) {
        const auto left = [&] { return unfinished.load(std::memory_order_acquire) != 0; };
        for (int spin = 0; spin < SPINS; ++spin) {
            if (!left() || paused_.load(std::memory_order_relaxed)) return !left();
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return !left() || paused_.load(std::memory_order_relaxed); });
        return !left();
    }

    const Kernels &kernels_;
    const Program &program_;
    const Context *const contexts_;
    const int context_count_, threads_;
    double *const phase_seconds_;
    std::vector<Slot> slots_;                  // (contexts, matrices)
    uint8_t *scratch_;                         // scratch_bytes for each thread
    std::vector<Partition> partitions_;        // (threads,)
    std::vector<Claims> claims_;               // (phases, threads)
    std::vector<std::atomic<int>> unfinished_; // (phases,): items
    int phase_ = 0;                            // the first that is not done
    std::atomic<bool> paused_{false};
    std::mutex mutex_;
    std::condition_variable wake_; // of threads at the barrier
};
