// Runs a row loss (csrc/common/losses.h) over rows of K negatives on the CPU.
//
// A row takes SIMD passes over its K numbers, which stay in the cache: the logits and their maximum; their exponentials
// and the sum; the gradients. What is one number a row (the value, from a logarithm and a quotient) is worked out for
// many rows at a time: one row's would be a chain of scalar steps that wait for each other, as long as a pass over 64
// numbers. Rows are cut into fixed blocks whose partial sums are added in order.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/element_loss.h"

namespace zx::cpu {

template <class Loss, class T, bool kGrad>
struct RowTile {
  static constexpr int64_t kGroup = 64;  // rows whose values are made together
  // That many at a time; the C library's functions, which double takes, are called for no row that is not there.
  static constexpr int64_t kStep = std::is_same_v<T, float> ? kLanes : 1;
  static constexpr bool kSums = !Loss::kMean && !Loss::kHardMax;  // the rest counts

  // One number a row. level: the logits' largest, or their mean. rest: the sum of e^(logit - level).
  struct Group {
    alignas(64) T p[kGroup], aux[kGroup], weight[kGroup], level[kGroup], rest[kGroup], value[kGroup];
    alignas(64) T factor[kGroup], direct[kGroup];  // of the logits' derivatives, and what is the positive's besides
    int64_t top[kGroup];                           // where the largest logit is
  };

  // rows x k negatives n, and aux constants x where given; e is scratch for k numbers and may be the row of dn.
  // value[r] = w[r] * loss; dp[r], dn[r, :] = scale * w[r] * derivatives. Returns the sum of the values.
  template <int kBytes>
  ZX_HD static double run(const T* p, const T* n, const T* aux_p, const T* aux_n, const T* weight, T scale,
                          Params<T> params, int64_t rows, int64_t k, T log_k, T* value, T* dp, T* dn, T* scratch) {
    double total = 0;
    for (int64_t from = 0; from < rows; from += kGroup) {
      const int64_t some = std::min(kGroup, rows - from), padded = (some + kStep - 1) / kStep * kStep;
      const int64_t at = from * k;
      Group g;
      for (int64_t r = 0; r < padded; ++r) {
        const bool is_row = r < some;
        g.p[r] = is_row ? p[from + r] : T(0);
        g.aux[r] = is_row && aux_p != nullptr ? aux_p[from + r] : T(0);
        g.weight[r] = is_row && weight != nullptr ? weight[from + r] : T(1);
        g.level[r] = T(0), g.rest[r] = T(1);
      }
      const T* x = aux_n != nullptr ? aux_n + at : nullptr;
      T* e = kGrad ? dn + at : scratch;
      const auto pass = [&](auto known) __attribute__((always_inline)) {
        reduce_rows<kBytes>(g, some, n + at, x, params, known, e);
        finish(g, padded, scale, params, k, log_k);
        if (kGrad) spread_rows<kBytes>(g, some, n + at, x, params, known, e, dp + from);
      };
      if constexpr (std::is_same_v<T, float>)
        with_width(k, pass);
      else
        pass(k);
      for (int64_t r = 0; r < some; ++r) {
        value[from + r] = g.value[r];
        total += static_cast<double>(g.value[r]);
      }
    }
    return total;
  }

  // K: int64_t, or a constant of that type: each row's loops then have neither beginnings nor ends.
  template <int kBytes, class K>
  ZX_HD static void reduce_rows(Group& g, int64_t rows, const T* n, const T* x, const Params<T>& w, K k, T* e) {
    for (int64_t r = 0; r < rows; ++r) {
      reduce<kBytes>(g, r, n + r * k, x != nullptr ? x + r * k : nullptr, w, k, kGrad ? e + r * k : e);
      if (kSums && !kGrad) raise<kBytes>(g, r, k, e);  // (e is of one row)
    }
    // One pass for all rows after another: a row's maximum is a chain of steps, during which the processor can go on
    // with the next rows only if they are near.
    for (int64_t r = 0; r < rows && kSums && kGrad; ++r) raise<kBytes>(g, r, k, e + r * k);
  }
  template <int kBytes, class K>
  ZX_HD static void spread_rows(const Group& g, int64_t rows, const T* n, const T* x, const Params<T>& w, K k, T* e,
                                T* dp) {
    for (int64_t r = 0; r < rows; ++r)
      dp[r] = spread<kBytes>(g, r, n + r * k, x != nullptr ? x + r * k : nullptr, w, k, e + r * k);
  }

  // A row's logits and level.
  template <int kBytes, class K>
  ZX_HD static void reduce(Group& g, int64_t r, const T* n, const T* x, const Params<T>& w, K known, T* e) {
    const int64_t k = known;
    const T p = g.p[r];
    if (x != nullptr) {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], x[j], w).z;
    } else {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], T(0), w).z;
    }
    if (Loss::kMean) {
      g.level[r] = static_cast<T>(sum_lanes<kBytes>(e, k)) * (T(1) / static_cast<T>(k));
      return;
    }
    const T top = maximum<kBytes>(e, k);
    g.level[r] = top;
    if (Loss::kHardMax) {
      int64_t first = 0;
      T nan = T(0);  // 0, or NaN where a logit is: NaN in, NaN out
      for (int64_t j = 0; j < k; ++j) nan += e[j] == e[j] ? T(0) : e[j];
      while (first + 1 < k && e[first] != top) ++first;
      g.level[r] = top + nan, g.top[r] = first;
    }
  }

  // A row's rest; leaves in e what its gradients are made of.
  template <int kBytes, class K>
  ZX_HD static void raise(Group& g, int64_t r, K known, T* e) {
    const int64_t k = known;
    const T top = g.level[r], shift = empty(top) ? T(0) : top;
#pragma GCC ivdep
    for (int64_t j = 0; j < k; ++j) e[j] = exp_nonpositive(e[j] - shift);
    g.rest[r] = static_cast<T>(sum_lanes<kBytes>(e, k));  // NaN where a logit is
  }

  // A logit of minus infinity masks its item: a row may have nothing else.
  ZX_HD static bool empty(T top) { return top == -std::numeric_limits<T>::infinity(); }

  // The rows' values, and the factors of their derivatives.
  ZX_HD static void finish(Group& g, int64_t rows, T scale, const Params<T>& w, int64_t k, T log_k) {
    const T share = T(1) / static_cast<T>(k);
#pragma GCC ivdep
    for (int64_t r = 0; r < rows; ++r) {
      const T rest = g.rest[r], own = g.weight[r] * scale;
      const bool none = kSums && empty(g.level[r]);
      const T l = kSums ? g.level[r] + (none ? rest - rest : log_(rest)) : g.level[r];
      const RowValue<T> f = Loss::finish(g.p[r], g.aux[r], l, log_k, w);
      g.value[r] = g.weight[r] * f.value;
      g.direct[r] = own * f.dp;
      T factor = own * f.dl;
      if (Loss::kMean) factor *= share;
      if (kSums) factor = none ? T(0) : factor / rest;
      g.factor[r] = kSums && !Loss::kPositiveInLogit ? factor * Loss::logit(g.p[r], T(0), T(0), w).dn : factor;
    }
  }

  // Makes a row's gradients of what `reduce` has left; returns that of its positive.
  template <int kBytes, class K>
  ZX_HD static T spread(const Group& g, int64_t r, const T* n, const T* x, const Params<T>& w, K known, T* e) {
    const int64_t k = known;
    const T p = g.p[r], factor = g.factor[r];
    if (Loss::kHardMax) {
      for (int64_t j = 0; j < k; ++j) e[j] = T(0);
      e[g.top[r]] = factor;
    } else if (Loss::kMean) {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = factor * Loss::logit(p, n[j], x != nullptr ? x[j] : T(0), w).dn;
    } else if (Loss::kPositiveInLogit) {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] *= factor * Loss::logit(p, n[j], T(0), w).dn;
    } else {
      for (int64_t j = 0; j < k; ++j) e[j] *= factor;
    }
    // The derivative in p of each logit is minus that in n, where p takes part in it: one sum over the gradients.
    if (!Loss::kPositiveInLogit) return g.direct[r];
    return g.direct[r] - static_cast<T>(sum_lanes<kBytes>(e, k));
  }

  template <int kBytes>
  ZX_HD static T maximum(const T* e, int64_t k) {
    T best = e[0];
    int64_t j = 0;
    if (k >= kLanes) {
      Lanes<T, kBytes> lanes;
      lanes.read(e);
      for (j = kLanes; j + kLanes <= k; j += kLanes) lanes.raise(e + j);
      best = lanes.largest();  // (one by one, who is larger would be guessed wrongly at every other row)
    }
    for (; j < k; ++j) best = e[j] > best ? e[j] : best;
    return best;
  }
};

// problem.scores: p (its columns repeat) and n; problem.aux: the constants of p and of n, either of which may be
// absent; problem.weight: one per row; problem.value: [rows] for reduction none. scratch: three times the larger of
// kTile and k.
template <class Loss, class S, class C, bool kGrad>
double row_block(const ElementProblem& problem, C scale, C log_k, int64_t block, C* scratch) {
  const int64_t k = problem.cols, tile_rows = problem.tile_rows(), tile = std::max(kTile, k);
  const View &aux_pos = problem.aux[0], &aux_neg = problem.aux[1];
  C *n_buffer = scratch, *x_buffer = n_buffer + tile, *grad_buffer = x_buffer + tile;
  alignas(64) C p_buffer[kTile], xp_buffer[kTile], w_buffer[kTile], value[kTile], dp[kTile];
  double total = 0;
  const int64_t block_end = std::min(problem.rows, (block + 1) * problem.block_rows());
  for (int64_t row = block * problem.block_rows(); row < block_end; row += tile_rows) {
    const int64_t r = std::min(tile_rows, block_end - row);
    const C* p = load_tile<S, C>(problem.scores[0], row, r, 0, 1, p_buffer);
    const C* n = load_tile<S, C>(problem.scores[1], row, r, 0, k, n_buffer);
    const C* xp = aux_pos.data ? load_tile<C, C>(aux_pos, row, r, 0, 1, xp_buffer) : nullptr;
    const C* xn = aux_neg.data ? load_tile<C, C>(aux_neg, row, r, 0, k, x_buffer) : nullptr;
    const C* w = problem.weight.data ? load_tile<C, C>(problem.weight, row, r, 0, 1, w_buffer) : nullptr;
    C* dn = grad_buffer;
    if (kGrad && std::is_same_v<S, C>) dn = static_cast<C*>(problem.grads[1].data) + row * k;
    total += simd_for<RowTile<Loss, C, kGrad>, C>(p, n, xp, xn, w, scale, problem.params<C>(), r, k, log_k,
                                                  static_cast<C*>(value), static_cast<C*>(dp), dn, grad_buffer);
    if (problem.keep_values())
      simd<StoreTile<S, C>>(static_cast<const C*>(value), r, static_cast<S*>(problem.value) + row);
    if constexpr (kGrad) {
      simd<StoreTile<S, C>>(static_cast<const C*>(dp), r, static_cast<S*>(problem.grads[0].data) + row);
      if (!std::is_same_v<S, C>)
        simd<StoreTile<S, C>>(static_cast<const C*>(dn), r * k, static_cast<S*>(problem.grads[1].data) + row * k);
    }
  }
  return total;
}

template <class Loss, class S, bool kGrad>
void row_loss_typed(const ElementProblem& problem) {
  using C = compute_t<S>;
  const double rows = static_cast<double>(problem.rows);
  const C scale = static_cast<C>(problem.reduction == Reduction::kMean ? 1.0 / rows : 1.0);
  const C log_k = static_cast<C>(std::log(static_cast<double>(problem.cols)));
  reduce_blocks<C>(problem, rows, [&](int64_t block) {
    std::vector<C> scratch(static_cast<size_t>(3 * std::max(kTile, problem.cols)));
    return row_block<Loss, S, C, kGrad>(problem, scale, log_k, block, scratch.data());
  });
}

template <class Loss>
void row_loss(const ElementProblem& problem, ScalarType dtype) {
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (problem.grad)
      row_loss_typed<Loss, S, true>(problem);
    else
      row_loss_typed<Loss, S, false>(problem);
  });
}

}  // namespace zx::cpu
