// A number that is known when an op is called, or one in memory that is read when it is wanted: on a GPU, when the
// kernel runs.
#pragma once

#include "common/macros.h"

namespace zx {

struct Number {
  double value;
  const float* single;    // or null
  const double* twofold;  // or null

  ZX_HD double read() const {
    return single != nullptr ? static_cast<double>(*single) : twofold != nullptr ? *twofold : value;
  }
  bool known() const { return single == nullptr && twofold == nullptr; }
};

// The number at `place`, a double if `wide` and else a float; `value` where there is no place.
inline Number number_at(const void* place, bool wide, double value) {
  if (place == nullptr) return {value, nullptr, nullptr};
  if (wide) return {value, nullptr, static_cast<const double*>(place)};
  return {value, static_cast<const float*>(place), nullptr};
}

}  // namespace zx
