// Threads for a library under ThreadSanitizer, which sees std::thread, but not how torch's OpenMP, which it did not
// compile, waits for its threads. sanitize_ops.py puts it in the place of torch's parallel_for.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace zx_tsan {

inline int64_t get_num_threads() { return 4; }

// Parallel regions that more than one thread took part in, for threads.py.
inline std::atomic<int64_t> regions{0};

template <class F>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t size = end - begin, threads = std::min(get_num_threads(), (size + grain - 1) / grain);
  if (threads > 1) ++regions;
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    others.emplace_back([&, t] { f(begin + size * t / threads, begin + size * (t + 1) / threads); });
  if (threads > 0) f(begin, begin + size / threads);
  for (std::thread& other : others) other.join();
}

}  // namespace zx_tsan

extern "C" __attribute__((visibility("default"), weak, used)) int64_t zx_tsan_regions() { return zx_tsan::regions; }
