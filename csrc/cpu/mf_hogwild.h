// Hogwild steps of training [RRWN11]: no batches. Each thread takes samples, sixteen at a time, and writes their rows
// as soon as their loss is known. Threads do not wait for each other; where two write one row at once, an update may be
// lost. That race is meant: rows are read and written as plain floats, whatever value a float has is used. One thread
// alone gives the same bits every time.
//
// [RRWN11] Niu, Recht, Re, Wright, "Hogwild!", NIPS 2011.
#pragma once

#include "cpu/cosines.h"
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

// What cosines take beside the scores of a block of samples: inverse lengths of the users' rows [n] and of the items'
// [n, J], and the cosines themselves [n, J].
struct Cosines {
  std::vector<float> user_scale, item_scale, cosine;

  Cosines(int64_t n, int64_t items)
      : user_scale(static_cast<size_t>(n)),
        item_scale(static_cast<size_t>(n * items)),
        cosine(static_cast<size_t>(n * items)) {}
};

// Makes cosines of a block's dot products, and adds the items' bias, if there is one.
struct CosineScores {
  template <int kBytes>
  ZX_HD static void run(const MfInputs<float, float>* inputs, const float* bias, int64_t first, int64_t n, bool planes,
                        MfBlockBuffers<float, float>* buffers, Cosines* cosines) {
    const MfInputs<float, float> in = *inputs;
    const int64_t items = in.items(), positives = in.num_positives, k = in.num_negatives;
    for (int64_t i = 0; i < n; ++i) {
      const float user = inverse_norm<kBytes>(in.user + in.users[first + i] * in.dim, in.dim);
      cosines->user_scale[i] = user;
      for (int64_t j = 0; j < items; ++j) {
        const int64_t at = i * items + j;
        const float scale = inverse_norm<kBytes>(buffers->rows[at], in.dim);
        cosines->item_scale[at] = scale;
        const int64_t negative = j - positives;
        float& score =
            j < positives ? buffers->pos[j * n + i] : buffers->neg[planes ? negative * n + i : i * k + negative];
        cosines->cosine[at] = score *= user * scale;
        if (bias != nullptr) score += bias[in.item_at(first + i, j)];
      }
    }
  }
};

// A step of SGD on the rows of n samples whose derivatives are known, where scores are cosines. From a derivative c of
// a cosine, a row of scale s gets c s times the difference of the other row's direction and the cosine times its own.
// share: scratch of J; sum: of a row.
struct HogwildCosineRows {
  ZX_HD static void run(const MfInputs<float, float>* in, int64_t first, int64_t n, const float* coefficient,
                        const float* const* rows, const Cosines* cosines, float user_rate, float item_rate, float l2,
                        float* share, float* sum, RowSet* set) {
    const int64_t items = in->items(), dim = in->dim;
    for (int64_t i = 0; i < n; ++i) {
      float* user = const_cast<float*>(in->user) + in->users[first + i] * dim;
      const float* const* q = rows + i * items;
      update(user, q, coefficient + i * items, cosines->user_scale[i], cosines->item_scale.data() + i * items,
             cosines->cosine.data() + i * items, items, dim, user_rate, item_rate, l2, share, sum,
             set->distinct(q, items));
    }
  }

  // What a cosine's derivative takes from a row of this scale: none of a row that counts as of a fixed length.
  ZX_HD static float pull(float c, float cosine, float scale) {
    return scale < kLargestScale ? c * cosine * scale * scale : 0.0f;
  }

  ZX_HD static void update(float* __restrict__ p, const float* const* rows, const float* c, float user_scale,
                           const float* item_scale, const float* cosine, int64_t items, int64_t dim, float user_rate,
                           float item_rate, float l2, float* __restrict__ share, float* __restrict__ sum,
                           bool distinct) {
    float keep = l2;
    for (int64_t j = 0; j < items; ++j) {
      share[j] = c[j] * user_scale * item_scale[j];
      keep -= pull(c[j], cosine[j], user_scale);
    }
    for (int64_t i = 0; i < dim; ++i) sum[i] = keep * p[i];
    // All items' rows as they were before the step, before any is written: one may occur twice.
    for (int64_t j = 0; j < items; ++j)
      for (int64_t i = 0; i < dim; ++i) sum[i] += share[j] * rows[j][i];
    for (int64_t j = 0; j < items; ++j) {
      float total = share[j], kept = l2 - pull(c[j], cosine[j], item_scale[j]);
      bool first = true;
      for (int64_t other = 0; other < items && !distinct; ++other) {
        if (other == j || rows[other] != rows[j]) continue;
        first &= other > j;
        total += share[other], kept += l2 - pull(c[other], cosine[other], item_scale[other]);
      }
      if (!first) continue;
      float* __restrict__ q = const_cast<float*>(rows[j]);
      for (int64_t i = 0; i < dim; ++i) q[i] -= item_rate * (total * p[i] + kept * q[i]);
    }
    for (int64_t i = 0; i < dim; ++i) p[i] -= user_rate * sum[i];
  }
};

// Trains on all samples; returns their summed loss.
inline double hogwild(const MfLossCall& loss, bool mean, bool cosines, float l2, const MfSamples& all,
                      const MfTable& user, const MfTable& item, const MfTable& bias) {
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
    std::vector<float> share(static_cast<size_t>(cosines ? items : 0));
    RowSet set(items);
    Cosines block(cosines ? kHogwildSamples : 0, items);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t begin = task * kHogwildTask, count = std::min(samples - begin, kHogwildTask);
      MfInputs<float, float> in;
      if (!failure.guard([&] { in = all.read(begin, count, ids, false); })) return;
      const float* item_bias = in.bias;
      if (cosines) in.bias = nullptr;
      buffers.reserve(kHogwildSamples, in.num_positives, k);
      for (int64_t first = 0; first < count; first += kHogwildSamples) {
        const int64_t n = std::min(kHogwildSamples, count - first);
        const uint32_t* unordered = nullptr;
        simd<MfScores<float, float, true>>(static_cast<const MfInputs<float, float>*>(&in), unordered, first, n,
                                           count - first, loss.planes(), &buffers);
        if (cosines)
          simd<CosineScores>(static_cast<const MfInputs<float, float>*>(&in), item_bias, first, n, loss.planes(),
                             &buffers, &block);
        const float* weight = loss.weights_of(in.users + first, in.positives + first * in.num_positives,
                                              in.num_positives, n, k, buffers.weight);
        sums[task] += loss.evaluate(buffers, n, k, in.constants != nullptr, weight, scale, loss.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss.planes());
        const float* c = buffers.coefficient.data();
        if (cosines)
          simd<HogwildCosineRows>(static_cast<const MfInputs<float, float>*>(&in), first, n, c,
                                  static_cast<const float* const*>(buffers.rows.data()),
                                  static_cast<const Cosines*>(&block), user_rate, item_rate, l2, share.data(),
                                  sum.data(), &set);
        else
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
