// Hogwild steps of training [RRWN11]: no batches. Each thread takes samples, sixteen at a time, and writes their rows
// as soon as their loss is known. Threads do not wait for each other; where two write one row at once, an update may be
// lost. That race is meant: rows are read and written as plain floats, whatever value a float has is used. One thread
// alone gives the same bits every time.
//
// [RRWN11] Niu, Recht, Re, Wright, "Hogwild!", NIPS 2011.
#pragma once

#include "cpu/mf_samples.h"
#include "cpu/mf_table.h"
#include "cpu/simd.h"

namespace zx::cpu {

constexpr int64_t kHogwildSamples = 16, kHogwildTask = 2048;

// Tells whether a sample names a row twice: few rows are compared with each other, many are put into a hash table.
class RowSet {
 public:
  explicit RowSet(int64_t items) {
    if (items <= kFew) return;
    while (int64_t{1} << bits_ < 2 * items) ++bits_;
    slots_.resize(size_t{1} << bits_);
  }

  bool distinct(const float* const* rows, int64_t items) {
    if (items <= kFew) {
      bool same = false;
      for (int64_t i = 1; i < items; ++i)
        for (int64_t j = 0; j < i; ++j) same |= rows[i] == rows[j];
      return !same;
    }
    ++stamp_;
    const uint64_t mask = slots_.size() - 1;
    for (int64_t j = 0; j < items; ++j) {
      uint64_t at = reinterpret_cast<uintptr_t>(rows[j]) * 0x9E3779B97F4A7C15u >> (64 - bits_);
      for (; slots_[at].stamp == stamp_; at = (at + 1) & mask)
        if (slots_[at].row == rows[j]) return false;
      slots_[at] = {rows[j], stamp_};
    }
    return true;
  }

 private:
  static constexpr int64_t kFew = 8;
  struct Slot {
    const float* row = nullptr;
    uint64_t stamp = 0;
  };
  int bits_ = 1;
  uint64_t stamp_ = 0;
  std::vector<Slot> slots_;
};

// A step of SGD on the rows of n samples whose derivatives are known: coefficient and rows [n, J]. sum: scratch of a
// row.
struct HogwildRows {
  ZX_HD static void run(const MfInputs<float, float>* in, int64_t first, int64_t n, const float* coefficient,
                        const float* const* rows, float user_rate, float item_rate, float l2, float* sum, RowSet* set) {
    with_width(in->dim, [&](auto dim) __attribute__((always_inline)) {
      update(*in, dim, first, n, coefficient, rows, user_rate, item_rate, l2, sum, set);
    });
  }

  template <class Dim>
  ZX_HD static void update(const MfInputs<float, float>& in, Dim dim, int64_t first, int64_t n,
                           const float* coefficient, const float* const* rows, float user_rate, float item_rate,
                           float l2, float* sum, RowSet* set) {
    const int64_t items = in.items();
    for (int64_t i = 0; i < n; ++i) {
      float* user = const_cast<float*>(in.user) + in.users[first + i] * dim;
      const float* c = coefficient + i * items;
      const float* const* q = rows + i * items;
      if (!set->distinct(q, items))
        repeated(user, q, c, items, dim, user_rate, item_rate, l2, sum);
      else if (items == 2)
        two(user, const_cast<float*>(q[0]), const_cast<float*>(q[1]), c[0], c[1], dim, user_rate, item_rate, l2);
      else
        many(user, q, c, items, dim, user_rate, item_rate, l2, sum);
    }
  }

  // One positive and one negative, not the same row.
  ZX_HD static void two(float* __restrict__ p, float* __restrict__ x, float* __restrict__ y, float c, float d,
                        int64_t dim, float user_rate, float item_rate, float l2) {
    const float keep_p = 1 - user_rate * l2, keep_q = 1 - item_rate * l2;
    const float cu = user_rate * c, du = user_rate * d, ci = item_rate * c, di = item_rate * d;
    for (int64_t i = 0; i < dim; ++i) {
      const float user = p[i], a = x[i], b = y[i];
      p[i] = keep_p * user - (cu * a + du * b);
      x[i] = keep_q * a - ci * user;
      y[i] = keep_q * b - di * user;
    }
  }

  // Rows that occur more than once: the derivatives of all their places, taken where the row was before the step.
  ZX_HD static void repeated(float* __restrict__ p, const float* const* rows, const float* c, int64_t items,
                             int64_t dim, float user_rate, float item_rate, float l2, float* __restrict__ sum) {
    for (int64_t i = 0; i < dim; ++i) sum[i] = l2 * p[i];
    for (int64_t j = 0; j < items; ++j)
      for (int64_t i = 0; i < dim; ++i) sum[i] += c[j] * rows[j][i];
    for (int64_t j = 0; j < items; ++j) {
      float total = 0, places = 0;
      bool first = true;
      for (int64_t other = 0; other < items; ++other) {
        if (rows[other] != rows[j]) continue;
        first &= other >= j;
        total += c[other], places += 1;
      }
      if (!first) continue;
      float* __restrict__ q = const_cast<float*>(rows[j]);
      for (int64_t i = 0; i < dim; ++i) q[i] -= item_rate * (total * p[i] + places * l2 * q[i]);
    }
    for (int64_t i = 0; i < dim; ++i) p[i] -= user_rate * sum[i];
  }

  // Items one after another, none of them twice; the user last.
  ZX_HD static void many(float* __restrict__ p, const float* const* rows, const float* c, int64_t items, int64_t dim,
                         float user_rate, float item_rate, float l2, float* __restrict__ sum) {
    for (int64_t i = 0; i < dim; ++i) sum[i] = l2 * p[i];
    for (int64_t j = 0; j < items; ++j) {
      float* __restrict__ q = const_cast<float*>(rows[j]);
      const float f = c[j], ci = item_rate * f, keep = 1 - item_rate * l2;
      for (int64_t i = 0; i < dim; ++i) {
        const float old = q[i];
        sum[i] += f * old;
        q[i] = keep * old - ci * p[i];
      }
    }
    for (int64_t i = 0; i < dim; ++i) p[i] -= user_rate * sum[i];
  }
};

// Trains on all samples; returns their summed loss.
inline double hogwild(const MfLossCall& loss, bool mean, float l2, const MfSamples& all, const MfTable& user,
                      const MfTable& item, const MfTable& bias) {
  const int64_t k = all.num_negatives(), items = all.items(), samples = all.count();
  const int64_t tasks = (samples + kHogwildTask - 1) / kHogwildTask;
  const float scale = mean ? 1.0f / static_cast<float>(std::max<int64_t>(1, loss.values_per_sample(k))) : 1.0f;
  const float user_rate = user.wanted ? static_cast<float>(user.lr) : 0.0f;
  const float item_rate = item.wanted ? static_cast<float>(item.lr) : 0.0f;
  std::vector<double> sums(static_cast<size_t>(tasks));
  Failure failure;
  share_blocks(tasks, [&](const auto& next) {
    MfBlockBuffers<float, float> buffers;
    DrawnIds ids;
    std::vector<float> sum(static_cast<size_t>(user.dim));
    RowSet set(items);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t begin = task * kHogwildTask, count = std::min(samples - begin, kHogwildTask);
      MfInputs<float, float> in;
      if (!failure.guard([&] { in = all.read(begin, count, ids, false); })) return;
      buffers.reserve(kHogwildSamples, in.num_positives, k);
      for (int64_t first = 0; first < count; first += kHogwildSamples) {
        const int64_t n = std::min(kHogwildSamples, count - first);
        const uint32_t* unordered = nullptr;
        simd<MfScores<float, float, true>>(static_cast<const MfInputs<float, float>*>(&in), unordered, first, n,
                                           count - first, loss.planes(), &buffers);
        const float* unweighted = nullptr;
        sums[task] += loss.evaluate(buffers, n, k, in.constants != nullptr, unweighted, scale, loss.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss.planes());
        const float* c = buffers.coefficient.data();
        simd<HogwildRows>(static_cast<const MfInputs<float, float>*>(&in), first, n, c,
                          static_cast<const float* const*>(buffers.rows.data()), user_rate, item_rate, l2, sum.data(),
                          &set);
        if (bias.wanted)
          for (int64_t i = 0; i < n * items; ++i)
            bias.values[in.item_at(first + i / items, i % items)] -= static_cast<float>(bias.lr) * c[i];
      }
    }
  });
  failure.rethrow();
  double total = 0;
  for (const double sum : sums) total += sum;
  return mean ? total / static_cast<double>(std::max<int64_t>(1, loss.values_per_sample(k))) : total;
}

}  // namespace zx::cpu
