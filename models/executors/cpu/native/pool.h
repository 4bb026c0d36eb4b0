// Threads that stay from one piece of work to the next.
#pragma once
#include <stdint.h>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
  public:
    // The caller's thread is one of them. Throws std::system_error where the system gives no more.
    explicit Pool(int threads);
    ~Pool() { stop(); }

    int threads() const { return (int)threads_.size() + 1; }

    // Calls `work` with the number of the thread: in the caller's, which is 0, and in each other that is awake before that
    // is done. Nobody waits for a thread that the system has no core for. `work` must not throw.
    template <class Work>
    void run(const Work &work) {
        run({&work, [](const void *it, int index) { (*static_cast<const Work *>(it))(index); }});
    }

    // Calls `work` for 0, .., count - 1, in whatever thread is free; it must not throw.
    template <class Work>
    void each(int count, const Work &work) {
        std::atomic<int> next{0};
        run([&](int) {
            for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
        });
    }

  private:
    struct Call {
        const void *work;
        void (*function)(const void *work, int index);
    };

    void run(Call call);
    void serve(int index);
    void stop();

    std::vector<std::thread> threads_;
    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    Call call_ = {};
    uint64_t generation_ = 0;
    int working_ = 0; // threads other than the caller's
    bool stop_ = false;
};
