// mf_update on CUDA tensors.
#include "cuda/mf_update.cuh"

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {

namespace {

DeviceNumber number(const Call& call, const std::optional<Tensor>& t, double otherwise, const char* name) {
  call.require_here(t, name);
  check_number(t, name);
  if (!t) return {otherwise, nullptr, nullptr};
  const bool wide = t->scalar_type() == ScalarType::Double;
  return {0, wide ? nullptr : data<float>(*t), wide ? data<double>(*t) : nullptr};
}

}  // namespace

void mf_update(Tensor table, std::optional<Tensor> first, std::optional<Tensor> second, const Tensor& rows,
               const Tensor& values, int64_t optimizer, double lr, double x, double y, double eps, double step,
               std::optional<Tensor> lr_tensor, std::optional<Tensor> step_tensor) {
  const Call call(table);
  call.require_here(first, "first");
  call.require_here(second, "second");
  call.require_here(rows, "rows");
  call.require_here(values, "values");
  const Optimizer kind = checked_optimizer(optimizer);
  check_update(kind, table, first, second, rows, values);
  const int64_t size = table.size(0), dim = table.dim() == 2 ? table.size(1) : 1, count = rows.size(0);
  ZX_CHECK(count < (int64_t{1} << 31), "rows must be fewer than 2^31");

  UpdateArgs a{};
  a.lr = number(call, lr_tensor, lr, "lr_tensor"), a.step = number(call, step_tensor, step, "step_tensor");
  a.x = x, a.y = y, a.eps = eps;
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
