// Finds kernels, and runs programs with them.
#include "program_run.h"
#include <assert.h>
#include <string.h>
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

// Bytes of working memory that a run takes for these requests.
int64_t program_workspace_bytes(const ThreadPool *pool, const Program *program, const Context *contexts,
                                int32_t context_count) {
    size_t bytes = pool->threads() * scratch_bytes(*program);
    for (int c = 0; c < context_count; ++c)
        for (int m = 0; m < program->matrix_count; ++m) bytes += workspace_bytes(program->matrices[m], contexts[c]);
    return (int64_t)bytes;
}

// A run of one step for all requests, before its first item. Everything that it is given must live as long as the run.
// `workspace`: as many bytes as program_workspace_bytes returns, from a cache line on.
// `phase_seconds`: (phases,), to which the time of each phase is added; null to take no time.
// Returns null if there is no memory for its own tables.
ProgramRun *program_begin(const ThreadPool *pool, const Kernels *kernels, const Program *program, Context *contexts,
                          int32_t context_count, uint8_t *workspace, double *phase_seconds) {
    assert(context_count > 0 && (uintptr_t)workspace % 64 == 0);
    try {
        return new ProgramRun(pool->threads(), *kernels, *program, contexts, context_count, workspace, phase_seconds);
    } catch (...) {
        return nullptr;
    }
}

// Goes on with a run for `slice_s` seconds; infinity: to its end. Returns 1 if it is complete.
int32_t program_run(ThreadPool *pool, ProgramRun *run, double slice_s) { return run->run(*pool, Slice(slice_s)); }

// Ends a run, complete or not.
void program_free(ProgramRun *run) { delete run; }

}
