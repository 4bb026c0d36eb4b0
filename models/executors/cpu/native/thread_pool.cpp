#include "thread_pool.h"

ThreadPool::ThreadPool(int threads) {
    try {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        stop();
        throw;
    }
}

void ThreadPool::run(Call call) {
    const std::lock_guard<std::mutex> caller(caller_mutex_);
    std::unique_lock<std::mutex> lock(mutex_);
    call_ = call;
    ++generation_;
    lock.unlock();
    wake_.notify_all();
    call.function(call.work, 0);
    lock.lock();
    call_ = {}; // a thread that wakes up from now on is too late
    done_.wait(lock, [this] { return working_ == 0; });
}

void ThreadPool::serve(int thread) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] { return stop_ || (call_.work && generation_ != seen); });
        if (stop_) return;
        seen = generation_;
        const Call call = call_;
        ++working_;
        lock.unlock();
        call.function(call.work, thread);
        lock.lock();
        if (--working_ == 0) done_.notify_all();
    }
}

void ThreadPool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
}

#pragma GCC visibility push(default)
extern "C" {

// Null if the system cannot start so many threads.
ThreadPool *thread_pool_create(int32_t threads) {
    try {
        return new ThreadPool(threads);
    } catch (...) {
        return nullptr;
    }
}

void thread_pool_free(ThreadPool *pool) { delete pool; }

}
