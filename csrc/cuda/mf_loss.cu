// mf_loss on CUDA tensors.
#include "cuda/mf_loss.cuh"

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "cuda/tensors.h"

namespace zx::cuda {

std::tuple<Tensor, Tensor, Tensor> mf_loss(const Tensor& user_embedding, const Tensor& item_embedding,
                                           std::optional<Tensor> item_bias, const Tensor& users,
                                           const Tensor& positives, const Tensor& negatives,
                                           std::optional<Tensor> constants, std::optional<Tensor> weight, int64_t loss,
                                           double a, double b, double c, double l2, int64_t reduction, bool grad) {
  const Call call(user_embedding);
  check_mf_tensors(call, user_embedding, item_embedding, users, positives, negatives);
  call.require_here(item_bias, "item_bias");
  call.require_here(constants, "constants");
  call.require_here(weight, "weight");
  ZX_CHECK(loss >= 0 && loss < static_cast<int64_t>(Loss::kCount), "no loss has the number ", loss);
  const Loss kind = static_cast<Loss>(loss);
  const Shape shape = shape_of(kind);
  const ScalarType dtype = user_embedding.scalar_type(), compute = compute_type(dtype);
  const int64_t rows = users.size(0), num_items = item_embedding.size(0), k = columns_of(negatives);
  ZX_CHECK(columns_of(positives) == (shape == Shape::kQuad ? 2 : 1) && (shape != Shape::kQuad || k == 2) &&
               (shape != Shape::kRow || k > 0),
           "positives or negatives do not have the shape of this loss");
  if (item_bias)
    ZX_CHECK(item_bias->dim() == 1 && item_bias->size(0) == num_items && item_bias->is_contiguous() &&
                 item_bias->scalar_type() == dtype,
             "item_bias must be [I], of the tables' dtype");
  if (constants)
    ZX_CHECK(constants->scalar_type() == compute && constants->is_contiguous() && constants->dim() == 1 &&
                 constants->size(0) == num_items,
             "constants must be [I], in the arithmetic's dtype");
  ZX_CHECK(constants || !needs_constants(kind), "this loss needs constants");
  const bool weight_per_pair = weight && weight->dim() == 2;
  if (weight)
    ZX_CHECK(weight->scalar_type() == compute && weight->is_contiguous() && weight->size(0) == rows &&
                 (!weight_per_pair || (shape == Shape::kPair && weight->size(1) == k)),
             "weight must be [B], or [B, K] for a loss of pairs");
  const Reduction reduce = static_cast<Reduction>(reduction);
  const bool keep = reduce == Reduction::kNone;
  ZX_CHECK(!keep || l2 == 0, "l2 needs a reduction");

  const int64_t items = columns_of(positives) + k;
  const bool matrix = shape == Shape::kPair && negatives.dim() == 2;
  Tensor value = !keep    ? new_tensor(users, {}, compute)
                 : matrix ? new_tensor(users, {rows, k}, dtype)
                          : new_tensor(users, {rows}, dtype);
  Tensor coefficient = grad ? new_tensor(users, {rows, items}, compute) : new_tensor(users, {0}, compute);
  // Where derivatives are not wanted, the losses of rows need the place for their scores all the same.
  const bool scratch = !grad && needs_scores(kind, grad);
  const Tensor scores = scratch ? new_tensor(users, {rows, items}, compute) : coefficient;
  const Tensor workspace = new_tensor(users, {keep ? 0 : kSumWorkspace}, ScalarType::Double);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  // All bits set: -1, and the largest of the unsigned numbers that the least is taken of.
  call.fill(failed.data_ptr(), 0xff, 8);

  MfProblem p;
  p.user = user_embedding.data_ptr(), p.item = item_embedding.data_ptr();
  p.bias = item_bias ? item_bias->data_ptr() : nullptr;
  p.constants = constants ? constants->data_ptr() : nullptr;
  p.weight = weight ? weight->data_ptr() : nullptr;
  p.num_users = user_embedding.size(0), p.num_items = num_items, p.dim = user_embedding.size(1);
  p.users = data<int64_t>(users), p.positives = data<int64_t>(positives), p.negatives = data<int64_t>(negatives);
  p.rows = rows, p.k = k, p.weight_per_pair = weight_per_pair;
  p.value = value.data_ptr(), p.coefficient = grad || scratch ? scores.data_ptr() : nullptr, p.grad = grad;
  p.workspace = keep ? nullptr : data<double>(workspace), p.ticket = new_ticket(), p.reduction = reduce;
  p.a = a, p.b = b, p.c = c, p.l2 = l2;
  p.failed = data<unsigned long long>(failed);
  zx::mf_loss(element_of(dtype), kind, p, call.stream());
  Call::check();
  return {value, coefficient, failed};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("mf_loss", ZX_BOX(&zx::cuda::mf_loss)); }

#endif
