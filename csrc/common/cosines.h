// Rows of a table as directions, where scores are cosines.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace zx {

// Rows shorter than this have a cosine as if they were as long as it; it does not depend on their length, then.
constexpr float kShortest = 1e-12f, kLargestScale = 1 / kShortest;

// What a row is multiplied by to be of length 1, from the sum of its squares.
ZX_HD float inverse_length(float squares) {
  const float norm = sqrtf(squares);
  return 1 / (norm > kShortest ? norm : (norm == norm ? kShortest : norm));
}

// How much of a row is taken off the derivatives in its direction: `product` is that of both, `scale` the row's
// inverse_length.
ZX_HD float along_row(float product, float scale) { return scale < kLargestScale ? product * scale * scale : 0.0f; }

}  // namespace zx
