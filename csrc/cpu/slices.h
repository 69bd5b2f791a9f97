// Passes of one thread that may take seconds, so that Ctrl-C has to end them too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/interrupts.h"

namespace zx::cpu {

// Calls f(begin, end) for one slice of [0, n) after another, and raises between two of them once a handler has. The
// thread may be one that helps in a parallel region: then that region's watch is looked at.
template <class F>
inline void in_slices(int64_t n, const F& f) {
  constexpr int64_t kSlice = 1 << 18;
  if (n <= kSlice) return n > 0 ? f(0, n) : void();
  std::optional<Watch> own;
  Watch& watch = Watch::current() != nullptr ? *Watch::current() : own.emplace();
  for (int64_t begin = 0; begin < n; begin += kSlice) {
    f(begin, std::min(n, begin + kSlice));
    if (watch.stop()) watch.raise_if_stopped();
  }
}

// std::sort, which raises in its midst once a handler has; the range is then in no order.
template <class Iterator, class Less>
inline void sort_watched(Iterator first, Iterator last, const Less& less) {
  constexpr uint32_t kComparisons = 1 << 18;
  Watch watch;
  uint32_t left = kComparisons;
  std::sort(first, last, [&](const auto& a, const auto& b) {
    if (--left == 0) {
      left = kComparisons;
      if (watch.stop()) watch.raise_if_stopped();
    }
    return less(a, b);
  });
}

}  // namespace zx::cpu
