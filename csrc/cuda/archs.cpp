// What the kernels of this library were compiled for, as setup.py says: sm_90 is machine code, compute_90 PTX. Python
// leaves a GPU on which none of it runs to plain PyTorch.
#include <string>

#include "torch_stable.h"

#define ZX_TEXT_OF(...) #__VA_ARGS__
#define ZX_TEXT(...) ZX_TEXT_OF(__VA_ARGS__)

namespace zx::cuda {

std::string archs() { return ZX_TEXT(ZX_CUDA_ARCHS); }

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(zerosum_ext, m) { m.def("cuda_archs() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&zx::cuda::archs));
}
