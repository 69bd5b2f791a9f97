// Places of a user's few numbers among each other.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/csr.h"
#include "cpu/simd.h"

namespace zx::cpu {

template <class T>
using int_of = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// n is followed by NaN up to a multiple of 64 values.
template <class T>
struct CountBelow {
  ZX_HD static void run(const T* values, int64_t n, int32_t* below) {
    const int64_t padded = (n + 63) / 64 * 64;
    for (int64_t i = 0; i < n; ++i) {
      const T value = values[i];
      int_of<T> count = 0;
      for (int64_t j = 0; j < padded; ++j) count += values[j] < value;
      below[i] = static_cast<int32_t>(count);
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
    values_.assign(static_cast<size_t>((n + 63) / 64 * 64), std::numeric_limits<T>::quiet_NaN());
    below_.resize(static_cast<size_t>(n));
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
