// Threads that live as long as their executor, so that no work waits for a thread to start.
#pragma once
#include <stdint.h>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
  public:
    // `threads` includes the caller's thread. Throws std::system_error if the system cannot start so many.
    explicit ThreadPool(int threads);
    ~ThreadPool() { stop(); }

    int threads() const { return (int)threads_.size() + 1; }

    // Calls `work(thread)` in the caller's thread, which is number 0, and in each other thread that wakes up before the
    // caller's call returns. Returns when all calls have returned; it does not wait for a thread that the system has no
    // core for. `work` must do everything even if only the caller's thread runs it, and must not throw.
    template <class Work>
    void run(const Work &work) {
        run({&work, [](const void *it, int thread) { (*static_cast<const Work *>(it))(thread); }});
    }

    // Calls `work(i)` for i = 0, .., count - 1, each in the next free thread. `work` must not throw.
    template <class Work>
    void parallel_for(int count, const Work &work) {
        std::atomic<int> next{0};
        run([&](int) {
            for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
        });
    }

  private:
    struct Call {
        const void *work;
        void (*function)(const void *work, int thread);
    };

    void run(Call call);
    void serve(int thread);
    void stop();

    std::vector<std::thread> threads_;
    std::mutex caller_mutex_; // held for a whole `run`: one caller at a time
    std::mutex mutex_;        // guards what follows
    std::condition_variable wake_, done_;
    Call call_ = {};
    uint64_t generation_ = 0; // number of calls so far, so that no thread takes the same call twice
    int working_ = 0;         // threads in the call, without the caller's
    bool stop_ = false;
};
