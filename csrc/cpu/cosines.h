// Rows of a table as directions, where scores are cosines.
#pragma once

#include "common/cosines.h"
#include "cpu/rows.h"

namespace zx::cpu {

// What a row is multiplied by to be of length 1.
template <int kBytes>
ZX_HD float inverse_norm(const float* row, int64_t dim) {
  return inverse_length(dot<float, kBytes>(row, row, dim));
}

// From the sum of a row's derivatives in its direction (the row times `scale`, its inverse_norm) those in the row.
template <int kBytes>
ZX_HD void through_direction(float* __restrict__ sum, const float* __restrict__ row, float scale, int64_t dim) {
  const float along = along_row(dot<float, kBytes>(sum, row, dim), scale);
  for (int64_t i = 0; i < dim; ++i) sum[i] = scale * (sum[i] - along * row[i]);
}

}  // namespace zx::cpu
