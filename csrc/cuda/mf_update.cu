// mf_update on CUDA tensors.
#include "cuda/mf_update.cuh"

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {

void mf_update(Tensor table, std::optional<Tensor> first, std::optional<Tensor> second, const Tensor& rows,
               const Tensor& values, int64_t optimizer, double lr, double x, double y, double eps, double step,
               std::optional<Tensor> lr_tensor, std::optional<Tensor> step_tensor) {
  const Call call(table);
  call.require_here(first, "first");
  call.require_here(second, "second");
  call.require_here(rows, "rows");
  call.require_here(values, "values");
  call.require_here(lr_tensor, "lr_tensor");
  call.require_here(step_tensor, "step_tensor");
  const Optimizer kind = checked_optimizer(optimizer);
  check_update(kind, table, first, second, rows, values);
  const int64_t size = table.size(0), dim = table.dim() == 2 ? table.size(1) : 1, count = rows.size(0);
  ZX_CHECK(count < (int64_t{1} << 31), "rows must be fewer than 2^31");

  UpdateArgs a{};
  a.lr = number_of(lr_tensor, lr, "lr_tensor"), a.step = number_of(step_tensor, step, "step_tensor");
  a.x = x, a.y = y, a.eps = eps;
  a.rows = data<int64_t>(rows), a.count = count, a.values = data<float>(values);
  a.table = data<float>(table), a.size = size, a.dim = dim;
  a.m = first ? data<float>(*first) : nullptr, a.v = second ? data<float>(*second) : nullptr;
  const Tensor places = new_tensor(table, {kind == Optimizer::kAdam ? size : 0}, ScalarType::Int);
  if (places.numel() > 0) {
    a.places = static_cast<int*>(places.data_ptr());
    call.fill(a.places, 0xff, size * sizeof(int));
  }
  zx::mf_update(kind, a, call.stream());
  Call::check();
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("mf_update", TORCH_BOX(&zx::cuda::mf_update)); }
