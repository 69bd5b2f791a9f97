// Threads for CPU kernels: torch's own pool, over blocks of a fixed size.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>

#include "torch_stable.h"

namespace zx::cpu {

// Calls f(block) for every block in [0, blocks), at least `grain` blocks a task. What a block is must not
// depend on the number of threads: then neither do the results.
template <class F>
inline void for_each_block(int64_t blocks, int64_t grain, const F& f) {
  if (blocks <= grain) {
    for (int64_t b = 0; b < blocks; ++b) f(b);
    return;
  }
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b);
  });
}

// Calls work(next) once in each thread; next() gives a block that nobody has taken yet, or -1 after the last one. For
// blocks of uneven cost, and for work that keeps scratch memory from block to block.
template <class F>
inline void share_blocks(int64_t blocks, const F& work) {
  std::atomic<int64_t> taken{0};
  const auto next = [&]() -> int64_t {
    const int64_t block = taken.fetch_add(1);
    return block < blocks ? block : -1;
  };
  const int64_t threads = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  for_each_block(threads, 1, [&](int64_t) { work(next); });
}

// The same as for_each_block, but a thread that is done with a block takes the next: for blocks of some microseconds
// and more. Processors are seldom equally fast, with other work beside them, or cores of two kinds.
template <class F>
inline void deal_blocks(int64_t blocks, int64_t grain, const F& f) {
  if (blocks <= grain) {
    for (int64_t b = 0; b < blocks; ++b) f(b);
    return;
  }
  share_blocks(blocks, [&](const auto& next) {
    for (int64_t b = next(); b >= 0; b = next()) f(b);
  });
}

// The first exception of what threads do: it must not leave a parallel region, which goes through C.
class Failure {
 public:
  // Runs f(); false if it failed, or anything guarded before.
  template <class F>
  bool guard(const F& f) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    try {
      f();
      return true;
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
      return false;
    }
  }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // To be called after the region.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace zx::cpu
