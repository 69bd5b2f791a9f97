// Rows of a table as directions, where scores are cosines.
#pragma once

#include <cmath>

#include "cpu/rows.h"

namespace zx::cpu {

// Rows shorter than this have a cosine as if they were as long as it; it does not depend on their length, then.
constexpr float kShortest = 1e-12f, kLargestScale = 1 / kShortest;

// What a row is multiplied by to be of length 1.
template <int kBytes>
ZX_HD float inverse_norm(const float* row, int64_t dim) {
  const float norm = sqrtf(dot<float, kBytes>(row, row, dim));
  return 1 / (norm > kShortest ? norm : (norm == norm ? kShortest : norm));
}

// From the sum of a row's derivatives in its direction (the row times `scale`, its inverse_norm) those in the row.
template <int kBytes>
ZX_HD void through_direction(float* __restrict__ sum, const float* __restrict__ row, float scale, int64_t dim) {
  const float along = scale < kLargestScale ? dot<float, kBytes>(sum, row, dim) * scale * scale : 0.0f;
  for (int64_t i = 0; i < dim; ++i) sum[i] = scale * (sum[i] - along * row[i]);
}

}  // namespace zx::cpu
