// mf_update on the CPU: an optimizer's step on one table from the sparse gradient that mf_gradient gives (ascending
// distinct rows and their values). Dense Adam sweeps over all rows, as torch.optim.Adam does, but the gradient of the
// rows that no sample touched is never stored.
#include <algorithm>
#include <vector>

#include "common/optimizers.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kWords = 65536;  // of a table that one thread takes at a time

template <Optimizer kKind>
struct UpdateRow {
  ZX_HD static void run(const UpdateRule* rule, const float* g, float* p, float* m, float* v, int64_t n) {
    const UpdateRule r = *rule;
    float none = 0;
    if (g == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, 0.0f, p[i], m[i], v[i]);
    } else if constexpr (kKind == Optimizer::kSgd) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], none, none);
    } else if constexpr (kKind == Optimizer::kAdagrad) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], none, v[i]);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], m[i], v[i]);
    }
  }
};

template <Optimizer kKind>
void update(const UpdateRule& rule, const int64_t* rows, int64_t count, const float* g, float* p, float* m, float* v,
            int64_t table, int64_t dim) {
  const int64_t piece = std::max<int64_t>(1, kWords / std::max<int64_t>(1, dim));
  const UpdateRule* r = &rule;
  const auto at = [&](float* base, int64_t row) { return base == nullptr ? base : base + row * dim; };
  if constexpr (kKind == Optimizer::kAdam) {
    for_each_block((table + piece - 1) / piece, 1, [&](int64_t block) {
      const int64_t end = std::min(table, (block + 1) * piece);
      int64_t row = block * piece;
      int64_t s = std::lower_bound(rows, rows + count, row) - rows;
      while (row < end) {
        const int64_t next = s < count && rows[s] < end ? rows[s] : end;
        const float* untouched = nullptr;
        if (row < next) simd<UpdateRow<kKind>>(r, untouched, at(p, row), at(m, row), at(v, row), (next - row) * dim);
        row = next;
        if (row < end) {
          simd<UpdateRow<kKind>>(r, g + s * dim, at(p, row), at(m, row), at(v, row), dim);
          ++s, ++row;
        }
      }
    });
  } else {
    for_each_block((count + piece - 1) / piece, 1, [&](int64_t block) {
      for (int64_t s = block * piece; s < std::min(count, (block + 1) * piece); ++s)
        simd<UpdateRow<kKind>>(r, g + s * dim, at(p, rows[s]), at(m, rows[s]), at(v, rows[s]), dim);
    });
  }
}

}  // namespace

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
  switch (kind) {
    case Optimizer::kSgd:
      return update<Optimizer::kSgd>(rule, names, count, g, p, m, v, size, dim);
    case Optimizer::kAdagrad:
      return update<Optimizer::kAdagrad>(rule, names, count, g, p, m, v, size, dim);
    case Optimizer::kAdam:
      return update<Optimizer::kAdam>(rule, names, count, g, p, m, v, size, dim);
    case Optimizer::kLazyAdam:
      return update<Optimizer::kLazyAdam>(rule, names, count, g, p, m, v, size, dim);
  }
  ZX_CHECK(false, "no such optimizer");
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("mf_update", TORCH_BOX(&zx::cpu::mf_update)); }
