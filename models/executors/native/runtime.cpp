// Runs programs: a persistent pool of threads, each with its own blocks of rows in every pass, until it helps the others
// with theirs; a meeting after each pass.
#include "plan.h"
#include <string.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
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

// How many of a thread's items in one pass are taken, and how many of them by others; on a cache line of its own.
struct alignas(64) Taken {
    std::atomic<int> all{0}, by_others{0};

    // Whether one of `items` was left.
    bool take(int items) {
        return all.load(std::memory_order_relaxed) < items && all.fetch_add(1, std::memory_order_relaxed) < items;
    }
};

// What is to run now. Every thread walks the same passes. `taken`: (passes, threads); `finished`: items of each pass.
struct Work {
    const Kernels *kernels;
    const Program *program;
    const Context *contexts;
    int contexts_count;
    std::vector<Taken> taken;
    std::vector<std::atomic<int>> finished;
};

class Pool {
  public:
    // Throws std::system_error where the system gives no more threads.
    explicit Pool(int threads) : scratch_(std::max(threads, 1)), plans_(scratch_.size()) {
        threads_.reserve(scratch_.size());
        try {
            for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Pool() { stop(); }

    int threads() const { return (int)scratch_.size(); }

    // Throws std::bad_alloc before anything has run.
    void run(Work &work) {
        reserve(work);
        std::unique_lock<std::mutex> lock(mutex_);
        work_ = &work;
        ++generation_;
        left_ = (int)threads_.size();
        lock.unlock();
        wake_.notify_all();
        walk(work, 0);
        lock.lock();
        done_.wait(lock, [this] { return left_ == 0; });
        work_ = nullptr;
    }

  private:
    // A thread that waits spins for about 0.1 ms, as long as an uneven end of a pass lasts, then sleeps.
    static constexpr int SPINS = 2000;

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &thread : threads_) thread.join();
    }

    // Memory for every thread, so that none has to ask for it.
    void reserve(const Work &work) {
        const Program &program = *work.program;
        const size_t floats = program.scratch_floats + 32;
        int jobs = 0;
        for (int p = 0; p < program.pass_count; ++p) jobs = std::max(jobs, (int)program.passes[p].jobs);
        for (std::vector<float> &scratch : scratch_)
            if (scratch.size() < floats) scratch.assign(floats, 0.0f);
        for (Plan &plan : plans_) plan.reserve((size_t)jobs * work.contexts_count);
    }

    void serve(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
            Work &work = *work_;
            lock.unlock();
            walk(work, index);
            lock.lock();
            if (--left_ == 0) done_.notify_all();
        }
    }

    void walk(Work &work, int index) {
        const FlushDenormals flush;
        float *aligned = (float *)(((uintptr_t)scratch_[index].data() + 63) & ~(uintptr_t)63);
        Plan &plan = plans_[index];
        const int threads = this->threads();
        for (int p = 0; p < work.program->pass_count; ++p) {
            plan.make(*work.program, work.program->passes[p], work.contexts, work.contexts_count);
            for (int k = 0; k < threads; ++k) {
                const int owner = (index + k) % threads;
                const int first = plan.first_of(owner, threads), end = plan.first_of(owner + 1, threads);
                Taken &taken = work.taken[p * threads + owner];
                // Its own from the first on, those of others from the last on: they do not meet before all are taken.
                for (int own = first; taken.take(end - first);) {
                    const int item = k == 0 ? own++ : end - 1 - taken.by_others.fetch_add(1, std::memory_order_relaxed);
                    work.kernels->run(plan.block(item, *work.program, aligned));
                    if (work.finished[p].fetch_add(1, std::memory_order_acq_rel) + 1 == plan.items()) {
                        std::lock_guard<std::mutex> lock(pass_mutex_);
                        pass_done_.notify_all();
                    }
                }
            }
            meet(work.finished[p], plan.items());
        }
    }

    void meet(std::atomic<int> &finished, int items) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (finished.load(std::memory_order_acquire) == items) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(pass_mutex_);
        pass_done_.wait(lock, [&] { return finished.load(std::memory_order_acquire) == items; });
    }

    std::vector<std::thread> threads_;
    std::vector<std::vector<float>> scratch_; // of each thread
    std::vector<Plan> plans_;
    std::mutex mutex_, pass_mutex_;
    std::condition_variable wake_, done_, pass_done_;
    uint64_t generation_ = 0;
    Work *work_ = nullptr;
    int left_ = 0;
    bool stop_ = false;
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

// Null where the system does not give so many threads.
Pool *pool_create(int32_t threads) {
    try {
        return new Pool(threads);
    } catch (...) {
        return nullptr;
    }
}

void pool_free(Pool *pool) { delete pool; }

// Floats of working memory that a run for all contexts takes.
int64_t program_floats(const Program *program, const Context *contexts, int32_t count) {
    size_t floats = 0;
    for (int c = 0; c < count; ++c)
        for (int m = 0; m < program->matrix_count; ++m) floats += work_floats(program->matrices[m], contexts[c]);
    return (int64_t)floats;
}

// One step for all contexts. `memory`: as many floats as program_floats says. Returns 0, or 1 without memory for it.
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
        Work work = {kernels, program, contexts, count, std::vector<Taken>((size_t)program->pass_count * pool->threads()),
                     std::vector<std::atomic<int>>(program->pass_count)};
        pool->run(work);
        return 0;
    } catch (...) {
        return 1;
    }
}

}
