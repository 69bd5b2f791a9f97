// Runs a row loss (csrc/common/losses.h) over rows of K negatives on the CPU.
//
// A row takes three SIMD passes over its K numbers, which stay in the cache: the logits and their maximum; their
// exponentials and the sum; the gradients. Rows are cut into fixed blocks whose partial sums are added in order.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/element_loss.h"

namespace zx::cpu {

template <class Loss, class T, bool kGrad>
struct RowTile {
  // rows x k negatives n, and aux constants x where given; e is scratch for k numbers and may be the row of dn.
  // value[r] = w[r] * loss; dp[r], dn[r, :] = scale * w[r] * derivatives. Returns the sum of the values.
  template <int kBytes>
  ZX_HD static double run(const T* p, const T* n, const T* aux_p, const T* aux_n, const T* weight, T scale,
                          Params<T> params, int64_t rows, int64_t k, T log_k, T* value, T* dp, T* dn, T* scratch) {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      T* e = kGrad ? dn + r * k : scratch;
      const T* x = aux_n != nullptr ? aux_n + r * k : nullptr;
      const T w = weight != nullptr ? weight[r] : T(1);
      value[r] = w * row<kBytes>(p[r], n + r * k, aux_p != nullptr ? aux_p[r] : T(0), x, w * scale, params, k, log_k,
                                 kGrad ? dp + r : nullptr, e);
      total += static_cast<double>(value[r]);
    }
    return total;
  }

  template <int kBytes>
  ZX_HD static T row(T p, const T* n, T aux_p, const T* x, T scale, const Params<T>& w, int64_t k, T log_k, T* dp,
                     T* e) {
    if (x != nullptr) {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], x[j], w).z;
    } else {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], T(0), w).z;
    }
    if (Loss::kMean) {
      const T share = T(1) / static_cast<T>(k);
      const RowValue<T> f = Loss::finish(p, aux_p, static_cast<T>(sum_lanes<kBytes>(e, k)) * share, log_k, w);
      if (kGrad) {
        const T factor = scale * f.dl * share;
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) e[j] = factor * Loss::logit(p, n[j], x != nullptr ? x[j] : T(0), w).dn;
        // The derivative in p of each logit is minus that in n, where p takes part in it.
        *dp = scale * f.dp - (Loss::kPositiveInLogit ? static_cast<T>(sum_lanes<kBytes>(e, k)) : T(0));
      }
      return f.value;
    }
    const T top = maximum(e, k);
    // A logit of minus infinity masks its item: a row may have nothing else.
    const bool empty = top == -std::numeric_limits<T>::infinity();
    const T shift = empty ? T(0) : top;
    if (Loss::kHardMax) {
      int64_t first = 0;
      T nan = T(0);  // 0, or NaN where a logit is: NaN in, NaN out
      for (int64_t j = 0; j < k; ++j) nan += e[j] == e[j] ? T(0) : e[j];
      while (first + 1 < k && e[first] != top) ++first;
      const RowValue<T> f = Loss::finish(p, aux_p, top + nan, log_k, w);
      if (kGrad) {
        *dp = scale * f.dp;
        for (int64_t j = 0; j < k; ++j) e[j] = T(0);
        e[first] = scale * f.dl;
      }
      return f.value;
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < k; ++j) e[j] = exp_nonpositive(e[j] - shift);
    const double sum = sum_lanes<kBytes>(e, k);
    const T rest = static_cast<T>(sum);  // NaN where a logit is
    const RowValue<T> f = Loss::finish(p, aux_p, top + (empty ? rest - rest : log_(rest)), log_k, w);
    if (kGrad) {
      const T factor = empty ? T(0) : scale * f.dl / rest;
      double through_logits = 0;
      if (Loss::kPositiveInLogit) {
        // The derivative in p of each logit is minus that in n, so that one sum over the gradients gives it.
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) e[j] *= factor * Loss::logit(p, n[j], T(0), w).dn;
        through_logits = sum_lanes<kBytes>(e, k);
      } else {
        const T slope = factor * Loss::logit(p, T(0), T(0), w).dn;
        for (int64_t j = 0; j < k; ++j) e[j] *= slope;
      }
      *dp = scale * f.dp - static_cast<T>(through_logits);
    }
    return f.value;
  }

  ZX_HD static T maximum(const T* e, int64_t k) {
    T best = e[0];
    int64_t j = 0;
    if (k >= kLanes) {
      T lanes[kLanes];
      for (int l = 0; l < kLanes; ++l) lanes[l] = e[l];
      for (j = kLanes; j + kLanes <= k; j += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] = e[j + l] > lanes[l] ? e[j + l] : lanes[l];
      for (int l = 0; l < kLanes; ++l) best = lanes[l] > best ? lanes[l] : best;
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
