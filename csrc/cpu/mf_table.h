// What both ways of training work on: tables with the state of their optimizer, and a loss that is ready to be called.
#pragma once

#include "cpu/deferred_adam.h"
#include "cpu/mf_block.h"

namespace zx::cpu {

// A table, the state that its optimizer keeps, and how it is updated.
struct MfTable {
  float *values = nullptr, *first = nullptr, *second = nullptr;
  int64_t rows = 0, dim = 0;
  bool wanted = false;  // else it is frozen
  double lr = 0, x = 0, y = 0, eps = 0, step = 0;
  DeferredAdam* deferred = nullptr;  // where dense Adam comes to a row when it is needed

  UpdateRule rule(Optimizer kind, int64_t steps_before) const {
    return make_rule(kind, lr, x, y, eps, step + static_cast<double>(steps_before));
  }
};

// The loss of a run, ready to be called.
struct MfLossCall {
  Shape shape;
  MfLossFunction<float, float> evaluate;
  Params<float> params;

  int64_t values_per_sample(int64_t k) const { return shape == Shape::kPair ? k : 1; }
  bool planes() const { return shape == Shape::kQuad; }
};

}  // namespace zx::cpu
