// What the ops that train ask of their loss and of their numbers.
#pragma once

#include <optional>

#include "checks.h"
#include "common/losses.h"
#include "common/shared_negatives.h"

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

// Lists of negatives that samples share, as csrc/library.cpp names their parts; returns whether there are any. `own`
// are the negatives of samples that share nothing.
inline bool check_shared(const std::optional<Tensor>& lists, const std::optional<Tensor>& start,
                         const std::optional<Tensor>& held, const std::optional<Tensor>& alone, int64_t share,
                         const Tensor& positives, const Tensor& own, int64_t samples) {
  if (!lists && !start && !held && !alone) return false;
  ZX_CHECK(lists && start && held && alone, "lists, start, held and alone must be given together");
  const int64_t k = own.dim() == 2 ? own.size(1) : 1;
  ZX_CHECK(positives.dim() == 1 || positives.size(1) == 1, "samples that share negatives have one positive");
  ZX_CHECK(k > 0, "samples that share negatives must have some");
  ZX_CHECK(share >= 1 && share <= kMostShared, "share must be 1 to ", kMostShared, ", got ", share);
  const auto is = [](const Tensor& t, ScalarType dtype) { return t.scalar_type() == dtype && t.is_contiguous(); };
  ZX_CHECK(is(*lists, ScalarType::Long) && lists->dim() == 2 && lists->size(1) == k &&
               lists->size(0) >= (samples + share - 2) / share + (samples > 0 ? 1 : 0),
           "lists must be [L, K], int64, as many as any start asks for");
  ZX_CHECK(is(*held, ScalarType::Bool) && held->numel() == samples * k, "held must be [B, K], bool");
  ZX_CHECK(is(*alone, ScalarType::Long) && alone->numel() == samples, "alone must be [B], int64");
  ZX_CHECK(is(*start, ScalarType::Long) && start->numel() == 1, "start must be one int64 number");
  return true;
}

}  // namespace zx
