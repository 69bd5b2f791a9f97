// Runs a row loss (csrc/common/losses.h) over rows of K negatives on the CPU.
//
// A row takes three SIMD passes over its K numbers, which stay in the cache: the logits and their maximum; their
// exponentials and the sum; the gradients. Rows are cut into fixed blocks whose partial sums are added in order.
#pragma once

#include <cmath>

#include "cpu/element_loss.h"

namespace zx::cpu {

template <class Loss, class T, bool kGrad>
struct RowTile {
  static constexpr int kLanes = 16;

  // rows x k negatives n, and aux constants x where given; e is scratch for k numbers and may be the row of dn.
  // value[r] = w[r] * loss; dp[r], dn[r, :] = scale * w[r] * derivatives. Returns the sum of the values.
  ZX_HD static double run(const T* p, const T* n, const T* aux_p, const T* aux_n, const T* weight, T scale,
                          Params<T> params, int64_t rows, int64_t k, T log_k, T* value, T* dp, T* dn, T* scratch) {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      T* e = kGrad ? dn + r * k : scratch;
      const T* x = aux_n != nullptr ? aux_n + r * k : nullptr;
      const T w = weight != nullptr ? weight[r] : T(1);
      value[r] = w * row(p[r], n + r * k, aux_p != nullptr ? aux_p[r] : T(0), x, w * scale, params, k, log_k,
                         kGrad ? dp + r : nullptr, e);
      total += static_cast<double>(value[r]);
    }
    return total;
  }

  ZX_HD static T row(T p, const T* n, T aux_p, const T* x, T scale, const Params<T>& w, int64_t k, T log_k, T* dp,
                     T* e) {
    if (x != nullptr) {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], x[j], w).z;
    } else {
#pragma GCC ivdep
      for (int64_t j = 0; j < k; ++j) e[j] = Loss::logit(p, n[j], T(0), w).z;
    }
    const T top = maximum(e, k);
    if (Loss::kHardMax) {
      int64_t first = 0;
      T nan = T(0);  // 0, or NaN where a logit is: NaN in, NaN out
      for (int64_t j = 0; j < k; ++j) nan += e[j] * T(0);
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
    for (int64_t j = 0; j < k; ++j) e[j] = exp_nonpositive(e[j] - top);
    double sum = 0;
    sum_lanes(e, k, &sum);
    const RowValue<T> f = Loss::finish(p, aux_p, top + log_(static_cast<T>(sum)), log_k, w);
    if (kGrad) {
      const T factor = scale * f.dl / static_cast<T>(sum);
      double through_logits = 0;
      if (Loss::kPositiveInLogit) {
        // The derivative in p of each logit is minus that in n, so that one sum over the gradients gives it.
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) e[j] *= factor * Loss::logit(p, n[j], T(0), w).dn;
        sum_lanes(e, k, &through_logits);
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

// problem.scores: p (its columns repeat) and n; problem.aux: none, or the constants of p and of n, either of which
// may be absent (data == nullptr); problem.weight: one per row; problem.value: [rows] for reduction none.
template <class Loss, class S, bool kGrad>
void row_loss_typed(const ElementProblem& problem) {
  using C = compute_t<S>;
  const int64_t rows = problem.rows, k = problem.cols;
  const int64_t tile_rows = std::max<int64_t>(1, kTile / k);
  const int64_t block_rows = tile_rows * (k > kTile ? 1 : kTilesPerBlock);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  const C scale = static_cast<C>(problem.reduction == Reduction::kMean ? 1.0 / static_cast<double>(rows) : 1.0);
  const Params<C> params{static_cast<C>(problem.a), static_cast<C>(problem.b), static_cast<C>(problem.c)};
  const C log_k = static_cast<C>(std::log(static_cast<double>(k)));
  const bool keep_values = problem.reduction == Reduction::kNone;
  const View aux_pos = problem.aux.empty() ? View{} : problem.aux[0];
  const View aux_neg = problem.aux.empty() ? View{} : problem.aux[1];
  std::vector<double> partials(blocks);

  const auto do_block = [&](int64_t block) {
    const int64_t tile = std::max(kTile, k);
    std::vector<C> buffers(static_cast<size_t>(tile) * 3);
    C *n_buffer = buffers.data(), *x_buffer = n_buffer + tile, *grad_buffer = x_buffer + tile;
    C p_buffer[kTile], xp_buffer[kTile], w_buffer[kTile], value[kTile], dp[kTile];
    double total = 0;
    const int64_t block_end = std::min(rows, (block + 1) * block_rows);
    for (int64_t row = block * block_rows; row < block_end; row += tile_rows) {
      const int64_t r = std::min(tile_rows, block_end - row);
      View p_view = problem.scores[0];
      p_view.col_stride = 1;
      const C* p = load_tile<S, C>(p_view, row, r, 0, 1, p_buffer);
      const C* n = load_tile<S, C>(problem.scores[1], row, r, 0, k, n_buffer);
      const C* xp = aux_pos.data ? load_tile<C, C>(aux_pos, row, r, 0, 1, xp_buffer) : nullptr;
      const C* xn = aux_neg.data ? load_tile<C, C>(aux_neg, row, r, 0, k, x_buffer) : nullptr;
      const C* w = problem.weight ? load_tile<C, C>(*problem.weight, row, r, 0, 1, w_buffer) : nullptr;
      C* dn = grad_buffer;
      if (kGrad && std::is_same_v<S, C>) dn = static_cast<C*>(problem.grads[1].data) + row * k;
      total += simd<RowTile<Loss, C, kGrad>>(p, n, xp, xn, w, scale, params, r, k, log_k, static_cast<C*>(value),
                                             static_cast<C*>(dp), dn, grad_buffer);
      if (keep_values)
        for (int64_t i = 0; i < r; ++i) static_cast<S*>(problem.value)[row + i] = static_cast<S>(value[i]);
      if constexpr (kGrad) {
        S* out_p = static_cast<S*>(problem.grads[0].data) + row;
        for (int64_t i = 0; i < r; ++i) out_p[i] = static_cast<S>(dp[i]);
        if (!std::is_same_v<S, C>) {
          S* out = static_cast<S*>(problem.grads[1].data) + row * k;
          for (int64_t i = 0; i < r * k; ++i) out[i] = static_cast<S>(dn[i]);
        }
      }
    }
    partials[block] = total;
  };
  for_each_block(blocks, rows * k <= kSerialSamples ? blocks : 1, do_block);
  if (!keep_values) store_total<C>(problem, partials.data(), blocks, static_cast<double>(rows));
}

template <class Loss>
void row_loss(const ElementProblem& problem, ScalarType dtype) {
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (problem.grads.empty())
      row_loss_typed<Loss, S, false>(problem);
    else
      row_loss_typed<Loss, S, true>(problem);
  });
}

}  // namespace zx::cpu
