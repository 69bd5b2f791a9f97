// pair_loss on the CPU: losses of a positive and a negative score, or of two and two.
#include <tuple>

#include "cpu/element_loss.h"

namespace zx::cpu {

std::tuple<Tensor, Tensor, Tensor> pair_loss(const Tensor& pos, const Tensor& neg, std::optional<Tensor> weight,
                                             int64_t loss, double a, double b, double c, int64_t reduction, bool grad) {
  const ScalarType dtype = pos.scalar_type();
  ZX_CHECK(neg.scalar_type() == dtype, "pos and neg must have one dtype");
  const bool quad = loss >= static_cast<int64_t>(Loss::kPos2Neg2);
  ElementProblem problem;
  problem.rows = pos.size(0);
  problem.reduction = static_cast<Reduction>(reduction);
  problem.a = a, problem.b = b, problem.c = c;
  ZX_CHECK(neg.size(0) == problem.rows, "pos and neg must have the same number of rows");
  if (quad) {
    ZX_CHECK(pos.dim() == 2 && neg.dim() == 2 && pos.size(1) == 2 && neg.size(1) == 2, "pos and neg must be [B, 2]");
  } else {
    ZX_CHECK(pos.dim() == 1 && (neg.dim() == 1 || neg.dim() == 2), "pos must be [B], neg [B] or [B, K]");
    problem.cols = neg.dim() == 2 ? neg.size(1) : 1;
  }
  const int64_t rows = problem.rows, cols = problem.cols;
  const ScalarType compute = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  if (weight) {
    ZX_CHECK(weight->scalar_type() == compute, "weight must have the dtype of the arithmetic");
    ZX_CHECK(weight->size(0) == rows, "weight must have one row per sample");
    problem.weight = view_of(*weight, cols);
  }
  const bool keep = problem.reduction == Reduction::kNone;
  const bool matrix = neg.dim() == 2 && !quad;
  Tensor value = !keep    ? new_tensor(pos, {}, compute)
                 : matrix ? new_tensor(pos, {rows, cols}, dtype)
                          : new_tensor(pos, {rows}, dtype);
  problem.value = value.data_ptr();

  Tensor grad_pos, grad_neg;
  if (!grad) {
    grad_pos = new_tensor(pos, {0}, dtype);
    grad_neg = new_tensor(pos, {0}, dtype);
  } else if (quad) {
    grad_pos = new_tensor(pos, {rows, 2}, dtype);
    grad_neg = new_tensor(pos, {rows, 2}, dtype);
  } else {
    grad_pos = new_tensor(pos, {rows}, dtype);
    grad_neg = matrix ? new_tensor(pos, {rows, cols}, dtype) : new_tensor(pos, {rows}, dtype);
  }

  const int64_t size = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  if (quad) {
    for (const Tensor* t : {&pos, &neg})
      for (int64_t i = 0; i < 2; ++i)
        problem.scores.push_back({static_cast<const char*>(t->data_ptr()) + i * t->stride(1) * size, t->stride(0), 1});
    if (grad)
      for (const Tensor* t : {&grad_pos, &grad_neg})
        for (int64_t i = 0; i < 2; ++i)
          problem.grads.push_back({static_cast<char*>(t->data_ptr()) + i * size, 2, false});
  } else {
    problem.scores = {view_of(pos, cols), view_of(neg, cols)};
    if (grad) problem.grads = {{grad_pos.data_ptr(), 1, cols != 1}, {grad_neg.data_ptr(), 1, false}};
  }

  switch (static_cast<Loss>(loss)) {
#define ZX_CASE(kind, name, type)       \
  case Loss::kind:                      \
    element_loss<type>(problem, dtype); \
    break;
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      ZX_CHECK(false, "no loss has the number ", loss);
  }
  return {value, grad_pos, grad_neg};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("pair_loss", TORCH_BOX(&zx::cpu::pair_loss)); }
