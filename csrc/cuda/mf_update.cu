// mf_update on CUDA tensors.
#include "cuda/mf_update.cuh"

#include "cuda/call.h"

namespace zx::cuda {

void mf_update(Tensor table, std::optional<Tensor> first, std::optional<Tensor> second, const Tensor& rows,
               const Tensor& values, int64_t optimizer, double lr, double x, double y, double eps, double step) {
  const Call call(table);
  call.require_here(first, "first");
  call.require_here(second, "second");
  call.require_here(rows, "rows");
  call.require_here(values, "values");
  ZX_CHECK(optimizer >= 0 && optimizer <= static_cast<int64_t>(Optimizer::kLazyAdam), "no optimizer has the number ",
           optimizer);
  ZX_CHECK(table.dim() == 1 || table.dim() == 2, "table must be [N] or [N, d]");
  const Optimizer kind = static_cast<Optimizer>(optimizer);
  const int64_t size = table.size(0), dim = table.dim() == 2 ? table.size(1) : 1, count = rows.size(0);
  const auto check = [&](const Tensor& t, const char* name) {
    ZX_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), name, " must be contiguous float32");
  };
  check(table, "table");
  check(values, "values");
  ZX_CHECK(values.numel() == count * dim && rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
           "rows must be int64 [n], values [n, d]");
  for (const auto& state : {first, second})
    if (state) {
      check(*state, "state");
      ZX_CHECK(state->numel() == table.numel(), "the state must have the shape of the table");
    }
  const bool adam = kind == Optimizer::kAdam || kind == Optimizer::kLazyAdam;
  ZX_CHECK((kind == Optimizer::kSgd || second) && (!adam || first), "this optimizer has state");
  ZX_CHECK(count < (int64_t{1} << 31), "rows must be fewer than 2^31");

  UpdateArgs a{};
  a.rule = make_rule(kind, lr, x, y, eps, step);
  a.rows = data<int64_t>(rows), a.count = count, a.values = data<float>(values);
  a.table = data<float>(table), a.size = size, a.dim = dim;
  a.m = first ? data<float>(*first) : nullptr, a.v = second ? data<float>(*second) : nullptr;
  const Tensor places = new_tensor(table, {kind == Optimizer::kAdam ? size : 0}, ScalarType::Int);
  if (places.numel() > 0) {
    a.places = static_cast<int*>(places.data_ptr());
    ZX_CHECK(cudaMemsetAsync(a.places, 0xff, size * sizeof(int), call.stream()) == cudaSuccess, "CUDA: memset failed");
  }
  zx::mf_update(kind, a, call.stream());
  Call::check();
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("mf_update", TORCH_BOX(&zx::cuda::mf_update)); }
