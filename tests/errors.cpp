// Ops that fail, in every way that an op of the package can: built by test_errors.py.
#include "torch_stable.h"

namespace {

using torch::stable::Tensor;

int64_t check(int64_t n) {
  ZX_CHECK(n > 1000000, "the number ", n, " is below ", uint64_t{18446744073709551615u}, ", and ", 0.5,
           std::string("!"));
  return n;
}

// A check of torch's own headers.
int64_t torch_check(int64_t n) {
  STD_TORCH_CHECK(n > 1000000, "got ", n);
  return n;
}

// A call of torch's that returns an error: the tensor has no such dimension.
int64_t torch_call(const Tensor& t) { return t.size(t.dim() + 5); }

}  // namespace

STABLE_TORCH_LIBRARY(zx_errors, m) {
  m.def("check(int n) -> int");
  m.def("torch_check(int n) -> int");
  m.def("torch_call(Tensor t) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(zx_errors, CompositeExplicitAutograd, m) {
  m.impl("check", TORCH_BOX(&check));
  m.impl("torch_check", TORCH_BOX(&torch_check));
  m.impl("torch_call", TORCH_BOX(&torch_call));
}
