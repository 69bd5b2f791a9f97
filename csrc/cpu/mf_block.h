// What mf_loss and the fused training step have in common: the scores of a block of samples, and a loss of the
// registry and its derivatives at these scores, all in buffers that stay in the cache.
//
// Sample b has a user, kPositives (1 or 2) positives and K negatives; J = positives + K is the number of its items.
// Derivatives ("coefficients") are stored as [samples, J], positives first.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/element_loss.h"
#include "cpu/row_loss.h"
#include "cpu/rows.h"

namespace zx::cpu {

// Tables and samples of a problem. C: compute_t<S>; Id: of the samples' rows.
template <class S, class C, class Id = int64_t>
struct MfInputs {
  const S* user = nullptr;       // [num_users, dim]
  const S* item = nullptr;       // [num_items, dim]
  const S* bias = nullptr;       // [num_items] or absent
  const C* constants = nullptr;  // [num_items] or absent: what a loss takes beside each item
  // [num_users] and [num_items], or both absent: what dot products are multiplied by, to be cosines.
  const C *user_scale = nullptr, *item_scale = nullptr;
  int64_t dim = 0;
  const Id* users = nullptr;      // [samples]
  const Id* positives = nullptr;  // [samples, num_positives]
  const Id* negatives = nullptr;  // [samples, num_negatives]
  int64_t num_positives = 1, num_negatives = 1;

  ZX_HD int64_t items() const { return num_positives + num_negatives; }
  ZX_HD int64_t item_at(int64_t sample, int64_t j) const {
    return j < num_positives ? positives[sample * num_positives + j]
                             : negatives[sample * num_negatives + j - num_positives];
  }
};

// A loss as a choice of the registry, with its parameters and reduction.
struct MfLoss {
  Loss kind;
  double a, b, c;
};

// Where a block keeps its numbers. Scores of positives lie as planes [num_positives][n]; those of negatives as planes
// too for losses of pairs of items, else as rows [n, K].
template <class S, class C>
struct MfBlockBuffers {
  std::vector<C> pos, neg, aux_pos, aux_neg, weight, value, d_pos, d_neg, wide, coefficient;
  std::vector<const S*> rows;  // the item rows of the block's samples [n, J]

  void reserve(int64_t n, int64_t num_positives, int64_t k) {
    const size_t positives = static_cast<size_t>(n * num_positives), negatives = static_cast<size_t>(n * k);
    if (pos.size() < positives) pos.resize(positives), d_pos.resize(positives), aux_pos.resize(positives);
    if (neg.size() < negatives) {
      neg.resize(negatives), d_neg.resize(negatives), aux_neg.resize(negatives), weight.resize(negatives);
      value.resize(negatives), wide.resize(3 * negatives);
    }
    if (rows.size() < positives + negatives)
      rows.resize(positives + negatives), coefficient.resize(positives + negatives);
  }
};

// Scores and item rows of n samples: sample i of the block is number order[i], or first + i without an order. kWrite:
// the rows will be written, and are fetched as such.
template <class S, class C, bool kWrite = false, class Id = int64_t>
struct MfScores {
  static constexpr int64_t kFar = 16, kNear = 4;  // samples whose rows are on their way, and rows to be written
  static constexpr int64_t kRows = 8;             // of a sample's many negatives, likewise

  template <int kBytes>
  ZX_HD static void run(const MfInputs<S, C, Id>* inputs, const uint32_t* order, int64_t first, int64_t n,
                        int64_t limit, bool planes, MfBlockBuffers<S, C>* buffers) {
    const MfInputs<S, C, Id> in = *inputs;
    const bool pairs =
        in.num_positives == 1 && in.num_negatives == 1 && in.constants == nullptr && in.item_scale == nullptr;
    const auto score = [&](auto dim) __attribute__((always_inline)) {
      if (pairs)
        score_pairs<kBytes>(in, dim, order, first, n, limit, buffers);
      else
        score_items<kBytes>(in, dim, order, first, n, limit, planes, buffers);
    };
    if constexpr (std::is_same_v<S, float>)
      with_width(in.dim, score);
    else
      score(in.dim);
  }

  // One positive and one negative.
  template <int kBytes, class Dim>
  ZX_HD static void score_pairs(const MfInputs<S, C, Id>& in, Dim dim, const uint32_t* order, int64_t first, int64_t n,
                                int64_t limit, MfBlockBuffers<S, C>* buffers) {
    const S** rows = buffers->rows.data();
    C *pos = buffers->pos.data(), *neg = buffers->neg.data();
    for (int64_t i = 0; i < n; ++i) {
      if (i + kFar < limit) prefetch_pair<false>(in, dim, order != nullptr ? order[i + kFar] : first + i + kFar);
      if (kWrite && i + kNear < limit)
        prefetch_pair<true>(in, dim, order != nullptr ? order[i + kNear] : first + i + kNear);
      const int64_t sample = order != nullptr ? order[i] : first + i;
      const int64_t positive = in.positives[sample], negative = in.negatives[sample];
      const S *x = in.item + positive * dim, *y = in.item + negative * dim;
      const KeptRow<C, kBytes, S, Dim> user(in.user + static_cast<int64_t>(in.users[sample]) * dim, dim);
      rows[2 * i] = x, rows[2 * i + 1] = y;
      const C p = user.dot_with(x), q = user.dot_with(y);
      pos[i] = p + (in.bias != nullptr ? static_cast<C>(in.bias[positive]) : C(0));
      neg[i] = q + (in.bias != nullptr ? static_cast<C>(in.bias[negative]) : C(0));
    }
  }

  template <int kBytes, class Dim>
  ZX_HD static void score_items(const MfInputs<S, C, Id>& in, Dim dim, const uint32_t* order, int64_t first, int64_t n,
                                int64_t limit, bool planes, MfBlockBuffers<S, C>* buffers) {
    const int64_t positives = in.num_positives, k = in.num_negatives;
    const bool scaled = in.item_scale != nullptr;
    const bool plain = in.bias == nullptr && in.constants == nullptr && !scaled;
    const S** rows = buffers->rows.data();
    C *pos = buffers->pos.data(), *neg = buffers->neg.data();
    C *aux_pos = buffers->aux_pos.data(), *aux_neg = buffers->aux_neg.data();
    for (int64_t i = 0; i < n; ++i) {
      if (i + kFar < limit) prefetch<false>(in, dim, order != nullptr ? order[i + kFar] : first + i + kFar);
      if (kWrite && i + kNear < limit) prefetch<true>(in, dim, order != nullptr ? order[i + kNear] : first + i + kNear);
      const int64_t sample = order != nullptr ? order[i] : first + i;
      const KeptRow<C, kBytes, S, Dim> user(in.user + static_cast<int64_t>(in.users[sample]) * dim, dim);
      const C scale = scaled ? in.user_scale[in.users[sample]] : C(1);
      for (int64_t j = 0; j < positives; ++j) {
        const int64_t item = in.positives[sample * positives + j];
        const S* row = in.item + item * dim;
        *rows++ = row;
        C product = user.dot_with(row);
        if (scaled) product *= scale * in.item_scale[item];
        pos[j * n + i] = product + (in.bias != nullptr ? static_cast<C>(in.bias[item]) : C(0));
        if (in.constants != nullptr) aux_pos[j * n + i] = in.constants[item];
      }
      const Id* negatives = in.negatives + sample * k;
      const int64_t begin = planes ? i : i * k, stride = planes ? n : 1;
      if (plain) {
        // (Behind a sample's negatives are those of the next one.)
        const int64_t last = order != nullptr ? k : std::min(k + kRows, (limit - i) * k);
        for (int64_t j = 0; j < k; ++j) {
          if (j + kRows < last) prefetch_row<false>(in.item + static_cast<int64_t>(negatives[j + kRows]) * dim, dim);
          const S* row = in.item + static_cast<int64_t>(negatives[j]) * dim;
          rows[j] = row;
          neg[begin + j * stride] = user.dot_with(row) + C(0);  // (as if there were a bias: -0 becomes 0)
        }
      } else {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t item = negatives[j], at = begin + j * stride;
          const S* row = in.item + item * dim;
          rows[j] = row;
          C product = user.dot_with(row);
          if (scaled) product *= scale * in.item_scale[item];
          neg[at] = product + (in.bias != nullptr ? static_cast<C>(in.bias[item]) : C(0));
          if (in.constants != nullptr) aux_neg[at] = in.constants[item];
        }
      }
      rows += k;
    }
  }

  // (Not lambdas: the compiler takes one that does nothing but fetch for one that does nothing.)
  template <bool kFetchToWrite, class Dim>
  ZX_HD static void prefetch_pair(const MfInputs<S, C, Id>& in, Dim dim, int64_t sample) {
    prefetch_row<kFetchToWrite>(in.user + static_cast<int64_t>(in.users[sample]) * dim, dim);
    prefetch_row<kFetchToWrite>(in.item + static_cast<int64_t>(in.positives[sample]) * dim, dim);
    prefetch_row<kFetchToWrite>(in.item + static_cast<int64_t>(in.negatives[sample]) * dim, dim);
  }

  template <bool kFetchToWrite, class Dim>
  ZX_HD static void prefetch(const MfInputs<S, C, Id>& in, Dim dim, int64_t sample) {
    prefetch_row<kFetchToWrite>(in.user + static_cast<int64_t>(in.users[sample]) * dim, dim);
    for (int64_t j = 0; j < in.num_positives; ++j)
      prefetch_row<kFetchToWrite>(in.item + static_cast<int64_t>(in.positives[sample * in.num_positives + j]) * dim,
                                  dim);
    // Of many negatives the hardware sees the first few coming; the others follow while these are worked on.
    for (int64_t j = 0; j < std::min<int64_t>(in.num_negatives, 4); ++j)
      prefetch_row<kFetchToWrite>(in.item + static_cast<int64_t>(in.negatives[sample * in.num_negatives + j]) * dim,
                                  dim);
  }
};

// Evaluates one loss over a block's buffers. weight: [n], or [n, K] for losses of pairs, or nullptr. scale multiplies
// the derivatives. Returns the sum of the values; writes value, d_pos and d_neg (kGrad).
template <class S, class C>
using MfLossFunction = double (*)(MfBlockBuffers<S, C>& buffers, int64_t n, int64_t k, bool constants, const C* weight,
                                  C scale, const Params<C>& params);

// pos [n] against neg [n, k]: each pair is a sample.
template <class LossType, class S, class C, bool kGrad>
double mf_pair_loss(MfBlockBuffers<S, C>& buffers, int64_t n, int64_t k, bool, const C* weight, C scale,
                    const Params<C>& params) {
  const C *pos = buffers.pos.data(), *aux_pos = buffers.aux_pos.data();
  C* d_pos = buffers.d_pos.data();
  C *wide_pos = buffers.wide.data(), *wide_aux = wide_pos + n * k, *wide_d = wide_aux + n * k;
  if (k != 1) {
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(wide_pos + i * k, k, pos[i]);
      if (LossType::kAux > 0) std::fill_n(wide_aux + i * k, k, aux_pos[i]);
    }
    pos = wide_pos, aux_pos = wide_aux, d_pos = wide_d;
  }
  const C* scores[2] = {pos, buffers.neg.data()};
  const C* aux[2] = {aux_pos, buffers.aux_neg.data()};
  C* grads[2] = {d_pos, buffers.d_neg.data()};
  const double total = simd<ElementTile<LossType, C, kGrad>>(
      static_cast<const C* const*>(scores), static_cast<const C* const*>(aux), weight, scale, params, n * k,
      buffers.value.data(), static_cast<C* const*>(grads));
  if (kGrad && k != 1)
    for (int64_t i = 0; i < n; ++i) buffers.d_pos[i] = static_cast<C>(sum_lanes(wide_d + i * k, k));
  return total;
}

template <class LossType, class S, class C, bool kGrad>
double mf_quad_loss(MfBlockBuffers<S, C>& buffers, int64_t n, int64_t, bool, const C* weight, C scale,
                    const Params<C>& params) {
  const C* scores[4] = {buffers.pos.data(), buffers.pos.data() + n, buffers.neg.data(), buffers.neg.data() + n};
  C* grads[4] = {buffers.d_pos.data(), buffers.d_pos.data() + n, buffers.d_neg.data(), buffers.d_neg.data() + n};
  const C* const* none = nullptr;
  return simd<ElementTile<LossType, C, kGrad>>(static_cast<const C* const*>(scores), none, weight, scale, params, n,
                                               buffers.value.data(), static_cast<C* const*>(grads));
}

template <class LossType, class S, class C, bool kGrad>
double mf_row_loss(MfBlockBuffers<S, C>& buffers, int64_t n, int64_t k, bool constants, const C* weight, C scale,
                   const Params<C>& params) {
  return simd<RowTile<LossType, C, kGrad>>(
      static_cast<const C*>(buffers.pos.data()), static_cast<const C*>(buffers.neg.data()),
      static_cast<const C*>(constants ? buffers.aux_pos.data() : nullptr),
      static_cast<const C*>(constants ? buffers.aux_neg.data() : nullptr), weight, scale, params, n, k,
      static_cast<C>(std::log(static_cast<double>(k))), buffers.value.data(), buffers.d_pos.data(),
      buffers.d_neg.data(), buffers.d_neg.data());
}

template <class S, class C, bool kGrad>
MfLossFunction<S, C> mf_loss_function(Loss loss) {
  switch (loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return &mf_pair_loss<type, S, C, kGrad>;
    ZX_PAIR_LOSSES(ZX_CASE)
#undef ZX_CASE
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return &mf_quad_loss<type, S, C, kGrad>;
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return &mf_row_loss<type, S, C, kGrad>;
    ZX_ROW_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      ZX_CHECK(false, "no such loss");
  }
}

// Brings a block's derivatives into the layout [n, J].
template <class S, class C>
inline void gather_coefficients(MfBlockBuffers<S, C>& buffers, int64_t n, int64_t positives, int64_t k, bool planes) {
  C* out = buffers.coefficient.data();
  const C *d_pos = buffers.d_pos.data(), *d_neg = buffers.d_neg.data();
  if (positives == 1 && k == 1) {
    for (int64_t i = 0; i < n; ++i) out[2 * i] = d_pos[i], out[2 * i + 1] = d_neg[i];
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < positives; ++j) *out++ = d_pos[j * n + i];
    for (int64_t j = 0; j < k; ++j) *out++ = d_neg[planes ? j * n + i : i * k + j];
  }
}

}  // namespace zx::cpu
