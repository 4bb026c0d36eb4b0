// The time that a call may take before its work pauses.
#pragma once
#include <chrono>
#include <cmath>

class Slice {
  public:
    // `seconds` from now on; infinity for no end.
    explicit Slice(double seconds) : endless_(std::isinf(seconds)) {
        if (!endless_) end_ += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    }

    bool over() const { return !endless_ && Clock::now() >= end_; }

  private:
    using Clock = std::chrono::steady_clock;

    bool endless_;
    Clock::time_point end_ = Clock::now();
};
