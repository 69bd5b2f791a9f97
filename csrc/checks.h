// What ops ask of their tensors, whichever device these are on.
#pragma once

#include <cmath>

#include "common/fold_in.h"
#include "common/losses.h"
#include "common/number.h"
#include "common/optimizers.h"
#include "common/ranking.h"
#include "common/sampler.h"
#include "torch_stable.h"

namespace zx {

// ---- what several ops take

inline Loss checked_loss(int64_t number) {
  ZX_CHECK(number >= 0 && number < static_cast<int64_t>(Loss::kCount), "no loss has the number ", number);
  return static_cast<Loss>(number);
}

inline Reduction checked_reduction(int64_t number) {
  ZX_CHECK(number >= 0 && number <= static_cast<int64_t>(Reduction::kMean),
           "reduction must be 0 (none), 1 (sum) or 2 (mean), not ", number);
  return static_cast<Reduction>(number);
}

inline void check_vector(const Tensor& t, ScalarType dtype, const char* name) {
  ZX_CHECK(t.dim() == 1 && t.scalar_type() == dtype && t.is_contiguous(), name, " must be a contiguous vector of ",
           dtype == ScalarType::Long ? "int64" : "its dtype");
}

// The tensors of a CSR matrix. What they hold is checked by whoever reads it.
inline void check_matrix(const Tensor& indptr, const Tensor& indices, const char* name) {
  ZX_CHECK(
      indptr.dim() == 1 && indptr.size(0) >= 1 && indptr.scalar_type() == ScalarType::Long && indptr.is_contiguous(),
      name, " must have an indptr that is a contiguous int64 vector and not empty");
  ZX_CHECK(indices.dim() == 1 && indices.is_contiguous() &&
               (indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long),
           name, " must have indices that are a contiguous int32 or int64 vector");
}

// The items that samples must not be, or are drawn by: see sample_negatives in csrc/library.cpp.
inline void check_negatives(const Tensor& indptr, const Tensor& indices, const std::optional<Tensor>& filter,
                            const std::optional<Tensor>& slots, const std::optional<Tensor>& masses, int64_t num_items,
                            int64_t k) {
  check_matrix(indptr, indices, "the matrix");
  ZX_CHECK(k >= 0 && k <= 65536, "k must be in [0, 65536], not ", k);
  ZX_CHECK(num_items > 0, "num_items must be positive, not ", num_items);
  if (filter) {
    check_vector(*filter, ScalarType::Short, "filter");
    ZX_CHECK(filter->size(0) == indices.size(0) + 1, "filter must have one entry more than indices");
  }
  if (masses) {
    check_vector(*masses, ScalarType::Long, "masses");
    ZX_CHECK(masses->size(0) > 0, "masses must not be empty");
  }
  if (slots) {
    ZX_CHECK(masses && masses->size(0) == num_items + 1, "slots need masses [num_items + 1]");
    const int64_t size = slots->dim() == 1 ? slots->size(0) : 0;
    ZX_CHECK(slots->scalar_type() == ScalarType::Long && slots->is_contiguous() && size > 0 &&
                 (size & (size - 1)) == 0 && size <= int64_t{1} << 31,
             "slots must be a contiguous int64 vector of a power of two, 2^0 to 2^31, of them");
  }
}

// The sums of rows' complements: see sample_negatives in csrc/library.cpp.
inline ComplementSums complement_sums(const std::optional<Tensor>& rows, const std::optional<Tensor>& sums,
                                      const std::optional<Tensor>& masses) {
  ComplementSums found{};
  ZX_CHECK(rows.has_value() == sums.has_value(), "complement_rows and complement_masses belong together");
  if (!rows) return found;
  ZX_CHECK(masses, "complement_masses need masses");
  ZX_CHECK(rows->dim() == 2 && rows->size(0) == 2 && rows->scalar_type() == ScalarType::Long && rows->is_contiguous(),
           "complement_rows must be contiguous int64 [2, R]");
  check_vector(*sums, ScalarType::Long, "complement_masses");
  found.num_rows = rows->size(1), found.num_masses = sums->size(0);
  found.begins = data<int64_t>(*rows), found.starts = found.begins + found.num_rows;
  found.masses = data<int64_t>(*sums);
  return found;
}

// The interactions that samples are drawn from: see sample_positives in csrc/library.cpp.
inline void check_positives(const Tensor& indptr, const Tensor& indices, const Tensor& hint, int64_t hint_shift,
                            const std::optional<Tensor>& gaps, const std::optional<Tensor>& active, int64_t order,
                            int64_t kept, int64_t total, int64_t positives) {
  check_matrix(indptr, indices, "the matrix");
  check_vector(hint, ScalarType::Long, "hint");
  ZX_CHECK(hint_shift >= 0 && hint_shift < 63, "hint_shift must be in [0, 62], not ", hint_shift);
  ZX_CHECK(positives == 1 || positives == 2, "positives must be 1 or 2, not ", positives);
  ZX_CHECK(order >= 0 && order <= 3 && (order != 3 || active), "order must be 0 to 3, and 3 needs active");
  ZX_CHECK(total >= 0 && total < int64_t{1} << 62, "total must be in [0, 2^62), not ", total);
  ZX_CHECK(total == 0 || order == 3 || (kept > 0 && kept <= indices.size(0)), "kept must be in [1, interactions], not ",
           kept);
  if (gaps)
    ZX_CHECK(gaps->dim() == 2 && gaps->size(0) == 2 && gaps->scalar_type() == ScalarType::Long && gaps->is_contiguous(),
             "gaps must be contiguous int64 [2, G]");
  if (active) {
    check_vector(*active, ScalarType::Long, "active");
    ZX_CHECK(total == 0 || order != 3 || active->size(0) > 0, "an epoch without users has no samples");
  }
}

// Samples first .. first + rows of an epoch.
inline void check_samples(int64_t first, int64_t rows, int64_t total) {
  ZX_CHECK(first >= 0 && rows >= 0 && rows <= total && first <= total - rows, "the samples must lie within the epoch");
}

// ---- matrix factorization

// Ids a sample, of [B] or [B, n].
inline int64_t columns_of(const Tensor& ids) { return ids.dim() == 2 ? ids.size(1) : 1; }

inline void check_ids(const Tensor& ids, int64_t rows, const char* name) {
  ZX_CHECK(ids.scalar_type() == ScalarType::Long && ids.is_contiguous() && (ids.dim() == 1 || ids.dim() == 2) &&
               ids.size(0) == rows,
           name, " must be contiguous int64 with one row a sample");
}

inline void check_mf_tables(const Tensor& user, const Tensor& item) {
  ZX_CHECK(user.dim() == 2 && item.dim() == 2 && user.size(1) == item.size(1), "the tables must be [U, d] and [I, d]");
  ZX_CHECK(user.is_contiguous() && item.is_contiguous(), "the tables must be contiguous");
  ZX_CHECK(item.scalar_type() == user.scalar_type(), "the tables must have one dtype");
}

inline void check_mf_tensors(const Tensor& user, const Tensor& item, const Tensor& users, const Tensor& positives,
                             const Tensor& negatives) {
  check_mf_tables(user, item);
  ZX_CHECK(users.dim() == 1, "users must be [B]");
  check_ids(users, users.size(0), "users");
  check_ids(positives, users.size(0), "positives");
  check_ids(negatives, users.size(0), "negatives");
}

inline FoldIn checked_fold_in(int64_t loss, double a, double b, double c, double kink, double l2, double tolerance,
                              int64_t max_iterations) {
  const FoldIn settings{checked_loss(loss), a, b, c, kink, l2, tolerance, max_iterations};
  ZX_CHECK(l2 > 0 && std::isfinite(l2) && tolerance > 0 && std::isfinite(tolerance),
           "l2 and tolerance must be positive numbers");
  ZX_CHECK(kink >= 0 && std::isfinite(kink), "kink must be at least 0");
  ZX_CHECK(kink == 0 || settings.kind == Loss::kZerosum || settings.kind == Loss::kPos2Neg2,
           "kinks of this loss are not rounded off");
  ZX_CHECK(max_iterations >= 0 && max_iterations <= kFoldMostIterations, "max_iterations must be in [0, 2^20], not ",
           max_iterations);
  return settings;
}

// Shapes of the samples of users, for either device: positives [N] or [N, 2], negatives [N, K] or [N].
inline void check_fold_in_samples(Loss kind, const Tensor& table, const Tensor& indptr, const Tensor& positives,
                                  const Tensor& negatives, const std::optional<Tensor>& bias,
                                  const std::optional<Tensor>& constants) {
  check_vector(indptr, ScalarType::Long, "indptr");
  ZX_CHECK(indptr.size(0) >= 1, "indptr must not be empty");
  ZX_CHECK(positives.dim() >= 1, "positives must be [N] or [N, 2]");
  check_ids(positives, positives.size(0), "positives");
  check_ids(negatives, positives.size(0), "negatives");
  const ScalarType dtype = table.scalar_type();
  ZX_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "the table must be float32 or float64");
  check_mf_tables(table, table);
  const bool planes = shape_of(kind) == Shape::kQuad;
  const int64_t p = columns_of(positives), k = columns_of(negatives);
  ZX_CHECK(p == (planes ? 2 : 1) && (planes ? k == 2 : k > 0),
           "positives or negatives do not have the shape of this loss");
  for (const auto* each : {&bias, &constants})
    if (*each)
      ZX_CHECK((*each)->scalar_type() == dtype && (*each)->is_contiguous() && (*each)->dim() == 1 &&
                   (*each)->size(0) == table.size(0),
               each == &bias ? "item_bias" : "constants", " must be [I], of the table's dtype");
  ZX_CHECK(constants || !needs_constants(kind), "this loss needs constants");
}

// An optimizer's state of a table.
inline void check_state(Optimizer kind, const Tensor& table, const std::optional<Tensor>& first,
                        const std::optional<Tensor>& second) {
  for (const auto* state : {&first, &second})
    if (*state) {
      ZX_CHECK((*state)->scalar_type() == ScalarType::Float && (*state)->is_contiguous(),
               "state must be contiguous float32");
      ZX_CHECK((*state)->numel() == table.numel(), "the state must have the shape of the table");
    }
  const bool adam = kind == Optimizer::kAdam || kind == Optimizer::kLazyAdam;
  ZX_CHECK((kind == Optimizer::kSgd || second) && (!adam || first), "this optimizer has state");
}

inline Optimizer checked_optimizer(int64_t number) {
  ZX_CHECK(number >= 0 && number <= static_cast<int64_t>(Optimizer::kLazyAdam), "no optimizer has the number ", number);
  return static_cast<Optimizer>(number);
}

// The number that a tensor holds; `value` where there is none.
inline Number number_of(const std::optional<Tensor>& t, double value, const char* name) {
  if (!t) return number_at(nullptr, false, value);
  const bool wide = t->scalar_type() == ScalarType::Double;
  ZX_CHECK(t->numel() == 1 && (wide || t->scalar_type() == ScalarType::Float), name,
           " must be one number, float32 or float64");
  return number_at(t->data_ptr(), wide, value);
}

// ---- rankings

// The offsets of n users' positives, read; returns how many positives there are.
inline int64_t check_offsets(const int64_t* offset, int64_t n) {
  bool sound = offset[0] == 0;
  for (int64_t u = 0; u < n; ++u) sound &= offset[u] <= offset[u + 1];
  ZX_CHECK(sound, "offset must ascend from 0");
  return offset[n];
}

inline void check_cutoffs(const int64_t* cutoffs, int64_t n) {
  for (int64_t c = 0; c < n; ++c) ZX_CHECK(cutoffs[c] >= 1, "cutoffs must be at least 1, not ", cutoffs[c]);
}

// ---- metrics of rankings

inline void check_metric_vector(const Tensor& t, int64_t size, ScalarType dtype, const char* name) {
  ZX_CHECK(t.dim() == 1 && t.size(0) == size && t.scalar_type() == dtype && t.is_contiguous(), name,
           " has an unexpected shape or dtype");
}

inline RankTies checked_ties(int64_t number) {
  ZX_CHECK(number >= 0 && number <= static_cast<int64_t>(RankTies::kOptimistic), "ties must be 0, 1 or 2");
  return static_cast<RankTies>(number);
}

inline void check_lists(const Tensor& lists, const Tensor& values) {
  ZX_CHECK(lists.dim() == 2 && lists.scalar_type() == ScalarType::Long && lists.is_contiguous(),
           "lists must be contiguous int64 [n, k]");
  ZX_CHECK(values.dim() == 2 && values.scalar_type() == ScalarType::Double && values.is_contiguous(),
           "values must be contiguous float64 [V, items]");
}

// ---- the scores of all entries of a CSR matrix

inline void check_csr_vector(const std::optional<Tensor>& t, int64_t size, ScalarType dtype, const char* name) {
  if (t)
    ZX_CHECK(t->dim() == 1 && t->size(0) == size && t->scalar_type() == dtype && t->is_contiguous(), name,
             " must be a contiguous vector of the dtype of the tables, one entry a row of its table");
}

inline void check_csr_scores(const Tensor& rows, const Tensor& columns, const Tensor& indptr, const Tensor& indices) {
  const ScalarType dtype = rows.scalar_type();
  ZX_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "rows must be float32 or float64");
  ZX_CHECK(rows.dim() == 2 && columns.dim() == 2 && rows.size(1) == columns.size(1) && columns.scalar_type() == dtype &&
               rows.is_contiguous() && columns.is_contiguous(),
           "rows and columns must be contiguous matrices of one dtype and width");
  ZX_CHECK(
      indptr.dim() == 1 && indptr.size(0) == rows.size(0) + 1 && indptr.scalar_type() == ScalarType::Long &&
          indptr.is_contiguous() && indices.dim() == 1 && indices.is_contiguous() &&
          (indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long),
      "indptr must be a contiguous int64 vector, one entry more than rows; indices a contiguous vector of int32 or "
      "int64");
}

// ---- the graph of users and items

inline void check_graph_vector(const Tensor& t, int64_t size, ScalarType dtype, const char* name) {
  ZX_CHECK(t.dim() == 1 && t.size(0) == size && t.scalar_type() == dtype && t.is_contiguous(), name,
           " must be a contiguous vector of the dtype of indices, and of the size that goes with the others");
}

inline void check_graph_product(const Tensor& users, const Tensor& items, const Tensor& indptr,
                                const std::optional<Tensor>& end, const Tensor& indices,
                                const std::optional<Tensor>& row_scale, const std::optional<Tensor>& column_scale) {
  const ScalarType dtype = users.scalar_type(), index = indices.scalar_type();
  ZX_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "users must be float32 or float64");
  ZX_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1) && items.scalar_type() == dtype &&
               users.is_contiguous() && items.is_contiguous(),
           "users and items must be contiguous matrices of one dtype and width");
  const int64_t nodes = users.size(0) + items.size(0);
  check_graph_vector(indices, indices.numel(), index, "indices");
  check_graph_vector(indptr, nodes + 1, index, "indptr");
  if (end) check_graph_vector(*end, nodes, index, "end");
  check_csr_vector(row_scale, nodes, dtype, "row_scale");
  check_csr_vector(column_scale, nodes, dtype, "column_scale");
}

inline void check_graph_dropout(const Tensor& indptr, const Tensor& indices, const Tensor& by_item, int64_t num_users,
                                const Tensor& seed, double share) {
  const ScalarType index = indices.scalar_type();
  const int64_t nodes = indptr.numel() - 1;
  ZX_CHECK(nodes >= 0, "indptr must not be empty");
  check_graph_vector(indices, 2 * by_item.numel(), index, "indices");
  check_graph_vector(by_item, by_item.numel(), index, "by_item");
  check_graph_vector(indptr, nodes + 1, index, "indptr");
  ZX_CHECK(num_users >= 0 && num_users <= nodes, "num_users must be a number of nodes");
  ZX_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed must be one int64 number");
  ZX_CHECK(share >= 0 && share < 1, "share must be in [0, 1)");
}

// Words of 32 random bits below it drop.
inline uint64_t drop_threshold(double share) { return static_cast<uint64_t>(share * 4294967296.0); }

}  // namespace zx
