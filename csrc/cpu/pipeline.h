// Two stages of work on numbered units: threads prepare units ahead of one that finishes them in order.
#pragma once

#include <atomic>
#include <vector>

#include "cpu/parallel.h"

namespace zx::cpu {

// Calls prepare(worker, unit, slot) for every unit in [0, units), in any thread and order, and after it finish(unit,
// slot) for one unit after another, in one thread, which leads the others: what it deals (deal_blocks) they help with
// before they prepare anything. At most `slots` units are under way: unit u has slot u % slots. With one slot there is
// nothing to do ahead: the leader prepares too, and is helped with that. workers: how many threads at most; what they
// do, and so the results, do not depend on it. Where only one is to be had it does all.
template <class Prepare, class Finish>
void run_pipeline(int64_t units, int64_t slots, int64_t workers, const Prepare& prepare, const Finish& finish) {
  std::atomic<int64_t> claimed{0}, finished{0};
  std::vector<std::atomic<int64_t>> prepared(static_cast<size_t>(slots));  // the unit that a slot holds, and 1
  for (auto& unit : prepared) unit.store(0, std::memory_order_relaxed);
  std::atomic<bool> taken{false}, finishing{false};
  Failure failure;
  Watch watch;  // between units, and in their midst where they allow it
  Team team(watch);
  const auto work = [&](int64_t worker) {
    const Watch::Joined joined(watch);
    const bool leads = !taken.exchange(true);
    if (leads) Team::led() = &team;
    Patience patience;
    while (!failure.failed()) {
      const bool stopped = watch.stop();
      // (What cannot be stopped any more is helped with.)
      if (stopped && !finishing.load(std::memory_order_relaxed)) break;
      const int64_t done = finished.load(std::memory_order_acquire);
      if (done == units) break;
      if (leads && prepared[static_cast<size_t>(done % slots)].load(std::memory_order_acquire) == done + 1) {
        finishing.store(true, std::memory_order_relaxed);
        if (failure.guard([&] { finish(done, done % slots); })) finished.store(done + 1, std::memory_order_release);
        finishing.store(false, std::memory_order_relaxed);
        continue;
      }
      int64_t unit = claimed.load(std::memory_order_relaxed);
      if (!leads && team.help()) {
        patience = {};
      } else if (!stopped && (leads || slots > 1) && unit < units && unit < done + slots &&
                 claimed.compare_exchange_strong(unit, unit + 1)) {
        const int64_t slot = unit % slots;
        if (failure.guard([&] { prepare(worker, unit, slot); }))
          prepared[static_cast<size_t>(slot)].store(unit + 1, std::memory_order_release);
        patience = {};
      } else {
        patience.wait();
      }
    }
    if (leads) Team::led() = nullptr;
  };
  if (workers <= 1)
    work(0);
  else
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) work(worker);
    });
  failure.rethrow();
  watch.raise_if_stopped();
}

}  // namespace zx::cpu
