// What the kernels of this library were compiled for, as setup.py says: sm_90 is machine code, compute_90 PTX. Python
// leaves a GPU on which none of it runs to plain PyTorch. And the losses in the order of their numbers: Python refuses
// a library that counts them otherwise than _C does.
#include <string>

#include "common/losses.h"
#include "torch_stable.h"

#define ZX_TEXT_OF(...) #__VA_ARGS__
#define ZX_TEXT(...) ZX_TEXT_OF(__VA_ARGS__)

namespace zx::cuda {

std::string archs() { return ZX_TEXT(ZX_CUDA_ARCHS); }

std::string loss_names() {
  std::string names;
#define ZX_NAME(kind, name, type) names += (names.empty() ? "" : ",") + std::string(name);
  ZX_ALL_LOSSES(ZX_NAME)
#undef ZX_NAME
  return names;
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(zerosum_ext, m) {
  m.def("cuda_archs() -> str");
  m.def("cuda_loss_names() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&zx::cuda::archs));
  m.impl("cuda_loss_names", TORCH_BOX(&zx::cuda::loss_names));
}
