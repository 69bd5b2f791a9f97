// pair_loss and macr_loss on the CPU: every loss of csrc/common/losses.h.
#include <tuple>

#include "checks.h"
#include "cpu/element_loss.h"
#include "cpu/row_loss.h"

namespace zx::cpu {
namespace {

int64_t element_size(ScalarType dtype) { return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2; }

ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

// The view of a [B] or [B, K] tensor as rows x cols; [B] repeats over the columns.
View view_of(const Tensor& t, int64_t rows, int64_t cols, ScalarType dtype, const char* name) {
  ZX_CHECK(t.scalar_type() == dtype, name, " has an unexpected dtype");
  const bool matrix = t.dim() == 2;
  ZX_CHECK((matrix || t.dim() == 1) && t.size(0) == rows && (!matrix || t.size(1) == cols), name, " must be [", rows,
           "] or [", rows, ", ", cols, "]");
  return {t.data_ptr(), t.stride(0), matrix ? t.stride(1) : (cols == 1 ? 1 : 0)};
}

// An uninitialised tensor of the shape of `like`, which has one or two dimensions.
Tensor new_like(const Tensor& like, ScalarType dtype) {
  return like.dim() == 2 ? new_tensor(like, {like.size(0), like.size(1)}, dtype)
                         : new_tensor(like, {like.size(0)}, dtype);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pair_loss(const Tensor& pos, const Tensor& neg, std::optional<Tensor> aux_pos,
                                             std::optional<Tensor> aux_neg, std::optional<Tensor> weight, int64_t loss,
                                             double a, double b, double c, int64_t reduction, bool grad) {
  const ScalarType dtype = pos.scalar_type(), compute = compute_type(dtype);
  const Shape shape = shape_of(checked_loss(loss));
  ElementProblem problem;
  problem.rows = pos.size(0);
  problem.cols = shape != Shape::kQuad && neg.dim() == 2 ? neg.size(1) : 1;
  problem.reduction = checked_reduction(reduction);
  problem.grad = grad;
  problem.a = a, problem.b = b, problem.c = c;
  const int64_t rows = problem.rows, cols = problem.cols;

  if (weight) problem.weight = view_of(*weight, rows, shape == Shape::kPair ? cols : 1, compute, "weight");
  const bool keep = problem.keep_values();
  ZX_CHECK((neg.dim() == 1 || neg.dim() == 2) && pos.dim() == (shape == Shape::kQuad ? 2 : 1),
           "pos and neg must be [B] and [B] or [B, K], or both [B, 2] for losses of two pairs");
  Tensor value = !keep                   ? new_tensor(pos, {}, compute)
                 : shape == Shape::kPair ? new_like(neg, dtype)
                                         : new_tensor(pos, {rows}, dtype);
  problem.value = value.data_ptr();
  Tensor grad_pos = grad ? new_like(pos, dtype) : new_tensor(pos, {0}, dtype);
  Tensor grad_neg = grad ? new_like(neg, dtype) : new_tensor(pos, {0}, dtype);

  if (shape == Shape::kQuad) {
    ZX_CHECK(pos.dim() == 2 && neg.dim() == 2 && pos.size(1) == 2 && neg.size(1) == 2 && neg.size(0) == rows,
             "pos and neg must be [B, 2]");
    ZX_CHECK(neg.scalar_type() == dtype, "pos and neg must have one dtype");
    const int64_t size = element_size(dtype);
    int i = 0;
    for (const Tensor* t : {&pos, &neg})
      for (int64_t column = 0; column < 2; ++column)
        problem.scores[i++] = {static_cast<const char*>(t->data_ptr()) + column * t->stride(1) * size, t->stride(0), 1};
    problem.grads[0] = problem.grads[1] = {grad_pos.data_ptr(), false, true};
    problem.grads[2] = problem.grads[3] = {grad_neg.data_ptr(), false, true};
  } else {
    problem.scores[0] = view_of(pos, rows, cols, dtype, "pos");
    problem.scores[1] = view_of(neg, rows, cols, dtype, "neg");
    problem.grads[0] = {grad_pos.data_ptr(), cols != 1, false};
    problem.grads[1] = {grad_neg.data_ptr(), false, false};
    if (aux_pos) problem.aux[0] = view_of(*aux_pos, rows, shape == Shape::kRow ? 1 : cols, compute, "aux_pos");
    if (aux_neg) problem.aux[1] = view_of(*aux_neg, rows, cols, compute, "aux_neg");
  }
  if (shape == Shape::kRow) ZX_CHECK(neg.dim() == 2 && cols > 0, "neg must be [B, K] with K >= 1");

  switch (static_cast<Loss>(loss)) {
#define ZX_CASE(kind, name, type)                                                          \
  case Loss::kind:                                                                         \
    ZX_CHECK(type::kAux == 0 || (aux_pos && aux_neg), name, " needs aux_pos and aux_neg"); \
    element_loss<type>(problem, dtype);                                                    \
    break;
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
#define ZX_CASE(kind, name, type)   \
  case Loss::kind:                  \
    row_loss<type>(problem, dtype); \
    break;
    ZX_ROW_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      ZX_CHECK(false, "no loss has the number ", loss);
  }
  return {value, grad_pos, grad_neg};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> macr_loss(const Tensor& pos, const Tensor& neg,
                                                                     const Tensor& user_branch,
                                                                     const Tensor& pos_branch, const Tensor& neg_branch,
                                                                     std::optional<Tensor> weight, double alpha,
                                                                     double beta, int64_t reduction, bool grad) {
  const ScalarType dtype = pos.scalar_type(), compute = compute_type(dtype);
  ElementProblem problem;
  problem.rows = pos.size(0);
  problem.cols = neg.dim() == 2 ? neg.size(1) : 1;
  problem.reduction = checked_reduction(reduction);
  problem.grad = grad;
  problem.a = alpha, problem.b = beta;
  const int64_t rows = problem.rows, cols = problem.cols;
  if (weight) problem.weight = view_of(*weight, rows, cols, compute, "weight");
  ZX_CHECK(neg.dim() == 1 || neg.dim() == 2, "neg must be [B] or [B, K]");
  Tensor value = problem.keep_values() ? new_like(neg, dtype) : new_tensor(pos, {}, compute);
  problem.value = value.data_ptr();
  const std::array<const Tensor*, 5> inputs{&pos, &neg, &user_branch, &pos_branch, &neg_branch};
  std::array<Tensor, 5> grads;
  for (int i = 0; i < 5; ++i) {
    problem.scores[i] = view_of(*inputs[i], rows, cols, dtype, "a score");
    grads[i] = grad ? new_like(*inputs[i], dtype) : new_tensor(pos, {0}, dtype);
    problem.grads[i] = {grads[i].data_ptr(), inputs[i]->dim() == 1 && cols != 1, false};
  }
  element_loss<Macr>(problem, dtype);
  return {value, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

namespace {

void scale(const std::vector<Tensor>& gradients, const std::vector<Tensor>& out, const Tensor& factor) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& g = gradients[i];
    ZX_CHECK(g.dim() == 1 || g.dim() == 2, "gradients must be [B] or [B, K]");
    ZX_CHECK(g.is_contiguous() && factor.numel() == 1 && factor.scalar_type() == compute_type(g.scalar_type()),
             "gradients must be contiguous, and factor one number in the arithmetic's dtype");
    dispatch_floating(g.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      const auto by = *static_cast<const compute_t<S>*>(factor.data_ptr());
      if (by == 1 && g.data_ptr() == out[i].data_ptr()) return;
      const S* from = data<const S>(g);
      S* to = data<S>(out[i]);
      for (int64_t k = 0, n = g.numel(); k < n; ++k) to[k] = static_cast<S>(static_cast<compute_t<S>>(from[k]) * by);
    });
  }
}

}  // namespace

void scale_gradients_(std::vector<Tensor> gradients, const Tensor& factor) { scale(gradients, gradients, factor); }

std::vector<Tensor> scale_gradients(std::vector<Tensor> gradients, const Tensor& factor) {
  std::vector<Tensor> out;
  for (const Tensor& g : gradients) {
    ZX_CHECK(g.dim() == 1 || g.dim() == 2, "gradients must be [B] or [B, K]");
    out.push_back(new_like(g, g.scalar_type()));
  }
  scale(gradients, out, factor);
  return out;
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("pair_loss", ZX_BOX(&zx::cpu::pair_loss));
  m.impl("macr_loss", ZX_BOX(&zx::cpu::macr_loss));
  m.impl("scale_gradients_", ZX_BOX(&zx::cpu::scale_gradients_));
  m.impl("scale_gradients", ZX_BOX(&zx::cpu::scale_gradients));
}
