// What ops ask of their tensors: element types, and the tables and ids of matrix factorization.
#pragma once

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
  ZX_CHECK(user.dim() == 2 && item.dim() == 2 && user.size(1) == item.size(1), "the tables must be [U, d] and [I, d]");
  ZX_CHECK(user.is_contiguous() && item.is_contiguous(), "the tables must be contiguous");
  ZX_CHECK(item.scalar_type() == user.scalar_type(), "the tables must have one dtype");
  const auto check_ids = [&](const Tensor& ids, const char* name) {
    call.require_here(ids, name);
    ZX_CHECK(ids.scalar_type() == ScalarType::Long && ids.is_contiguous() && (ids.dim() == 1 || ids.dim() == 2) &&
                 ids.size(0) == users.size(0),
             name, " must be contiguous int64 with one row a sample");
  };
  check_ids(users, "users");
  check_ids(positives, "positives");
  check_ids(negatives, "negatives");
  ZX_CHECK(users.dim() == 1, "users must be [B]");
}

inline int64_t columns_of(const Tensor& ids) { return ids.dim() == 2 ? ids.size(1) : 1; }

}  // namespace zx::cuda
