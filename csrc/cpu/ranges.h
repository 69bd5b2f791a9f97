// Whether ids are in range: what ops look at before they use ids as addresses, at the speed of memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/macros.h"
#include "cpu/simd.h"

namespace zx::cpu {

// Whether all of ids[0 .. n) are in [0, bound).
template <class Index>
struct AllBelow {
  ZX_HD static bool run(const Index* ids, int64_t n, int64_t bound) {
    Index least = 0, most = 0;  // (two running numbers: a loop without branches, which SIMD units do)
    for (int64_t i = 0; i < n; ++i) {
      least = std::min(least, ids[i]);
      most = std::max(most, ids[i]);
    }
    return least >= 0 && (n <= 0 || static_cast<int64_t>(most) < bound);
  }
};

template <class Index>
inline bool all_below(const Index* ids, int64_t n, int64_t bound) {
  return simd<AllBelow<Index>>(ids, n, bound);
}

}  // namespace zx::cpu
