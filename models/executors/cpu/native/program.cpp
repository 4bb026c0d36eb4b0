// Runs programs. In each phase a thread computes its own part of the items, then takes items from threads that are not
// done; all threads wait at a barrier before the next phase.
#include "partition.h"
#include "thread_pool.h"
#include <assert.h>
#include <string.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

namespace {

// Tells the core that this thread spins.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Treats denormal numbers as zeros for as long as it lives: they cost a hundred times a normal operation, and are too
// small to change a result.
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

// The kernels of the best instruction set of this machine.
const Kernels *best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return &avx512_kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2_kernels;
#endif
    return &baseline_kernels;
}

// Floats that a matrix takes in working memory, with its row of zeros; 0 if it lies elsewhere.
size_t workspace_floats(const Matrix &matrix, const Context &context) {
    if (matrix.feature >= 0 || matrix.scratch >= 0) return 0;
    const Level &level = context.geometry->level[matrix.level];
    const size_t rows = matrix.row_domain == ACTIVE_ROWS ? level.active_rows : level.needed_rows;
    // A vector may be read and written past the end; the next matrix begins on a cache line.
    return ((1 + rows) * matrix.row_pitch + 47) & ~(size_t)15;
}

// Floats of scratch for one thread, rounded up to whole cache lines.
size_t scratch_floats(const Program &program) { return (program.scratch_floats + 31) & ~(size_t)15; }

// How many of one thread's items in one phase are claimed, and how many of those by other threads. Each pair has a cache
// line of its own, so that threads do not slow each other down.
struct alignas(64) Claims {
    std::atomic<int> all{0}, by_others{0};

    // Claims one of `items`; false if none is left.
    bool claim(int items) {
        return all.load(std::memory_order_relaxed) < items && all.fetch_add(1, std::memory_order_relaxed) < items;
    }
};

// One run of a program. Every thread goes through the same phases.
class ProgramRun {
  public:
    // `scratch`: scratch_floats for each thread.
    ProgramRun(const Kernels &kernels, const Program &program, const Context *contexts, int context_count, int threads,
               float *scratch)
        : kernels_(kernels), program_(program), contexts_(contexts), context_count_(context_count), threads_(threads),
          scratch_(scratch), partitions_(threads), claims_((size_t)program.phase_count * threads),
          finished_(program.phase_count) {
        int loops = 0;
        for (int p = 0; p < program.phase_count; ++p) loops = std::max(loops, (int)program.phases[p].loop_count);
        // Now, so that no thread has to allocate later.
        for (Partition &partition : partitions_) partition.reserve((size_t)loops * context_count);
    }

    // All phases, as thread number `thread`.
    void work(int thread) {
        const FlushDenormals flush;
        Partition &partition = partitions_[thread];
        for (int p = 0; p < program_.phase_count; ++p) {
            partition.assign(program_, program_.phases[p], contexts_, context_count_);
            for (int k = 0; k < threads_; ++k) {
                const int owner = (thread + k) % threads_;
                const int first = partition.first_item(owner, threads_), end = partition.first_item(owner + 1, threads_);
                Claims &claims = claims_[p * threads_ + owner];
                // The owner takes its items from the first on, other threads from the last on: the two sides meet only
                // when all items are claimed.
                for (int own = first; claims.claim(end - first);) {
                    const int item = k == 0 ? own++ : end - 1 - claims.by_others.fetch_add(1, std::memory_order_relaxed);
                    kernels_.run(partition.block(item, program_, scratch_ + thread * scratch_floats(program_)));
                    if (finished_[p].fetch_add(1, std::memory_order_acq_rel) + 1 == partition.items()) {
                        const std::lock_guard<std::mutex> lock(mutex_);
                        phase_done_.notify_all();
                    }
                }
            }
            barrier(finished_[p], partition.items());
        }
    }

  private:
    // A waiting thread spins for about 0.1 ms, as long as an uneven end of a phase lasts, then sleeps.
    static constexpr int SPINS = 2000;

    void barrier(const std::atomic<int> &finished, int items) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (finished.load(std::memory_order_acquire) == items) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        phase_done_.wait(lock, [&] { return finished.load(std::memory_order_acquire) == items; });
    }

    const Kernels &kernels_;
    const Program &program_;
    const Context *const contexts_;
    const int context_count_, threads_;
    float *const scratch_;
    std::vector<Partition> partitions_;      // (threads,)
    std::vector<Claims> claims_;             // (phases, threads)
    std::vector<std::atomic<int>> finished_; // (phases,): finished items
    std::mutex mutex_;
    std::condition_variable phase_done_;
};

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// The kernels called `name`, or the best ones if `name` is null. Returns null if this machine cannot run them.
const Kernels *kernels_find(const char *name) {
    const Kernels *top = best();
    if (!name || !strcmp(name, top->name)) return top;
#if defined(__x86_64__)
    if (top == &avx512_kernels && !strcmp(name, avx2_kernels.name)) return &avx2_kernels;
#endif
    return strcmp(name, baseline_kernels.name) ? nullptr : &baseline_kernels;
}

const char *kernels_name(const Kernels *kernels) { return kernels->name; }
int32_t kernels_lanes(const Kernels *kernels) { return kernels->lanes; }
int32_t kernels_panel_vectors(const Kernels *kernels) { return kernels->panel_vectors; }

// Sizes in bytes of the structures that structures.py declares too, so that a test can compare them.
void structure_sizes(int32_t *sizes) {
    const int32_t all[] = {sizeof(Level), sizeof(TileCosts), sizeof(Matrix), sizeof(ResamplingTaps), sizeof(Op),
                           sizeof(RowLoop), sizeof(Phase), sizeof(Program), sizeof(Context)};
    memcpy(sizes, all, sizeof all);
}

// The digest of the sources that this library was built from; see sources.py.
const char *source_digest() { return SOURCE_DIGEST; }

// Floats of working memory that program_run takes for these requests.
int64_t program_workspace_floats(const ThreadPool *pool, const Program *program, const Context *contexts,
                                 int32_t context_count) {
    size_t floats = pool->threads() * scratch_floats(*program);
    for (int c = 0; c < context_count; ++c)
        for (int m = 0; m < program->matrix_count; ++m) floats += workspace_floats(program->matrices[m], contexts[c]);
    return (int64_t)floats;
}

// Runs one step for all requests. `workspace`: as many floats as program_workspace_floats returns, from a cache line on.
// Returns 0, or 1 if there is no memory for its own tables.
int32_t program_run(ThreadPool *pool, const Kernels *kernels, const Program *program, Context *contexts,
                    int32_t context_count, float *workspace) {
    assert(context_count > 0 && (uintptr_t)workspace % 64 == 0);
    try {
        std::vector<Slot> slots;
        slots.reserve((size_t)context_count * program->matrix_count);
        for (int c = 0; c < context_count; ++c) {
            contexts[c].slots = slots.data() + slots.size();
            for (int m = 0; m < program->matrix_count; ++m) {
                const Matrix &matrix = program->matrices[m];
                if (matrix.scratch >= 0) {
                    slots.push_back({nullptr, matrix.row_pitch, matrix.scratch});
                    continue;
                }
                float *zeros = matrix.feature >= 0 ? contexts[c].features[matrix.feature] : workspace;
                workspace += workspace_floats(matrix, contexts[c]);
                memset(zeros, 0, matrix.row_pitch * sizeof(float));
                slots.push_back({zeros + matrix.row_pitch, matrix.row_pitch, -1});
            }
        }
        ProgramRun run(*kernels, *program, contexts, context_count, pool->threads(), workspace);
        pool->run([&](int thread) { run.work(thread); });
        return 0;
    } catch (...) {
        return 1;
    }
}

}
