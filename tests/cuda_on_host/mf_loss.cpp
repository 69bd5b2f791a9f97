// The launcher of csrc/cuda/mf_loss.cuh.
#include "cuda/mf_loss.cuh"

#include "element.h"

namespace {

hostcall::Function sum_workspace("sum_workspace", [](Tensor size) { *size.ptr<int64_t>() = zx::kSumWorkspace; });

hostcall::Function mf_loss("mf_loss", [](Tensor user, Tensor item, Tensor bias, Tensor users, Tensor positives,
                                         Tensor negatives, Tensor constants, Tensor weight, Tensor value,
                                         Tensor coefficient, Tensor workspace, Tensor failed, int loss, double a,
                                         double b, double c, double l2, int reduction, bool grad, int each,
                                         int64_t ticket) {
  zx::MfProblem p;
  p.user = user.data, p.item = item.data, p.bias = bias.data;
  p.constants = constants.data, p.weight = weight.data;
  p.num_users = user.size(0), p.num_items = item.size(0), p.dim = user.size(1);
  p.users = users.ptr<int64_t>(), p.positives = positives.ptr<int64_t>(), p.negatives = negatives.ptr<int64_t>();
  p.rows = users.size(0);
  p.k = zx::shape_of(zx::Loss(loss)) == zx::Shape::kQuad ? 2 : negatives.sizes.size() == 2 ? negatives.size(1) : 1;
  p.weight_per_pair = weight && weight.sizes.size() == 2;
  p.value = value.data, p.coefficient = coefficient.data, p.grad = grad;
  p.workspace = workspace.ptr<double>(), p.ticket = static_cast<unsigned long long>(ticket),
  p.failed = failed.ptr<unsigned long long>();
  p.reduction = zx::Reduction(reduction);
  p.a = a, p.b = b, p.c = c, p.l2 = l2, p.each = each;
  zx::mf_loss(element_of(user), zx::Loss(loss), p, nullptr);
});

}  // namespace
