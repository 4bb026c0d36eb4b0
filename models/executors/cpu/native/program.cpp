// Runs programs. In each phase a thread computes its own part of the items, then takes items from threads that are not
// done; all threads wait at a barrier before the next phase.
#include "partition.h"
#include "thread_pool.h"
#include <assert.h>
#include <string.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

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

// All kernels that this library has, the best first.
const Kernels *const all_kernels[] = {
#if defined(HAVE_VNNI)
    &avx512vnni_kernels,
#endif
#if defined(__x86_64__)
    &avx512_kernels,
#endif
#if defined(HAVE_VNNI)
    &avxvnni_kernels,
#endif
#if defined(__x86_64__)
    &avx2_kernels,
#elif defined(__aarch64__)
    &neondot_kernels,
#endif
    &baseline_kernels};

// Whether this machine can run them.
bool runs(const Kernels *kernels) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (kernels == &avx512_kernels) return avx512;
    if (kernels == &avx2_kernels) return avx2;
#if defined(HAVE_VNNI)
    if (kernels == &avx512vnni_kernels) return avx512 && __builtin_cpu_supports("avx512vnni");
    if (kernels == &avxvnni_kernels) { // before version 14, GCC cannot ask for it: leaf 7, subleaf 1, EAX, bit 4
        unsigned a, b, c, d;
        return avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    }
#endif
#elif defined(__aarch64__) && defined(__linux__)
    if (kernels == &neondot_kernels) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    if (kernels == &neondot_kernels)
        return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) && found;
#elif defined(__aarch64__)
    if (kernels == &neondot_kernels) return false;
#endif
    return true;
}

// Bytes that a matrix takes in working memory, with its row of zeros; 0 if it lies elsewhere.
size_t workspace_bytes(const Matrix &matrix, const Context &context) {
    if (matrix.feature >= 0 || matrix.scratch >= 0) return 0;
    const Level &level = context.geometry->level[matrix.level];
    const size_t rows = matrix.row_domain == ACTIVE_ROWS ? level.active_rows : level.needed_rows;
    // A vector may be read and written past the end; the next matrix begins on a cache line.
    return ((1 + rows) * matrix.row_bytes + 191) & ~(size_t)63;
}

// Bytes of scratch for one thread, rounded up to whole cache lines.
size_t scratch_bytes(const Program &program) { return (program.scratch_bytes + 127) & ~(size_t)63; }

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
    // `scratch`: scratch_bytes for each thread. `phase_seconds`: see program_run.
    ProgramRun(const Kernels &kernels, const Program &program, const Context *contexts, int context_count, int threads,
               uint8_t *scratch, double *phase_seconds)
        : kernels_(kernels), program_(program), contexts_(contexts), context_count_(context_count), threads_(threads),
          scratch_(scratch), phase_seconds_(phase_seconds), partitions_(threads), claims_((size_t)program.phase_count * threads),
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
        const bool timed = thread == 0 && phase_seconds_;
        double began = timed ? seconds() : 0;
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
                    kernels_.run(partition.block(item, program_, scratch_ + thread * scratch_bytes(program_)));
                    if (finished_[p].fetch_add(1, std::memory_order_acq_rel) + 1 == partition.items()) {
                        const std::lock_guard<std::mutex> lock(mutex_);
                        phase_done_.notify_all();
                    }
                }
            }
            barrier(finished_[p], partition.items());
            if (timed) {
                const double now = seconds();
                phase_seconds_[p] += now - began;
                began = now;
            }
        }
    }

  private:
    static double seconds() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

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
    uint8_t *const scratch_;
    double *const phase_seconds_;
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
    for (const Kernels *kernels : all_kernels)
        if ((!name || !strcmp(name, kernels->name)) && runs(kernels)) return kernels;
    return nullptr;
}

const char *kernels_name(const Kernels *kernels) { return kernels->name; }
int32_t kernels_lanes(const Kernels *kernels) { return kernels->lanes; }
int32_t kernels_panel_vectors(const Kernels *kernels) { return kernels->panel_vectors; }
int32_t kernels_dot_parts(const Kernels *kernels) { return kernels->dot_parts; }
int32_t kernels_dot_signed(const Kernels *kernels) { return kernels->dot_signed; }
int32_t kernels_dot_tail(const Kernels *kernels) { return kernels->dot_tail; }

// Sizes in bytes of the structures that structures.py declares too, so that a test can compare them.
void structure_sizes(int32_t *sizes) {
    const int32_t all[] = {sizeof(Level), sizeof(TileCosts), sizeof(Matrix), sizeof(ResamplingTaps), sizeof(Op),
                           sizeof(RowLoop), sizeof(Phase), sizeof(Program), sizeof(Context)};
    memcpy(sizes, all, sizeof all);
}

// The digest of the sources that this library was built from; see sources.py.
const char *source_digest() { return SOURCE_DIGEST; }

// Bytes of working memory that program_run takes for these requests.
int64_t program_workspace_bytes(const ThreadPool *pool, const Program *program, const Context *contexts,
                                int32_t context_count) {
    size_t bytes = pool->threads() * scratch_bytes(*program);
    for (int c = 0; c < context_count; ++c)
        for (int m = 0; m < program->matrix_count; ++m) bytes += workspace_bytes(program->matrices[m], contexts[c]);
    return (int64_t)bytes;
}

// Runs one step for all requests. `workspace`: as many bytes as program_workspace_bytes returns, from a cache line on.
// `phase_seconds`: (phases,), to which the time of each phase is added; null to take no time.
// Returns 0, or 1 if there is no memory for its own tables.
int32_t program_run(ThreadPool *pool, const Kernels *kernels, const Program *program, Context *contexts,
                    int32_t context_count, uint8_t *workspace, double *phase_seconds) {
    assert(context_count > 0 && (uintptr_t)workspace % 64 == 0);
    try {
        std::vector<Slot> slots;
        slots.reserve((size_t)context_count * program->matrix_count);
        for (int c = 0; c < context_count; ++c) {
            contexts[c].slots = slots.data() + slots.size();
            for (int m = 0; m < program->matrix_count; ++m) {
                const Matrix &matrix = program->matrices[m];
                if (matrix.scratch >= 0) {
                    slots.push_back({nullptr, matrix.row_bytes, matrix.scratch});
                    continue;
                }
                uint8_t *zeros = matrix.feature >= 0 ? contexts[c].features[matrix.feature] : workspace;
                workspace += workspace_bytes(matrix, contexts[c]);
                memset(zeros, 0, matrix.row_bytes);
                slots.push_back({zeros + matrix.row_bytes, matrix.row_bytes, -1});
            }
        }
        ProgramRun run(*kernels, *program, contexts, context_count, pool->threads(), workspace, phase_seconds);
        pool->run([&](int thread) { run.work(thread); });
        return 0;
    } catch (...) {
        return 1;
    }
}

}
