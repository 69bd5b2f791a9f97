// Threads for CPU kernels: torch's own pool, over blocks of a fixed size.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "cpu/interrupts.h"
#include "torch_stable.h"

namespace zx::cpu {

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

// Calls f(block) for every block in [0, blocks), at least `grain` blocks a task. What a block is must not
// depend on the number of threads: then neither do the results.
template <class F>
inline void for_each_block(int64_t blocks, int64_t grain, const F& f) {
  if (blocks <= 1) {
    if (blocks == 1) f(0);
    return;
  }
  Watch watch;
  if (blocks <= grain) {
    for (int64_t b = 0; b < blocks && !watch.stop(); ++b) f(b);
  } else {
    Failure failure;
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      Watch::Joined joined(watch);
      for (int64_t b = begin; b < end && !watch.stop() && failure.guard([&] { f(b); }); ++b) {
      }
    });
    failure.rethrow();
  }
  watch.raise_if_stopped();
}

// Calls work(next) once in each thread; next() gives a block that nobody has taken yet, or -1 after the last one. For
// blocks of uneven cost, and for work that keeps scratch memory from block to block.
template <class F>
inline void share_blocks(int64_t blocks, const F& work) {
  std::atomic<int64_t> taken{0};
  Watch watch;
  const auto next = [&]() -> int64_t {
    if (watch.stop()) return -1;
    const int64_t block = taken.fetch_add(1);
    return block < blocks ? block : -1;
  };
  const int64_t threads = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  if (threads <= 1) {
    if (threads == 1) work(next);
  } else {
    Failure failure;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      Watch::Joined joined(watch);
      for (int64_t t = begin; t < end; ++t) failure.guard([&] { work(next); });
    });
    failure.rethrow();
  }
  watch.raise_if_stopped();
}

// The loop of a thread that waits for others: a little at full speed, then it leaves the processor to whoever wants it.
class Patience {
 public:
  void wait() {
    if (++turns_ < kSpins) {
#if defined(__x86_64__) && defined(__GNUC__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 256;
  int turns_ = 0;
};

// Threads of one parallel region, of which one, the leader, has blocks of work that the others help with when they have
// nothing else to do.
class Team {
 public:
  explicit Team(Watch& watch) : watch_(watch) {}

  // The team that the calling thread leads, or null.
  static Team*& led() {
    static thread_local Team* team = nullptr;
    return team;
  }

  // For the leader: calls f(block) for every block, with whatever help there is. stoppable: the rest is left out, and
  // an error raised, once a handler of signals has raised.
  template <class F>
  void deal(int64_t blocks, bool stoppable, const F& f) {
    const int64_t each = (blocks + kParts - 1) / kParts, parts = (blocks + each - 1) / each;
    const auto part = [&](int64_t p) {
      for (int64_t b = p * each; b < std::min(blocks, (p + 1) * each); ++b) {
        if (stoppable && watch_.stop()) return;
        f(b);
      }
    };
    context_ = &part;
    work_ = [](const void* context, int64_t p) { (*static_cast<const decltype(part)*>(context))(p); };
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(++jobs_ << 2 * kBits | static_cast<uint64_t>(parts) << kBits, std::memory_order_release);
    while (help()) {
    }
    for (Patience patience; done_.load(std::memory_order_acquire) != parts;) patience.wait();
    failure_.rethrow();
    if (stoppable) watch_.raise_if_stopped();
  }

  // Does one block, if one is left that nobody has taken.
  bool help() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
      if ((ticket & kMost) == (ticket >> kBits & kMost)) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    // (Now the job cannot end before this block does.)
    Team* const led = std::exchange(Team::led(), nullptr);  // what a block does is not dealt again
    failure_.guard([&] { work_(context_, static_cast<int64_t>(ticket & kMost)); });
    Team::led() = led;
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

 private:
  static constexpr int kBits = 20;
  static constexpr uint64_t kMost = (uint64_t{1} << kBits) - 1;
  static constexpr int64_t kParts = static_cast<int64_t>(kMost);
  // Number of the job, how many blocks it has, and how many of them are taken: in one word, so that a block is never
  // taken from a job that is over.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};
  uint64_t jobs_ = 0;
  const void* context_ = nullptr;
  void (*work_)(const void*, int64_t) = nullptr;
  Watch& watch_;
  Failure failure_;
};

// The same as for_each_block, but a thread that is done with a block takes the next: for blocks of some microseconds
// and more. Processors are seldom equally fast, with other work beside them, or cores of two kinds. What a team does is
// done whole unless it is `stoppable`: then it raises in its midst once a handler of signals has.
template <class F>
inline void deal_blocks(int64_t blocks, int64_t grain, bool stoppable, const F& f) {
  if (blocks <= grain) {
    for (int64_t b = 0; b < blocks; ++b) f(b);
    return;
  }
  if (Team* team = Team::led()) return team->deal(blocks, stoppable, f);
  share_blocks(blocks, [&](const auto& next) {
    for (int64_t b = next(); b >= 0; b = next()) f(b);
  });
}

template <class F>
inline void deal_blocks(int64_t blocks, int64_t grain, const F& f) {
  deal_blocks(blocks, grain, false, f);
}

}  // namespace zx::cpu
