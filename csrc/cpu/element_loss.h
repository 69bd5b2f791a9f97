// Runs an element loss (csrc/common/losses.h) over [rows, cols] samples on the CPU.
//
// The samples are cut into tiles that stay in the L1 cache. A tile's inputs are brought into contiguous
// arrays of the arithmetic type (or used in place where they are already so), one SIMD loop evaluates the
// loss and its derivatives, and the results are stored, converted or summed over the columns. Partial sums
// belong to fixed blocks of tiles and are added in order, in double: the result is the same for any number of
// threads.
#pragma once

#include <algorithm>
#include <vector>

#include "common/losses.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "torch_stable.h"

namespace zx::cpu {

constexpr int64_t kTile = 1024;            // samples
constexpr int64_t kTilesPerBlock = 8;      // a block is what one thread does at a time
constexpr int64_t kSerialSamples = 16384;  // below this a second thread costs more than it saves

// A read-only [rows, cols] view of a tensor; a stride of 0 repeats.
struct View {
  const void* data = nullptr;
  int64_t row_stride = 0, col_stride = 0;
};

// Where a score's gradient goes. Contiguous over samples, one element per row (then the columns are summed),
// or strided by row (the two halves of a [B, 2] tensor).
struct GradView {
  void* data = nullptr;
  int64_t row_stride = 0;
  bool per_row = false;
};

template <class T>
ZX_HD void sum_lanes(const T* v, int64_t n, double* total) {
  // Sixteen running sums over 256 values at a time, then double: exact enough for any length, and the same
  // order of additions whatever the width of the machine's vectors.
  constexpr int kLanes = 16;
  int64_t i = 0;
  for (; i + kLanes <= n;) {
    T lanes[kLanes] = {};
    const int64_t stop = std::min(n - kLanes, i + 240);
    for (; i <= stop; i += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += v[i + l];
    for (int l = 0; l < kLanes; ++l) *total += static_cast<double>(lanes[l]);
  }
  for (; i < n; ++i) *total += static_cast<double>(v[i]);
}

template <class Loss, class T, bool kGrad>
struct ElementTile {
  // value[i] = w[i] * loss, grad[k][i] = scale * w[i] * derivative; returns the sum of the values.
  ZX_HD static double run(const T* const* scores, const T* const* aux, const T* weight, T scale, Params<T> params,
                          int64_t n, T* value, T* const* grad) {
    const T* s[Loss::kScores];
    const T* x[Loss::kAux + 1];
    T* g[Loss::kScores];
    for (int k = 0; k < Loss::kScores; ++k) s[k] = scores[k];
    for (int k = 0; k < Loss::kAux; ++k) x[k] = aux[k];
    for (int k = 0; k < Loss::kScores; ++k) g[k] = kGrad ? grad[k] : nullptr;
    if (weight != nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) sample<true>(s, x, weight, scale, params, i, value, g);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) sample<false>(s, x, weight, scale, params, i, value, g);
    }
    double total = 0;
    sum_lanes(value, n, &total);
    return total;
  }

  template <bool kWeighted>
  ZX_HD static void sample(const T* const* s, const T* const* x, const T* weight, T scale, const Params<T>& params,
                           int64_t i, T* value, T* const* g) {
    T in[Loss::kScores], constants[Loss::kAux + 1], d[Loss::kScores];
    for (int k = 0; k < Loss::kScores; ++k) in[k] = s[k][i];
    for (int k = 0; k < Loss::kAux; ++k) constants[k] = x[k][i];
    const T v = Loss::eval(in, constants, params, d);
    const T w = kWeighted ? weight[i] : T(1);
    value[i] = kWeighted ? w * v : v;
    if (kGrad) {
      const T f = kWeighted ? scale * w : scale;
      for (int k = 0; k < Loss::kScores; ++k) g[k][i] = f * d[k];
    }
  }
};

// A tile's piece of a view, as a contiguous array of C: in place where possible, else gathered into the
// buffer.
template <class S, class C>
inline const C* load_tile(const View& view, int64_t row, int64_t rows, int64_t col, int64_t cols, C* buffer) {
  const S* base = static_cast<const S*>(view.data) + row * view.row_stride + col * view.col_stride;
  if constexpr (std::is_same_v<S, C>) {
    const bool cols_contiguous = cols == 1 || view.col_stride == 1;
    const bool rows_contiguous = rows == 1 || view.row_stride == cols;
    if (cols_contiguous && rows_contiguous) return base;
  }
  C* out = buffer;
  if (cols == 1) {
    for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<C>(base[r * view.row_stride]);
    return buffer;
  }
  for (int64_t r = 0; r < rows; ++r, out += cols) {
    const S* line = base + r * view.row_stride;
    if (view.col_stride == 0) {
      std::fill_n(out, cols, static_cast<C>(*line));
    } else if (view.col_stride == 1) {
      for (int64_t c = 0; c < cols; ++c) out[c] = static_cast<C>(line[c]);
    } else {
      for (int64_t c = 0; c < cols; ++c) out[c] = static_cast<C>(line[c * view.col_stride]);
    }
  }
  return buffer;
}

// What one call works on. value is [rows, cols] for reduction none, else one element.
struct ElementProblem {
  int64_t rows = 0, cols = 1;
  std::vector<View> scores, aux;
  std::optional<View> weight;
  std::vector<GradView> grads;  // empty: values only
  void* value = nullptr;
  Reduction reduction = Reduction::kMean;
  double a = 1, b = 1, c = 1;
};

// Writes the sum, or mean, of the blocks' partial sums; the mean of nothing is 0.
template <class C>
inline void store_total(const ElementProblem& problem, const double* partials, int64_t blocks, double samples) {
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partials[b];
  if (problem.reduction == Reduction::kMean && samples > 0) total /= samples;
  *static_cast<C*>(problem.value) = static_cast<C>(total);
}

// S: the scores' element type; C: the arithmetic's; V: the value's (S for reduction none, else C).
template <class Loss, class S, bool kGrad>
void element_loss_typed(const ElementProblem& problem) {
  using C = compute_t<S>;
  constexpr int kScores = Loss::kScores, kAux = Loss::kAux;
  const int64_t rows = problem.rows, cols = problem.cols;
  const int64_t tile_cols = std::min(cols, kTile);
  const int64_t tile_rows = std::max<int64_t>(1, kTile / std::max<int64_t>(1, cols));
  const int64_t block_rows = tile_rows * (cols > kTile ? 1 : kTilesPerBlock);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  const double samples = static_cast<double>(rows) * static_cast<double>(cols);
  const C scale = static_cast<C>(problem.reduction == Reduction::kMean ? 1.0 / samples : 1.0);
  const Params<C> params{static_cast<C>(problem.a), static_cast<C>(problem.b), static_cast<C>(problem.c)};
  const bool keep_values = problem.reduction == Reduction::kNone;

  if (cols == 0)  // no samples: nothing below writes the gradients of the rows
    for (const GradView& g : problem.grads)
      if (g.per_row)
        for (int64_t r = 0; r < rows; ++r) static_cast<S*>(g.data)[r * g.row_stride] = static_cast<S>(C(0));

  double first_partials[64];
  std::vector<double> more_partials;
  double* partials = first_partials;
  if (blocks > 64) {
    more_partials.resize(blocks);
    partials = more_partials.data();
  }

  const auto do_block = [&](int64_t block) {
    alignas(64) C score_buffer[kScores][kTile];
    alignas(64) C aux_buffer[kAux + 1][kAux > 0 ? kTile : 1];
    alignas(64) C weight_buffer[kTile];
    alignas(64) C value_buffer[kTile];
    alignas(64) C grad_buffer[kScores][kGrad ? kTile : 1];
    double total = 0;
    const int64_t block_end = std::min(rows, (block + 1) * block_rows);
    for (int64_t row = block * block_rows; row < block_end; row += tile_rows) {
      const int64_t r = std::min(tile_rows, block_end - row);
      C row_sums[kScores] = {};  // of columns seen so far, where a row is longer than a tile
      for (int64_t col = 0; col < cols; col += tile_cols) {
        const int64_t k = std::min(tile_cols, cols - col), n = r * k;
        const C* scores[kScores];
        const C* aux[kAux + 1];
        C* grads[kScores];
        for (int i = 0; i < kScores; ++i)
          scores[i] = load_tile<S, C>(problem.scores[i], row, r, col, k, score_buffer[i]);
        for (int i = 0; i < kAux; ++i) aux[i] = load_tile<C, C>(problem.aux[i], row, r, col, k, aux_buffer[i]);
        const C* weight = problem.weight ? load_tile<C, C>(*problem.weight, row, r, col, k, weight_buffer) : nullptr;
        if constexpr (kGrad) {
          for (int i = 0; i < kScores; ++i) {
            const GradView& g = problem.grads[i];
            const bool in_place = std::is_same_v<S, C> && !g.per_row && (cols > 1 || g.row_stride == 1);
            grads[i] = in_place ? static_cast<C*>(g.data) + row * cols + col : grad_buffer[i];
          }
        }
        C* values = value_buffer;
        if (std::is_same_v<S, C> && keep_values) values = static_cast<C*>(problem.value) + row * cols + col;
        total +=
            simd<ElementTile<Loss, C, kGrad>>(static_cast<const C* const*>(scores), static_cast<const C* const*>(aux),
                                              weight, scale, params, n, values, static_cast<C* const*>(grads));
        if (keep_values && !std::is_same_v<S, C>) {
          S* out = static_cast<S*>(problem.value) + row * cols + col;
          for (int64_t i = 0; i < n; ++i) out[i] = static_cast<S>(value_buffer[i]);
        }
        if constexpr (kGrad) {
          for (int i = 0; i < kScores; ++i) {
            const GradView& g = problem.grads[i];
            if (grads[i] != grad_buffer[i]) continue;
            S* out = static_cast<S*>(g.data);
            if (!g.per_row) {
              const int64_t step = cols > 1 ? 1 : g.row_stride;
              out += cols > 1 ? row * cols + col : row * g.row_stride;
              for (int64_t j = 0; j < n; ++j) out[j * step] = static_cast<S>(grads[i][j]);
            } else if (k == cols) {
              for (int64_t j = 0; j < r; ++j) {
                double sum = 0;
                sum_lanes(grads[i] + j * k, k, &sum);
                out[(row + j) * g.row_stride] = static_cast<S>(static_cast<C>(sum));
              }
            } else {
              double sum = 0;
              sum_lanes(grads[i], n, &sum);
              row_sums[i] += static_cast<C>(sum);
              if (col + k == cols) out[row * g.row_stride] = static_cast<S>(row_sums[i]);
            }
          }
        }
      }
    }
    partials[block] = total;
  };
  for_each_block(blocks, rows * cols <= kSerialSamples ? blocks : 1, do_block);
  if (!keep_values) store_total<C>(problem, partials, blocks, samples);
}

template <class Loss>
void element_loss(const ElementProblem& problem, ScalarType dtype) {
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (problem.grads.empty())
      element_loss_typed<Loss, S, false>(problem);
    else
      element_loss_typed<Loss, S, true>(problem);
  });
}

}  // namespace zx::cpu
