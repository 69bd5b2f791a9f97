// mf_update on the CPU: an optimizer's step on one table from the sparse gradient that mf_gradient gives (ascending
// distinct rows and their values). Dense Adam sweeps over all rows, as torch.optim.Adam does, but the gradient of the
// rows that no sample touched is never stored.
#include "checks.h"
#include "cpu/update_rows.h"

namespace zx::cpu {

void mf_update(Tensor table, std::optional<Tensor> first, std::optional<Tensor> second, const Tensor& rows,
               const Tensor& values, int64_t optimizer, double lr, double x, double y, double eps, double step,
               std::optional<Tensor> lr_tensor, std::optional<Tensor> step_tensor) {
  const Optimizer kind = checked_optimizer(optimizer);
  check_update(kind, table, first, second, rows, values);
  const Number rate = number_of(lr_tensor, lr, "lr_tensor"), number = number_of(step_tensor, step, "step_tensor");
  const int64_t size = table.size(0), dim = table.dim() == 2 ? table.size(1) : 1, count = rows.size(0);
  const int64_t* names = data<int64_t>(rows);
  for (int64_t i = 0; i < count; ++i)
    ZX_CHECK(names[i] >= 0 && names[i] < size && (i == 0 || names[i - 1] < names[i]), "rows must ascend within table");
  const UpdateRule rule = make_rule(kind, rate.read(), x, y, eps, number.read());
  float *p = data<float>(table), *m = first ? data<float>(*first) : nullptr,
        *v = second ? data<float>(*second) : nullptr;
  const float* g = data<float>(values);
  update_rows(kind, rule, names, count, g, p, m, v, size, dim);
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("mf_update", TORCH_BOX(&zx::cpu::mf_update)); }
