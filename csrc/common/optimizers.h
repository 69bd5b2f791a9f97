// The update rules of the fused training step, one element at a time, with torch.optim's semantics.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace zx {

// The order numbers them; Python's list is in zerosum_ext/training/fused.py.
enum class Optimizer : int64_t { kSgd, kAdagrad, kAdam, kLazyAdam };

// Hyper-parameters at one step, with all that depends on the step alone worked out.
struct UpdateRule {
  // SGD: lr; Adagrad: lr / (1 + (t - 1) lr_decay); Adam: lr / (1 - beta1^t); lazy Adam: that * sqrt(1 - beta2^t)
  float rate;
  float beta1, beta2;
  float gain1, gain2;  // 1 - beta1 and 1 - beta2, which lose digits when they are made of floats
  float root_scale;    // Adam: 1 / sqrt(1 - beta2^t); else 1
  float eps;
};

// torch.optim.SGD (no momentum), Adagrad, Adam, SparseAdam. x and y: Adam's beta1 and beta2; Adagrad's lr_decay in x.
// step counts from 1.
ZX_HD UpdateRule make_rule(Optimizer kind, double lr, double x, double y, double eps, double step) {
  UpdateRule r{};
  r.eps = static_cast<float>(eps);
  r.root_scale = 1;
  r.rate = static_cast<float>(kind == Optimizer::kAdagrad ? lr / (1 + (step - 1) * x) : lr);
  if (kind == Optimizer::kAdam || kind == Optimizer::kLazyAdam) {
    const double c1 = 1 - pow(x, step), c2 = 1 - pow(y, step);
    r.beta1 = static_cast<float>(x);
    r.beta2 = static_cast<float>(y);
    r.gain1 = static_cast<float>(1 - x);
    r.gain2 = static_cast<float>(1 - y);
    // Adam: m / c1 / (sqrt(v) / sqrt(c2) + eps). SparseAdam: m sqrt(c2) / c1 / (sqrt(v) + eps).
    r.rate = static_cast<float>(kind == Optimizer::kAdam ? lr / c1 : lr * sqrt(c2) / c1);
    if (kind == Optimizer::kAdam) r.root_scale = static_cast<float>(1 / sqrt(c2));
  }
  return r;
}

// p: the parameter, m and v: its state (Adagrad: v is the sum of squares, m is unused), g: its gradient.
template <Optimizer kKind>
ZX_HD void update_element(const UpdateRule& r, float g, float& p, float& m, float& v) {
  if constexpr (kKind == Optimizer::kSgd) {
    p -= r.rate * g;
  } else if constexpr (kKind == Optimizer::kAdagrad) {
    v += g * g;
    p -= r.rate * g / (sqrtf(v) + r.eps);
  } else {
    m += r.gain1 * (g - m);
    v = r.beta2 * v + r.gain2 * (g * g);
    p -= r.rate * m / (sqrtf(v) * r.root_scale + r.eps);
  }
}

}  // namespace zx
