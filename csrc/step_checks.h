// What the ops that train ask of their loss and of their numbers.
#pragma once

#include "checks.h"
#include "common/losses.h"

namespace zx {

// The shape of the samples, and the numbers of a step, which lie on the CPU.
inline void check_step(const Tensor& settings, const Tensor& positives, const Tensor& negatives, bool constants,
                       int64_t loss, int64_t reduction) {
  ZX_CHECK(loss >= 0 && loss < static_cast<int64_t>(Loss::kCount), "no loss has the number ", loss);
  const Loss kind = static_cast<Loss>(loss);
  const Shape shape = shape_of(kind);
  const int64_t num_positives = columns_of(positives), num_negatives = columns_of(negatives);
  ZX_CHECK(num_positives == (shape == Shape::kQuad ? 2 : 1) && (shape != Shape::kQuad || num_negatives == 2) &&
               (shape != Shape::kRow || num_negatives > 0),
           "positives or negatives do not have the shape of this loss");
  ZX_CHECK(constants || !needs_constants(kind), "this loss needs constants");
  ZX_CHECK(reduction == static_cast<int64_t>(Reduction::kSum) || reduction == static_cast<int64_t>(Reduction::kMean),
           "training needs a reduction");
  ZX_CHECK(settings.is_cpu() && settings.scalar_type() == ScalarType::Double && settings.is_contiguous() &&
               settings.dim() == 2 && settings.size(0) == 3 && settings.size(1) == 6,
           "settings must be float64 [3, 6] on the CPU");
}

// The weights of a step's samples.
inline void check_weight(const Tensor& weight, int64_t samples) {
  ZX_CHECK(weight.scalar_type() == ScalarType::Float && weight.is_contiguous() && weight.dim() == 1 &&
               weight.size(0) == samples,
           "weight must be [B], float32");
}

}  // namespace zx
