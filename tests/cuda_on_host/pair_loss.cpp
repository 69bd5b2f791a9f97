// The launchers of csrc/cuda/pair_loss.cuh.
#include "cuda/pair_loss.cuh"

#include "element.h"

namespace {

zx::TensorRef ref(const Tensor& t) {
  zx::TensorRef r;
  r.data = t.data;
  r.dim = int(t.sizes.size());
  for (int i = 0; i < r.dim; ++i) r.stride[i] = t.stride(size_t(i));
  return r;
}

hostcall::Function sum_workspace("sum_workspace", [](Tensor size) { *size.ptr<int64_t>() = zx::kSumWorkspace; });

// out: the units of a tile, and how many tiles there are.
hostcall::Function tiles("tiles", [](Tensor out, int64_t units, int64_t turn, int64_t grain) {
  const int64_t size = zx::tile_size(units, turn, grain);
  out.ptr<int64_t>()[0] = size;
  out.ptr<int64_t>()[1] = zx::tile_sum(units, size, nullptr, 0, nullptr, 1).tiles;
});

hostcall::Function pair_loss("pair_loss", [](Tensor pos, Tensor neg, Tensor aux_pos, Tensor aux_neg, Tensor weight,
                                             Tensor value, Tensor grad_pos, Tensor grad_neg, Tensor workspace, int loss,
                                             double a, double b, double c, int reduction, int64_t ticket) {
  zx::PairProblem p;
  p.rows = pos.size(0);
  p.cols = zx::shape_of(zx::Loss(loss)) != zx::Shape::kQuad && neg.sizes.size() == 2 ? neg.size(1) : 1;
  p.pos = ref(pos), p.neg = ref(neg), p.aux_pos = ref(aux_pos), p.aux_neg = ref(aux_neg), p.weight = ref(weight);
  p.value = value.data, p.grad_pos = grad_pos.data, p.grad_neg = grad_neg.data, p.workspace = workspace.ptr<double>();
  p.ticket = static_cast<unsigned long long>(ticket);
  p.reduction = zx::Reduction(reduction);
  p.a = a, p.b = b, p.c = c;
  zx::pair_loss(element_of(pos), zx::Loss(loss), p, nullptr);
});

hostcall::Function macr_loss("macr_loss",
                             [](Tensor pos, Tensor neg, Tensor user, Tensor pos_branch, Tensor neg_branch,
                                Tensor weight, Tensor value, Tensor g0, Tensor g1, Tensor g2, Tensor g3, Tensor g4,
                                Tensor workspace, double alpha, double beta, int reduction, int64_t ticket) {
                               zx::MacrProblem p;
                               p.rows = pos.size(0);
                               p.cols = neg.sizes.size() == 2 ? neg.size(1) : 1;
                               const Tensor* scores[] = {&pos, &neg, &user, &pos_branch, &neg_branch};
                               const Tensor* grads[] = {&g0, &g1, &g2, &g3, &g4};
                               for (int i = 0; i < 5; ++i) p.scores[i] = ref(*scores[i]), p.grads[i] = grads[i]->data;
                               p.weight = ref(weight);
                               p.value = value.data, p.workspace = workspace.ptr<double>();
                               p.ticket = static_cast<unsigned long long>(ticket);
                               p.reduction = zx::Reduction(reduction);
                               p.a = alpha, p.b = beta;
                               zx::macr_loss(element_of(pos), p, nullptr);
                             });

hostcall::Function scale_gradients("scale_gradients", [](Tensor factor, Tensor from0, Tensor to0, Tensor from1,
                                                         Tensor to1) {
  zx::ScaleProblem p;
  p.factor = factor.data;
  for (const auto& [from, to] : {std::pair{&from0, &to0}, std::pair{&from1, &to1}}) {
    if (!*from) continue;
    p.from[p.tensors] = from->data, p.to[p.tensors] = to->data, p.size[p.tensors] = from->numel();
    ++p.tensors;
  }
  zx::scale_gradients(element_of(from0), p, nullptr);
});

}  // namespace
