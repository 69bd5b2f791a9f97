// The tensors of a matrix factorization problem, checked.
#pragma once

#include "cpu/mf_block.h"
#include "torch_stable.h"

namespace zx::cpu {

inline ScalarType arithmetic_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// First position of ids [0, n) that is not in [0, size), or -1.
inline int64_t first_outside(const int64_t* ids, int64_t n, int64_t size) {
  uint64_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(size);
  if (bad != 0)
    for (int64_t i = 0; i < n; ++i)
      if (static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(size)) return i;
  return -1;
}

inline void check_ids(const Tensor& ids, int64_t rows, const char* name) {
  ZX_CHECK(ids.scalar_type() == ScalarType::Long && ids.is_contiguous() && (ids.dim() == 1 || ids.dim() == 2) &&
               ids.size(0) == rows,
           name, " must be contiguous int64 with one row a sample");
}

template <class S, class C>
MfInputs<S, C> mf_inputs(const Tensor& user, const Tensor& item, const std::optional<Tensor>& bias, const Tensor& users,
                         const Tensor& positives, const Tensor& negatives) {
  const int64_t rows = users.size(0);
  ZX_CHECK(user.dim() == 2 && item.dim() == 2 && user.size(1) == item.size(1), "the tables must be [U, d] and [I, d]");
  ZX_CHECK(user.is_contiguous() && item.is_contiguous(), "the tables must be contiguous");
  ZX_CHECK(item.scalar_type() == user.scalar_type(), "the tables must have one dtype");
  check_ids(users, rows, "users");
  check_ids(positives, rows, "positives");
  check_ids(negatives, rows, "negatives");
  if (bias)
    ZX_CHECK(bias->dim() == 1 && bias->size(0) == item.size(0) && bias->is_contiguous() &&
                 bias->scalar_type() == item.scalar_type(),
             "item_bias must be [I], of the tables' dtype");
  MfInputs<S, C> in;
  in.user = data<S>(user), in.item = data<S>(item), in.bias = bias ? data<S>(*bias) : nullptr;
  in.dim = user.size(1);
  in.users = data<int64_t>(users), in.positives = data<int64_t>(positives), in.negatives = data<int64_t>(negatives);
  in.num_positives = positives.dim() == 2 ? positives.size(1) : 1;
  in.num_negatives = negatives.dim() == 2 ? negatives.size(1) : 1;
  return in;
}

}  // namespace zx::cpu
