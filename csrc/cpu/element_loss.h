// Runs an element loss (csrc/common/losses.h) over [rows, cols] samples on the CPU.
//
// The samples are cut into tiles that stay in the L1 cache. A tile's inputs are brought into contiguous
// arrays of the arithmetic type (or used in place where they are already so), one SIMD loop evaluates the
// loss and its derivatives, and the results are stored, converted or summed over the columns. Partial sums belong to
// fixed blocks of tiles and are added in order, in double: the result is the same for any number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "common/losses.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
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

// Where a score's gradient goes: contiguous over samples, or one element per row (then the columns are summed), or one
// column of a [B, 2] tensor, which two scores in succession share.
struct GradView {
  void* data = nullptr;
  bool per_row = false, paired = false;

  bool contiguous() const { return !per_row && !paired; }
};

// Numbers that loops over columns are unrolled by, and lanes that sums run in: one AVX-512 vector of floats.
constexpr int kLanes = kRowLanes;

// Running sums over 256 values at a time, then double: exact enough for any length, and the same order of additions
// whatever the width of the machine's vectors.
template <int kBytes = 16, class T>
ZX_HD double sum_lanes(const T* v, int64_t n) {
  double wide[kLanes] = {};
  int64_t i = 0;
  while (i + kLanes <= n) {
    Lanes<T, kBytes> sums;
    const int64_t stop = std::min(n - kLanes, i + 240);
    for (; i <= stop; i += kLanes) sums.add(v + i);
    T lanes[kLanes];
    sums.write(lanes);
    for (int l = 0; l < kLanes; ++l) wide[l] += static_cast<double>(lanes[l]);
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) wide[l] += wide[l + half];
  double total = wide[0];
  for (; i < n; ++i) total += static_cast<double>(v[i]);
  return total;
}

// The same for a row of negatives: up to 256 values are added up in T throughout.
template <int kBytes, class T>
ZX_HD T sum_row(const T* v, int64_t n) {
  if (n > 256 || n < kLanes) return static_cast<T>(sum_lanes<kBytes>(v, n));
  Lanes<T, kBytes> sums;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums.add(v + i);
  T total = sums.total();
  for (; i < n; ++i) total += v[i];
  return total;
}

template <class Loss, class T, bool kGrad>
struct ElementTile {
  // value[i] = w[i] * loss, grad[k][i] = scale * w[i] * derivative; returns the sum of the values.
  template <int kBytes>
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
    return sum_lanes<kBytes>(value, n);
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

// Gathers a tile's piece of a view into a contiguous array of C.
template <class S, class C>
struct GatherTile {
  ZX_HD static void run(const View* view, int64_t row, int64_t rows, int64_t col, int64_t cols, C* out) {
    const int64_t row_stride = view->row_stride, col_stride = view->col_stride;
    const S* base = static_cast<const S*>(view->data) + row * row_stride + col * col_stride;
    if ((cols == 1 || col_stride == 1) && (rows == 1 || row_stride == cols)) {
      for (int64_t i = 0; i < rows * cols; ++i) out[i] = static_cast<C>(base[i]);
    } else if (cols == 1 && row_stride == 2) {  // a constant that makes SIMD code of the loop
      for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<C>(base[2 * r]);
    } else if (cols == 1) {
      for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<C>(base[r * row_stride]);
    } else if (col_stride == 0 && cols % kLanes == 0) {
      for (int64_t r = 0; r < rows; ++r) {
        const C repeated = static_cast<C>(base[r * row_stride]);
        for (int64_t c = 0; c < cols; c += kLanes, out += kLanes)
          for (int l = 0; l < kLanes; ++l) out[l] = repeated;
      }
    } else {
      for (int64_t r = 0; r < rows; ++r, out += cols)
        for (int64_t c = 0; c < cols; ++c) out[c] = static_cast<C>(base[r * row_stride + c * col_stride]);
    }
  }
};

// A tile's piece of a view as a contiguous array of C: in place where possible, else gathered into the buffer.
template <class S, class C>
inline const C* load_tile(const View& view, int64_t row, int64_t rows, int64_t col, int64_t cols, C* buffer) {
  if constexpr (std::is_same_v<S, C>)
    if ((cols == 1 || view.col_stride == 1) && (rows == 1 || view.row_stride == cols))
      return static_cast<const S*>(view.data) + row * view.row_stride + col * view.col_stride;
  simd<GatherTile<S, C>>(&view, row, rows, col, cols, buffer);
  return buffer;
}

template <class S, class C>
struct StoreTile {
  ZX_HD static void run(const C* values, int64_t n, S* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<S>(values[i]);
  }
};

// The two columns of a [n, 2] tensor.
template <class S, class C>
struct StorePairs {
  ZX_HD static void run(const C* first, const C* second, int64_t n, S* out) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      out[2 * i] = static_cast<S>(first[i]);
      out[2 * i + 1] = static_cast<S>(second[i]);
    }
  }
};

template <class S, class C>
struct StoreRowSums {
  template <int kBytes>
  ZX_HD static void run(const C* values, int64_t rows, int64_t cols, S* out) {
    for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<S>(sum_row<kBytes>(values + r * cols, cols));
  }
};

// Float arithmetic is compiled for every instruction set. In double the C library's functions, which are scalar, take
// the time.
template <class Kernel, class C, class... Args>
inline auto simd_for(Args... args) {
  if constexpr (std::is_same_v<C, float>)
    return simd<Kernel>(args...);
  else
    return run_baseline<Kernel>(args...);
}

// What one call works on. value is [rows, cols] for reduction none, else one element. Views without data are absent.
struct ElementProblem {
  int64_t rows = 0, cols = 1;
  std::array<View, 5> scores{};
  std::array<View, 2> aux{};
  View weight;
  std::array<GradView, 5> grads{};
  bool grad = false;
  void* value = nullptr;
  Reduction reduction = Reduction::kMean;
  double a = 1, b = 1, c = 1;

  // How the samples are cut.
  int64_t tile_rows() const { return std::max<int64_t>(1, kTile / std::max<int64_t>(1, cols)); }
  int64_t block_rows() const { return tile_rows() * (cols > kTile ? 1 : kTilesPerBlock); }
  int64_t blocks() const { return (rows + block_rows() - 1) / block_rows(); }
  bool keep_values() const { return reduction == Reduction::kNone; }
  template <class T>
  Params<T> params() const {
    return {static_cast<T>(a), static_cast<T>(b), static_cast<T>(c)};
  }
};

// Runs do_block(b), which returns a partial sum, for every block and writes the sum or mean, where that is asked for;
// the mean of nothing is 0.
template <class C, class F>
void reduce_blocks(const ElementProblem& problem, double samples, const F& do_block) {
  const int64_t blocks = problem.blocks();
  std::array<double, 64> few;
  std::vector<double> many(blocks > 64 ? blocks : 0);
  double* partials = blocks > 64 ? many.data() : few.data();
  const bool serial = problem.rows * problem.cols <= kSerialSamples;
  for_each_block(blocks, serial ? blocks : 1, [&](int64_t block) { partials[block] = do_block(block); });
  if (problem.keep_values()) return;
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partials[b];
  if (problem.reduction == Reduction::kMean && samples > 0) total /= samples;
  *static_cast<C*>(problem.value) = static_cast<C>(total);
}

// The sum of the values of a block. S: the scores' element type; the value's is S for reduction none, else C.
template <class Loss, class S, class C, bool kGrad>
double element_block(const ElementProblem& problem, C scale, int64_t block) {
  constexpr int kScores = Loss::kScores, kAux = Loss::kAux;
  const int64_t rows = problem.rows, cols = problem.cols, tile_rows = problem.tile_rows();
  const int64_t tile_cols = std::min(cols, kTile);
  const bool keep_values = problem.keep_values();
  alignas(64) C score_buffer[kScores][kTile];
  alignas(64) C aux_buffer[kAux + 1][kAux > 0 ? kTile : 1];
  alignas(64) C weight_buffer[kTile];
  alignas(64) C value_buffer[kTile];
  alignas(64) C grad_buffer[kScores][kGrad ? kTile : 1];
  double total = 0;
  const int64_t block_end = std::min(rows, (block + 1) * problem.block_rows());
  for (int64_t row = block * problem.block_rows(); row < block_end; row += tile_rows) {
    const int64_t r = std::min(tile_rows, block_end - row);
    C row_sums[kScores] = {};  // of columns seen so far, where a row is longer than a tile
    for (int64_t col = 0; col < cols; col += tile_cols) {
      const int64_t k = std::min(tile_cols, cols - col), n = r * k, first = row * cols + col;
      const C* scores[kScores];
      const C* aux[kAux + 1];
      C* grads[kScores];
      for (int i = 0; i < kScores; ++i) scores[i] = load_tile<S, C>(problem.scores[i], row, r, col, k, score_buffer[i]);
      for (int i = 0; i < kAux; ++i) aux[i] = load_tile<C, C>(problem.aux[i], row, r, col, k, aux_buffer[i]);
      const C* weight = nullptr;
      if (problem.weight.data) weight = load_tile<C, C>(problem.weight, row, r, col, k, weight_buffer);
      for (int i = 0; i < kScores; ++i) grads[i] = grad_buffer[i];
      C* values = value_buffer;
      if constexpr (std::is_same_v<S, C>) {
        for (int i = 0; kGrad && i < kScores; ++i)
          if (problem.grads[i].contiguous()) grads[i] = static_cast<C*>(problem.grads[i].data) + first;
        if (keep_values) values = static_cast<C*>(problem.value) + first;
      }
      total += simd_for<ElementTile<Loss, C, kGrad>, C>(static_cast<const C* const*>(scores),
                                                        static_cast<const C* const*>(aux), weight, scale,
                                                        problem.params<C>(), n, values, static_cast<C* const*>(grads));
      if (keep_values && !std::is_same_v<S, C>)
        simd<StoreTile<S, C>>(static_cast<const C*>(values), n, static_cast<S*>(problem.value) + first);
      for (int i = 0; kGrad && i < kScores; ++i) {
        const GradView& g = problem.grads[i];
        const C* values_i = grads[i];
        S* out = static_cast<S*>(g.data);
        if (g.contiguous()) {
          if (!std::is_same_v<S, C>) simd<StoreTile<S, C>>(values_i, n, out + first);
        } else if (g.paired) {
          ++i;
          simd<StorePairs<S, C>>(values_i, static_cast<const C*>(grads[i]), n, out + 2 * row);
        } else if (k == cols) {
          simd<StoreRowSums<S, C>>(values_i, r, k, out + row);
        } else {
          row_sums[i] += static_cast<C>(sum_lanes(values_i, n));
          if (col + k == cols) out[row] = static_cast<S>(row_sums[i]);
        }
      }
    }
  }
  return total;
}

template <class Loss, class S, bool kGrad>
void element_loss_typed(const ElementProblem& problem) {
  using C = compute_t<S>;
  if (kGrad && problem.cols == 0)  // no samples: no block would write the gradients of the rows
    for (int i = 0; i < Loss::kScores; ++i)
      if (problem.grads[i].per_row)
        std::fill_n(static_cast<S*>(problem.grads[i].data), problem.rows, static_cast<S>(C(0)));
  const double samples = static_cast<double>(problem.rows) * static_cast<double>(problem.cols);
  const C scale = static_cast<C>(problem.reduction == Reduction::kMean ? 1.0 / samples : 1.0);
  reduce_blocks<C>(problem, samples,
                   [&](int64_t block) { return element_block<Loss, S, C, kGrad>(problem, scale, block); });
}

template <class Loss>
void element_loss(const ElementProblem& problem, ScalarType dtype) {
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (problem.grad)
      element_loss_typed<Loss, S, true>(problem);
    else
      element_loss_typed<Loss, S, false>(problem);
  });
}

}  // namespace zx::cpu
