// Streaming passes over the scores of all positives, <row vector, column vector> (+ biases) at the entries of a CSR
// matrix: their moments, and sums of column vectors weighted by an affine function of the score. No score is kept, so
// both take O(nnz d) time and no memory beside their results.
#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "common/csr.h"
#include "cpu/parallel.h"
#include "cpu/ranges.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace zx::cpu {
namespace {

constexpr int kLanes = 16;
// A task is so many rows of the matrix; what is summed over tasks is added in their order.
constexpr int64_t kRowsPerTask = 256;
// Entries whose vectors are prefetched before they are used.
constexpr int64_t kBlock = 32;

template <class T, class Index>
struct CsrProblem {
  const T* rows;          // [R, d]
  const T* columns;       // [C, d]
  const T* row_bias;      // [R] or null
  const T* column_bias;   // [C] or null
  const int64_t* indptr;  // [R + 1]
  const Index* indices;   // [nnz]
  int64_t num_rows, num_columns, num_entries, dim;

  // Whether rows [begin, end) and their columns are those of a matrix. (Entries come to the cache where they are used.)
  ZX_HD bool is_sound(int64_t begin, int64_t end) const {
    bool sound = true;
    for (int64_t row = begin; row < end; ++row) sound &= is_row(indptr[row], indptr[row + 1], num_entries);
    return sound && AllBelow<Index>::run(indices + indptr[begin], indptr[end] - indptr[begin], num_columns);
  }

  ZX_HD T score(int64_t row, int64_t column) const {
    const T* x = rows + row * dim;
    const T* y = columns + column * dim;
    T lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * y[i + l];
    for (int l = 0; i < dim; ++i, ++l) lanes[l] += x[i] * y[i];
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    if (row_bias) lanes[0] += row_bias[row];
    if (column_bias) lanes[0] += column_bias[column];
    return lanes[0];
  }

  ZX_HD void prefetch(int64_t first, int64_t last) const {
    for (int64_t e = first; e < last; ++e) prefetch_row<false>(columns + static_cast<int64_t>(indices[e]) * dim, dim);
  }

  // Calls f(row, first, last) for blocks of entries of the rows [begin, end), the next block on its way to the cache.
  template <class F>
  ZX_HD void for_each_row_block(int64_t begin, int64_t end, const F& f) const {
    prefetch(indptr[begin], std::min(indptr[begin] + kBlock, indptr[end]));
    for (int64_t row = begin; row < end; ++row)
      for (int64_t e = indptr[row]; e < indptr[row + 1]; e += kBlock) {
        const int64_t last = std::min(e + kBlock, indptr[row + 1]);
        prefetch(last, std::min(last + kBlock, indptr[end]));
        f(row, e, last);
      }
  }
};

// Sums of s, s^2 and s x over the entries of some rows, x a constant of the column; in double, block by block.
template <class T, class Index>
struct Moments {
  // False, and nothing read, where the matrix is none.
  ZX_HD static bool run(const CsrProblem<T, Index>* p, const T* column_x, int64_t begin, int64_t end, double* sums) {
    if (!p->is_sound(begin, end)) return false;
    double s0 = 0, s1 = 0, s2 = 0;
    p->for_each_row_block(begin, end, [&](int64_t row, int64_t first, int64_t last) __attribute__((always_inline)) {
      for (int64_t e = first; e < last; ++e) {
        const int64_t column = static_cast<int64_t>(p->indices[e]);
        const double s = p->score(row, column);
        s0 += s, s1 += s * s, s2 += s * column_x[column];
      }
    });
    sums[0] = s0, sums[1] = s1, sums[2] = s2;
    return true;
  }
};

// out[r] = sum over the row's entries of g * column vector and out_bias[r] = sum of g, with g = x + slope * score and x
// a constant of the row or of the column.
template <class T, class Index>
struct WeightedColumns {
  ZX_HD static bool run(const CsrProblem<T, Index>* p, const T* row_x, const T* column_x, T slope, int64_t begin,
                        int64_t end, T* out, T* out_bias) {
    if (!p->is_sound(begin, end)) return false;
    const int64_t dim = p->dim;
    std::fill(out + begin * dim, out + end * dim, T(0));
    std::fill(out_bias + begin, out_bias + end, T(0));
    p->for_each_row_block(begin, end, [&](int64_t row, int64_t first, int64_t last) __attribute__((always_inline)) {
      T* __restrict__ sum = out + row * dim;
      for (int64_t e = first; e < last; ++e) {
        const int64_t column = static_cast<int64_t>(p->indices[e]);
        const T g = slope * p->score(row, column) + (row_x ? row_x[row] : column_x[column]);
        const T* __restrict__ y = p->columns + column * dim;
        for (int64_t i = 0; i < dim; ++i) sum[i] += g * y[i];
        out_bias[row] += g;
      }
    });
    return true;
  }
};

// Calls f with the problem, typed.
template <class F>
void with_problem(const Tensor& rows, const Tensor& columns, const std::optional<Tensor>& row_bias,
                  const std::optional<Tensor>& column_bias, const Tensor& indptr, const Tensor& indices, const F& f) {
  dispatch_index(indices.scalar_type(), [&](auto index) {
    const auto call = [&](auto element) {
      using T = decltype(element);
      using Index = decltype(index);
      f(CsrProblem<T, Index>{data<T>(rows), data<T>(columns), data_or_null<T>(row_bias), data_or_null<T>(column_bias),
                             data<int64_t>(indptr), data<Index>(indices), rows.size(0), columns.size(0),
                             indices.size(0), rows.size(1)});
    };
    if (rows.scalar_type() == ScalarType::Double)
      call(double{});
    else
      call(float{});
  });
}

// Throws if one of the tasks says that the matrix is none.
template <class F>
void for_each_task(int64_t num_rows, const F& f) {
  std::atomic<bool> sound{true};
  for_each_block((num_rows + kRowsPerTask - 1) / kRowsPerTask, 1, [&](int64_t task) {
    if (!f(task, task * kRowsPerTask, std::min(num_rows, (task + 1) * kRowsPerTask))) sound = false;
  });
  ZX_CHECK(sound, "indptr does not ascend from 0 to at most the number of indices, or indices are out of range");
}

}  // namespace

Tensor csr_score_moments(const Tensor& rows, const Tensor& columns, std::optional<Tensor> column_bias,
                         const Tensor& indptr, const Tensor& indices, const Tensor& column_x) {
  check_csr_scores(rows, columns, indptr, indices);
  check_csr_vector(column_bias, columns.size(0), rows.scalar_type(), "column_bias");
  check_csr_vector(column_x, columns.size(0), rows.scalar_type(), "column_x");
  Tensor result = new_tensor(rows, {3}, ScalarType::Double);
  double* total = data<double>(result);
  std::fill_n(total, 3, 0.0);
  std::vector<double> sums(3 * ((rows.size(0) + kRowsPerTask - 1) / kRowsPerTask));
  with_problem(rows, columns, std::nullopt, column_bias, indptr, indices, [&](auto problem) {
    using T = std::decay_t<decltype(*problem.rows)>;
    using Index = std::decay_t<decltype(*problem.indices)>;
    for_each_task(problem.num_rows, [&](int64_t task, int64_t begin, int64_t end) {
      return simd<Moments<T, Index>>(&problem, static_cast<const T*>(data<T>(column_x)), begin, end,
                                     sums.data() + 3 * task);
    });
  });
  for (size_t i = 0; i < sums.size(); ++i) total[i % 3] += sums[i];
  return result;
}

std::tuple<Tensor, Tensor> csr_weighted_columns(const Tensor& rows, const Tensor& columns,
                                                std::optional<Tensor> row_bias, std::optional<Tensor> column_bias,
                                                const Tensor& indptr, const Tensor& indices,
                                                std::optional<Tensor> row_x, std::optional<Tensor> column_x,
                                                double slope) {
  check_csr_scores(rows, columns, indptr, indices);
  check_csr_vector(row_bias, rows.size(0), rows.scalar_type(), "row_bias");
  check_csr_vector(column_bias, columns.size(0), rows.scalar_type(), "column_bias");
  check_csr_vector(row_x, rows.size(0), rows.scalar_type(), "row_x");
  check_csr_vector(column_x, columns.size(0), rows.scalar_type(), "column_x");
  ZX_CHECK(row_x.has_value() != column_x.has_value(), "expected either row_x or column_x");
  Tensor out = new_tensor(rows, {rows.size(0), rows.size(1)}, rows.scalar_type());
  Tensor out_bias = new_tensor(rows, {rows.size(0)}, rows.scalar_type());
  with_problem(rows, columns, row_bias, column_bias, indptr, indices, [&](auto problem) {
    using T = std::decay_t<decltype(*problem.rows)>;
    using Index = std::decay_t<decltype(*problem.indices)>;
    for_each_task(problem.num_rows, [&](int64_t, int64_t begin, int64_t end) {
      return simd<WeightedColumns<T, Index>>(&problem, data_or_null<T>(row_x), data_or_null<T>(column_x),
                                             static_cast<T>(slope), begin, end, data<T>(out), data<T>(out_bias));
    });
  });
  return {out, out_bias};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("csr_score_moments", ZX_BOX(&zx::cpu::csr_score_moments));
  m.impl("csr_weighted_columns", ZX_BOX(&zx::cpu::csr_weighted_columns));
}
