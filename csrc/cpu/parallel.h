// Threads for CPU kernels: torch's own pool, over blocks of a fixed size.
#pragma once

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

}  // namespace zx::cpu
