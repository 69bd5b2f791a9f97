// pair_loss and macr_loss on CUDA tensors.
#include "cuda/pair_loss.cuh"

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>
#include <vector>

#include "cuda/tensors.h"

namespace zx::cuda {
namespace {

// A [rows] or [rows, cols] tensor.
TensorRef ref(const Tensor& t, int64_t rows, int64_t cols, ScalarType dtype, const char* name) {
  ZX_CHECK(t.scalar_type() == dtype, name, " has an unexpected dtype");
  const bool matrix = t.dim() == 2;
  ZX_CHECK((matrix || t.dim() == 1) && t.size(0) == rows && (!matrix || t.size(1) == cols), name, " must be [", rows,
           "] or [", rows, ", ", cols, "]");
  return {t.data_ptr(), matrix ? 2 : 1, {t.stride(0), matrix ? t.stride(1) : 0}};
}

Tensor new_like(const Tensor& like, ScalarType dtype) {
  return like.dim() == 2 ? new_tensor(like, {like.size(0), like.size(1)}, dtype)
                         : new_tensor(like, {like.size(0)}, dtype);
}

// For a sum; the tensor may be freed after the launch, as its memory is reused in stream order.
Tensor new_workspace(const Tensor& like, Reduction reduction) {
  return new_tensor(like, {reduction == Reduction::kNone ? 0 : kSumWorkspace}, ScalarType::Double);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pair_loss(const Tensor& pos, const Tensor& neg, std::optional<Tensor> aux_pos,
                                             std::optional<Tensor> aux_neg, std::optional<Tensor> weight, int64_t loss,
                                             double a, double b, double c, int64_t reduction, bool grad) {
  const Call call(pos);
  call.require_here(neg, "neg");
  call.require_here(aux_pos, "aux_pos");
  call.require_here(aux_neg, "aux_neg");
  call.require_here(weight, "weight");
  ZX_CHECK(loss >= 0 && loss < static_cast<int64_t>(Loss::kCount), "no loss has the number ", loss);
  const ScalarType dtype = pos.scalar_type(), compute = compute_type(dtype);
  const Shape shape = shape_of(static_cast<Loss>(loss));
  PairProblem p;
  const int64_t rows = p.rows = pos.size(0);
  const int64_t cols = p.cols = shape != Shape::kQuad && neg.dim() == 2 ? neg.size(1) : 1;
  p.reduction = static_cast<Reduction>(reduction);
  p.a = a, p.b = b, p.c = c;
  if (shape == Shape::kQuad) {
    ZX_CHECK(pos.dim() == 2 && neg.dim() == 2, "pos and neg must be [B, 2]");
    p.pos = ref(pos, rows, 2, dtype, "pos"), p.neg = ref(neg, rows, 2, dtype, "neg");
  } else {
    ZX_CHECK(pos.dim() == 1, "pos must be [B]");
    ZX_CHECK(shape != Shape::kRow || (neg.dim() == 2 && cols > 0), "neg must be [B, K] with K >= 1");
    p.pos = ref(pos, rows, 1, dtype, "pos"), p.neg = ref(neg, rows, cols, dtype, "neg");
    if (aux_pos) p.aux_pos = ref(*aux_pos, rows, shape == Shape::kRow ? 1 : cols, compute, "aux_pos");
    if (aux_neg) p.aux_neg = ref(*aux_neg, rows, cols, compute, "aux_neg");
  }
  if (weight) p.weight = ref(*weight, rows, shape == Shape::kPair ? cols : 1, compute, "weight");
  ZX_CHECK(!needs_constants(static_cast<Loss>(loss)) || (aux_pos && aux_neg), "the loss needs aux_pos and aux_neg");

  Tensor value = p.reduction != Reduction::kNone ? new_tensor(pos, {}, compute)
                 : shape == Shape::kPair         ? new_like(neg, dtype)
                                                 : new_tensor(pos, {rows}, dtype);
  Tensor grad_pos = grad ? new_like(pos, dtype) : new_tensor(pos, {0}, dtype);
  Tensor grad_neg = grad ? new_like(neg, dtype) : new_tensor(pos, {0}, dtype);
  const Tensor workspace = new_workspace(pos, p.reduction);
  p.value = value.data_ptr(), p.ticket = new_ticket();
  if (p.reduction != Reduction::kNone) p.workspace = data<double>(workspace);
  if (grad) p.grad_pos = grad_pos.data_ptr(), p.grad_neg = grad_neg.data_ptr();
  zx::pair_loss(element_of(dtype), static_cast<Loss>(loss), p, call.stream());
  Call::check();
  return {value, grad_pos, grad_neg};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> macr_loss(const Tensor& pos, const Tensor& neg,
                                                                     const Tensor& user_branch,
                                                                     const Tensor& pos_branch, const Tensor& neg_branch,
                                                                     std::optional<Tensor> weight, double alpha,
                                                                     double beta, int64_t reduction, bool grad) {
  const Call call(pos);
  call.require_here(weight, "weight");
  const ScalarType dtype = pos.scalar_type(), compute = compute_type(dtype);
  MacrProblem p;
  const int64_t rows = p.rows = pos.size(0);
  const int64_t cols = p.cols = neg.dim() == 2 ? neg.size(1) : 1;
  p.reduction = static_cast<Reduction>(reduction);
  p.a = alpha, p.b = beta;
  if (weight) p.weight = ref(*weight, rows, cols, compute, "weight");
  Tensor value = p.reduction == Reduction::kNone ? new_like(neg, dtype) : new_tensor(pos, {}, compute);
  const std::array<const Tensor*, 5> inputs{&pos, &neg, &user_branch, &pos_branch, &neg_branch};
  std::array<Tensor, 5> grads;
  for (int i = 0; i < 5; ++i) {
    call.require_here(*inputs[i], "every score");
    p.scores[i] = ref(*inputs[i], rows, cols, dtype, "a score");
    grads[i] = grad ? new_like(*inputs[i], dtype) : new_tensor(pos, {0}, dtype);
    if (grad) p.grads[i] = grads[i].data_ptr();
  }
  const Tensor workspace = new_workspace(pos, p.reduction);
  p.value = value.data_ptr(), p.ticket = new_ticket();
  if (p.reduction != Reduction::kNone) p.workspace = data<double>(workspace);
  zx::macr_loss(element_of(dtype), p, call.stream());
  Call::check();
  return {value, grads[0], grads[1], grads[2], grads[3], grads[4]};
}

namespace {

void scale(const std::vector<Tensor>& gradients, const std::vector<Tensor>& out, const Tensor& factor) {
  ZX_CHECK(!gradients.empty() && gradients.size() <= kMostScaled, "expected 1 to ", kMostScaled, " gradients");
  const Call call(gradients[0]);
  const ScalarType dtype = gradients[0].scalar_type();
  call.require_here(factor, "factor");
  ZX_CHECK(factor.numel() == 1 && factor.scalar_type() == compute_type(dtype),
           "factor must be one number in the arithmetic's dtype");
  ScaleProblem p;
  p.factor = factor.data_ptr();
  for (size_t i = 0; i < gradients.size(); ++i) {
    call.require_here(gradients[i], "every gradient");
    ZX_CHECK(gradients[i].scalar_type() == dtype && gradients[i].is_contiguous(),
             "gradients must be contiguous and of one dtype");
    p.from[i] = gradients[i].data_ptr(), p.to[i] = out[i].data_ptr(), p.size[i] = gradients[i].numel();
  }
  p.tensors = static_cast<int>(gradients.size());
  zx::scale_gradients(element_of(dtype), p, call.stream());
  Call::check();
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

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) {
  m.impl("pair_loss", ZX_BOX(&zx::cuda::pair_loss));
  m.impl("macr_loss", ZX_BOX(&zx::cuda::macr_loss));
  m.impl("scale_gradients_", ZX_BOX(&zx::cuda::scale_gradients_));
  m.impl("scale_gradients", ZX_BOX(&zx::cuda::scale_gradients));
}

#endif
