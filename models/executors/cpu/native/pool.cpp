#include "pool.h"

Pool::Pool(int threads) {
    try {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        stop();
        throw;
    }
}

void Pool::run(Call call) {
    const std::lock_guard<std::mutex> turn(turn_);
    std::unique_lock<std::mutex> lock(mutex_);
    call_ = call;
    ++generation_;
    lock.unlock();
    wake_.notify_all();
    call.function(call.work, 0);
    lock.lock();
    call_ = {};
    done_.wait(lock, [this] { return working_ == 0; });
}

void Pool::serve(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] { return stop_ || (call_.work && generation_ != seen); });
        if (stop_) return;
        seen = generation_;
        const Call call = call_;
        ++working_;
        lock.unlock();
        call.function(call.work, index);
        lock.lock();
        if (--working_ == 0) done_.notify_all();
    }
}

void Pool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
}

#pragma GCC visibility push(default)
extern "C" {

// Null where the system does not give so many threads.
Pool *pool_create(int32_t threads) {
    try {
        return new Pool(threads);
    } catch (...) {
        return nullptr;
    }
}

void pool_free(Pool *pool) { delete pool; }

}
