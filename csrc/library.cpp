// The schema of every op of zerosum_ext. Kernels register themselves at the end of their own files; the
// checks that users meet, autograd and the fall-back live in Python (zerosum_ext/_ops.py and the module of
// each topic).
#include "common/losses.h"
#include "cpu/simd.h"
#include "torch_stable.h"

#include <string>

namespace zx {

// The names of all losses, in the order of their numbers, and the instruction set in use: what Python asks at
// load.
std::string loss_names() {
  std::string names;
#define ZX_NAME(kind, name, type) names += (names.empty() ? "" : ",") + std::string(name);
  ZX_ALL_LOSSES(ZX_NAME)
#undef ZX_NAME
  return names;
}

std::string cpu_isa() { return cpu::isa_name(); }

}  // namespace zx

STABLE_TORCH_LIBRARY(zerosum_ext, m) {
  m.def("loss_names() -> str");
  m.def("cpu_isa() -> str");

  // ---- losses on scores (csrc/common/losses.h). reduction: 0 none, 1 sum, 2 mean. With grad the derivatives
  // of the reduced value are returned too, else empty tensors.
  m.def(
      "pair_loss(Tensor pos, Tensor neg, Tensor? weight, int loss, float a, float b, float c, int reduction, "
      "bool grad) -> (Tensor value, Tensor grad_pos, Tensor grad_neg)");
}

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CompositeExplicitAutograd, m) {
  m.impl("loss_names", TORCH_BOX(&zx::loss_names));
  m.impl("cpu_isa", TORCH_BOX(&zx::cpu_isa));
}
