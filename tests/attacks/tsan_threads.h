// Threads for a library under ThreadSanitizer, which sees std::thread, but not how torch's OpenMP, which it did not
// compile, waits for its threads. sanitize_ops.py puts it in the place of torch's parallel_for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace zx_tsan {

inline int64_t get_num_threads() { return 4; }

template <class F>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t size = end - begin, threads = std::min(get_num_threads(), (size + grain - 1) / grain);
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    others.emplace_back([&, t] { f(begin + size * t / threads, begin + size * (t + 1) / threads); });
  if (threads > 0) f(begin, begin + size / threads);
  for (std::thread& other : others) other.join();
}

}  // namespace zx_tsan
