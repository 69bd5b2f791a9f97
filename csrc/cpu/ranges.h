// Whether ids are in range: what ops look at before they use ids as addresses, at the speed of memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/macros.h"
#include "cpu/simd.h"

namespace zx::cpu {

// Whether all of ids[0 .. n) are in [0, bound).
template <class Index>
struct AllBelow {
  ZX_HD static bool run(const Index* ids, int64_t n, int64_t bound) {
    using Bits = std::make_unsigned_t<Index>;
    const Bits last = static_cast<Bits>(std::min<int64_t>(bound - 1, std::numeric_limits<Index>::max()));
    Bits outside = 0;  // (whose highest bit tells: a loop without branches, which SIMD units do)
    for (int64_t i = 0; i < n; ++i) outside |= static_cast<Bits>(ids[i]) | (last - static_cast<Bits>(ids[i]));
    return static_cast<Index>(outside) >= 0;
  }
};

template <class Index>
inline bool all_below(const Index* ids, int64_t n, int64_t bound) {
  return simd<AllBelow<Index>>(ids, n, bound);
}

}  // namespace zx::cpu
