// What finding rows of users for frozen items has in common on the CPU and on the GPU. The row p of a user minimises
// the mean of a loss over the user's samples, plus l2 / 2 |p|^2. It is found by L-BFGS from zero, with two loops over
// the last steps and a halved step [Nocedal and Wright 2006, algorithms 7.4 and 3.1].
#pragma once

#include "common/losses.h"

namespace zx {

// Steps that are remembered, halvings of a step before it is given up, and the share of the predicted decrease that a
// step must reach.
constexpr int kFoldMemory = 8, kFoldHalvings = 12;
constexpr double kFoldSufficient = 1e-4;
constexpr int64_t kFoldMostIterations = 1 << 20;

// What all users have in common.
struct FoldIn {
  Loss kind;
  double a, b, c;
  double kink;  // width that the kinks of Zerosum and Pos2Neg2 are rounded off by, or 0
  double l2, tolerance;
  int64_t max_iterations;
};

// Adds w rho(sqrt(x^2 + kink^2)) of x = s + sign t, for a pair of scores, to their derivatives; returns it.
template <class T>
ZX_HD T add_rounded(T s, T t, T sign, T w, T kink, T scale, T* ds, T* dt) {
  const T x = s + sign * t, far = sqrt_(x * x + kink * kink);
  const Dual<T> r = rho(far);
  const T slope = scale * w * r.slope * (x / far);
  *ds += slope;
  *dt += sign * slope;
  return w * r.value;
}

// Whether a step's end is taken. Where a step is lost in the rounding of values, which are sums of many terms, a
// shorter gradient says that it is one in the right direction.
ZX_HD bool takes_step(double value, double found, double rounding, double predicted, double squares,
                      double found_squares) {
  return found <= value + kFoldSufficient * predicted + rounding ||
         (found <= value + 16 * rounding && found_squares < squares);
}

// Whether the curvature along a step is so far above 0 that the step is remembered.
ZX_HD bool is_curved(double both, double change_squares, double epsilon) { return both > epsilon * change_squares; }

}  // namespace zx
