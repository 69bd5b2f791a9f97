// Places of a user's few numbers among each other.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/csr.h"
#include "cpu/simd.h"

namespace zx::cpu {

template <class T>
using int_of = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

constexpr int64_t kPlaceGroup = 16;

// below[i]: how many of the n values are less than value i. Both arrays have room up to a multiple of 16.
template <class T>
struct CountBelow {
  ZX_HD static void run(const T* values, int64_t n, int32_t* below) {
    for (int64_t i = 0; i < n; i += kPlaceGroup) {
      int_of<T> count[kPlaceGroup] = {};
      for (int64_t j = 0; j < n; ++j)
        for (int64_t l = 0; l < kPlaceGroup; ++l) count[l] += values[j] < values[i + l];
      for (int64_t l = 0; l < kPlaceGroup; ++l) below[i + l] = static_cast<int32_t>(count[l]);
    }
  }
};

// For each of n numbers how many of them are less. Kept from user to user for its memory.
template <class T>
class Places {
 public:
  // Room for n numbers, to be written.
  T* start(int64_t n) {
    n_ = n;
    const size_t room = static_cast<size_t>((n + kPlaceGroup - 1) / kPlaceGroup * kPlaceGroup);
    values_.resize(room);
    below_.resize(room);
    return values_.data();
  }

  // Up to some hundred numbers it takes less time to compare each with all than to sort them.
  const int32_t* below() {
    if (n_ <= 256) {
      simd<CountBelow<T>>(static_cast<const T*>(values_.data()), n_, below_.data());
      return below_.data();
    }
    sorted_.assign(values_.begin(), values_.begin() + n_);
    std::sort(sorted_.begin(), sorted_.end());
    for (int64_t i = 0; i < n_; ++i)
      below_[static_cast<size_t>(i)] =
          static_cast<int32_t>(lower_bound(sorted_.data(), n_, values_[static_cast<size_t>(i)]));
    return below_.data();
  }

 private:
  int64_t n_ = 0;
  std::vector<T> values_, sorted_;
  std::vector<int32_t> below_;
};

}  // namespace zx::cpu
