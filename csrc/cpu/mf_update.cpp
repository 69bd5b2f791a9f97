// mf_update on the CPU: an optimizer's step on one table from the sparse gradient that mf_gradient gives (ascending
// distinct rows and their values). Dense Adam sweeps over all rows, as torch.optim.Adam does, but the gradient of the
// rows that no sample touched is never stored.
#include "cpu/update_rows.h"
#include "torch_stable.h"

namespace zx::cpu {
void mf_update(Tensor table, std::optional<Tensor> first, std::optional<Tensor> second, const Tensor& rows,
               const Tensor& values, int64_t optimizer, double lr, double x, double y, double eps, double step) {
  const Optimizer kind = static_cast<Optimizer>(optimizer);
  const int64_t size = table.size(0), dim = table.dim() == 2 ? table.size(1) : 1, count = rows.size(0);
  ZX_CHECK(table.dim() == 1 || table.dim() == 2, "table must be [N] or [N, d]");
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
  const int64_t* names = data<int64_t>(rows);
  for (int64_t i = 0; i < count; ++i)
    ZX_CHECK(names[i] >= 0 && names[i] < size && (i == 0 || names[i - 1] < names[i]), "rows must ascend within table");
  const UpdateRule rule = make_rule(kind, lr, x, y, eps, step);
  float *p = data<float>(table), *m = first ? data<float>(*first) : nullptr,
        *v = second ? data<float>(*second) : nullptr;
  const float* g = data<float>(values);
  update_rows(kind, rule, names, count, g, p, m, v, size, dim);
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("mf_update", TORCH_BOX(&zx::cpu::mf_update)); }
