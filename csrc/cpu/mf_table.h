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

// The weights of the entries of a matrix, from which samples have theirs. Without values, samples have none.
struct EntryWeights {
  const int64_t* indptr = nullptr;
  const void* indices = nullptr;
  bool wide = false;  // whether indices are int64
  int64_t entries = 0;
  const float* values = nullptr;

  // The weight of an entry that the matrix has.
  float of(int64_t user, int64_t item) const {
    const int64_t begin = indptr[user], end = indptr[user + 1];
    if (!is_row(begin, end, entries)) return 0;
    const int64_t at = wide ? lower_bound(static_cast<const int64_t*>(indices) + begin, end - begin, item)
                            : lower_bound(static_cast<const int32_t*>(indices) + begin, end - begin, item);
    return at < end - begin ? values[begin + at] : 0;
  }
};

// The loss of a run, ready to be called.
struct MfLossCall {
  Shape shape;
  MfLossFunction<float, float> evaluate;
  Params<float> params;
  EntryWeights weights = {};
  const float* of_samples = nullptr;  // the weights of a batch's samples, where they are given

  // The weights of n samples as `evaluate` takes them, or nullptr: of two positives the mean. order: which samples of
  // their batch they are; only exact steps, which have it, are given weights of samples.
  template <class Id>
  const float* weights_of(const Id* users, const Id* positives, int64_t num_positives, int64_t n, int64_t k,
                          std::vector<float>& buffer, const uint32_t* order = nullptr) const {
    const bool given = of_samples != nullptr && order != nullptr;
    if (!given && weights.values == nullptr) return nullptr;
    const int64_t each = values_per_sample(k);
    if (static_cast<int64_t>(buffer.size()) < n * each) buffer.resize(static_cast<size_t>(n * each));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t user = users[i];
      float weight = given ? of_samples[order[i]] : weights.of(user, positives[i * num_positives]);
      if (!given && num_positives == 2) weight = 0.5f * (weight + weights.of(user, positives[2 * i + 1]));
      std::fill_n(buffer.data() + i * each, each, weight);
    }
    return buffer.data();
  }

  int64_t values_per_sample(int64_t k) const { return shape == Shape::kPair ? k : 1; }
  bool planes() const { return shape == Shape::kQuad; }
};

}  // namespace zx::cpu
