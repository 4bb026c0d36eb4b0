// Runs programs: every thread of a pool has its own blocks of rows in every pass, until it helps the others with theirs; a
// meeting after each pass.
#include "plan.h"
#include "pool.h"
#include <string.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

namespace {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Denormal numbers cost a hundred times a normal operation, and mean nothing here.
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

// Floats of a matrix in working memory, its row of zeros in front; 0 for one that lies elsewhere.
size_t work_floats(const Matrix &matrix, const Context &context) {
    if (matrix.feature >= 0 || matrix.scratch >= 0) return 0;
    const Level &level = context.now->level[matrix.level];
    const size_t rows = matrix.holds == ACTIVE_ROWS ? level.active : level.needed;
    // A vector may be read and written past the end; the next one begins on a cache line.
    return ((1 + rows) * matrix.stride + 47) & ~(size_t)15;
}

// Floats of scratch for one thread, as many whole cache lines.
size_t scratch_floats(const Program &program) { return (program.scratch_floats + 31) & ~(size_t)15; }

// How many of a thread's items in one pass are taken, and how many of them by others; on a cache line of its own.
struct alignas(64) Taken {
    std::atomic<int> all{0}, by_others{0};

    // Whether one of `items` was left.
    bool take(int items) {
        return all.load(std::memory_order_relaxed) < items && all.fetch_add(1, std::memory_order_relaxed) < items;
    }
};

// One run of a program. Every thread walks the same passes.
class Run {
  public:
    // `scratch`: scratch_floats for each thread.
    Run(const Kernels &kernels, const Program &program, const Context *contexts, int count, int threads, float *scratch)
        : kernels_(kernels), program_(program), contexts_(contexts), count_(count), threads_(threads), scratch_(scratch),
          plans_(threads), taken_((size_t)program.pass_count * threads), finished_(program.pass_count) {
        int jobs = 0;
        for (int p = 0; p < program.pass_count; ++p) jobs = std::max(jobs, (int)program.passes[p].jobs);
        for (Plan &plan : plans_) plan.reserve((size_t)jobs * count); // so that no thread has to ask for memory
    }

    void walk(int index) {
        const FlushDenormals flush;
        Plan &plan = plans_[index];
        for (int p = 0; p < program_.pass_count; ++p) {
            plan.make(program_, program_.passes[p], contexts_, count_);
            for (int k = 0; k < threads_; ++k) {
                const int owner = (index + k) % threads_;
                const int first = plan.first_of(owner, threads_), end = plan.first_of(owner + 1, threads_);
                Taken &taken = taken_[p * threads_ + owner];
                // Its own from the first on, those of others from the last on: they do not meet before all are taken.
                for (int own = first; taken.take(end - first);) {
                    const int item = k == 0 ? own++ : end - 1 - taken.by_others.fetch_add(1, std::memory_order_relaxed);
                    kernels_.run(plan.block(item, program_, scratch_ + index * scratch_floats(program_)));
                    if (finished_[p].fetch_add(1, std::memory_order_acq_rel) + 1 == plan.items()) {
                        const std::lock_guard<std::mutex> lock(mutex_);
                        pass_done_.notify_all();
                    }
                }
            }
            meet(finished_[p], plan.items());
        }
    }

  private:
    // A thread that waits spins for about 0.1 ms, as long as an uneven end of a pass lasts, then sleeps.
    static constexpr int SPINS = 2000;

    void meet(const std::atomic<int> &finished, int items) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (finished.load(std::memory_order_acquire) == items) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        pass_done_.wait(lock, [&] { return finished.load(std::memory_order_acquire) == items; });
    }

    const Kernels &kernels_;
    const Program &program_;
    const Context *const contexts_;
    const int count_, threads_;
    float *const scratch_;
    std::vector<Plan> plans_;                // of each thread
    std::vector<Taken> taken_;               // (passes, threads)
    std::vector<std::atomic<int>> finished_; // items of each pass
    std::mutex mutex_;
    std::condition_variable pass_done_;
};

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// The kernels called `name`, or the best that this machine has for null; null if it lacks them.
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
int32_t kernels_panel(const Kernels *kernels) { return kernels->panel; }

// Sizes of the structures that Python declares too, so that a test can compare them.
void layout(int32_t *sizes) {
    const int32_t all[] = {sizeof(Level), sizeof(Prices), sizeof(Matrix), sizeof(Taps), sizeof(Op), sizeof(Job),
                           sizeof(Pass),  sizeof(Program), sizeof(Context)};
    memcpy(sizes, all, sizeof all);
}

// Of the sources that this was built from; see sources.py.
const char *sources() { return SOURCES; }

// Floats of working memory that a run for all contexts takes.
int64_t program_floats(const Pool *pool, const Program *program, const Context *contexts, int32_t count) {
    size_t floats = pool->threads() * scratch_floats(*program);
    for (int c = 0; c < count; ++c)
        for (int m = 0; m < program->matrix_count; ++m) floats += work_floats(program->matrices[m], contexts[c]);
    return (int64_t)floats;
}

// One step for all contexts. `memory`: as many floats as program_floats says, from a cache line on. Returns 0, or 1 if
// there was no memory for what else it takes.
int32_t program_run(Pool *pool, const Kernels *kernels, const Program *program, Context *contexts, int32_t count,
                    float *memory) {
    try {
        std::vector<Slot> slots;
        slots.reserve((size_t)count * program->matrix_count);
        for (int c = 0; c < count; ++c) {
            contexts[c].slots = slots.data() + slots.size();
            for (int m = 0; m < program->matrix_count; ++m) {
                const Matrix &matrix = program->matrices[m];
                if (matrix.scratch >= 0) {
                    slots.push_back({nullptr, matrix.stride, matrix.scratch});
                    continue;
                }
                float *zeros = matrix.feature >= 0 ? contexts[c].features[matrix.feature] : memory;
                memory += work_floats(matrix, contexts[c]);
                memset(zeros, 0, matrix.stride * sizeof(float));
                slots.push_back({zeros + matrix.stride, matrix.stride, -1});
            }
        }
        Run run(*kernels, *program, contexts, count, pool->threads(), memory);
        pool->run([&](int index) { run.walk(index); });
        return 0;
    } catch (...) {
        return 1;
    }
}

}
