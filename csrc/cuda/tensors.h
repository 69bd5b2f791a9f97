// What ops ask of their tensors: element types, and the tables and ids of matrix factorization.
#pragma once

#include "checks.h"
#include "cuda/call.h"
#include "cuda/loss_common.cuh"

namespace zx::cuda {

inline ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      ZX_CHECK(false, "expected a float32, float64, float16 or bfloat16 tensor");
  }
}

inline void check_mf_tensors(const Call& call, const Tensor& user, const Tensor& item, const Tensor& users,
                             const Tensor& positives, const Tensor& negatives) {
  call.require_here(item, "item_embedding");
  call.require_here(users, "users");
  call.require_here(positives, "positives");
  call.require_here(negatives, "negatives");
  zx::check_mf_tensors(user, item, users, positives, negatives);
  ZX_CHECK(users.dim() == 1, "users must be [B]");
}

inline int64_t columns_of(const Tensor& ids) { return ids.dim() == 2 ? ids.size(1) : 1; }

}  // namespace zx::cuda
