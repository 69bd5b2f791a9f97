// The tensors of a matrix factorization problem, checked.
#pragma once

#include "checks.h"
#include "cpu/mf_block.h"
#include "cpu/ranges.h"

namespace zx::cpu {

inline ScalarType arithmetic_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// First position of ids [0, n) that is not in [0, size), or -1.
inline int64_t first_outside(const int64_t* ids, int64_t n, int64_t size) {
  if (!all_below(ids, n, size))
    for (int64_t i = 0; i < n; ++i)
      if (static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(size)) return i;
  return -1;
}

// Throws if samples name rows that the tables do not have.
template <class S, class C>
void check_ids_in_range(const MfInputs<S, C>& in, int64_t samples, int64_t num_users, int64_t num_items) {
  ZX_CHECK(first_outside(in.users, samples, num_users) < 0 &&
               first_outside(in.positives, samples * in.num_positives, num_items) < 0 &&
               first_outside(in.negatives, samples * in.num_negatives, num_items) < 0,
           "users, positives and negatives must be in range");
}

// The tables of a problem, without samples.
template <class S, class C>
MfInputs<S, C> mf_table_inputs(const Tensor& user, const Tensor& item, const std::optional<Tensor>& bias) {
  check_mf_tables(user, item);
  ZX_CHECK(user.scalar_type() == scalar_type_of<S>, "the tables do not have the dtype that this op takes");
  if (bias)
    ZX_CHECK(bias->dim() == 1 && bias->size(0) == item.size(0) && bias->is_contiguous() &&
                 bias->scalar_type() == item.scalar_type(),
             "item_bias must be [I], of the tables' dtype");
  MfInputs<S, C> in;
  in.user = data<S>(user), in.item = data<S>(item), in.bias = data_or_null<S>(bias), in.dim = user.size(1);
  return in;
}

template <class S, class C>
MfInputs<S, C> mf_inputs(const Tensor& user, const Tensor& item, const std::optional<Tensor>& bias, const Tensor& users,
                         const Tensor& positives, const Tensor& negatives) {
  check_mf_tensors(user, item, users, positives, negatives);
  MfInputs<S, C> in = mf_table_inputs<S, C>(user, item, bias);
  in.users = data<int64_t>(users), in.positives = data<int64_t>(positives), in.negatives = data<int64_t>(negatives);
  in.num_positives = columns_of(positives), in.num_negatives = columns_of(negatives);
  return in;
}

}  // namespace zx::cpu
