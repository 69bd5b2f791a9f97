// What ops ask of their tensors, whichever device these are on.
#pragma once

#include "common/number.h"
#include "common/optimizers.h"
#include "common/ranking.h"
#include "torch_stable.h"

namespace zx {

// ---- matrix factorization

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
  check_ids(users, users.size(0), "users");
  check_ids(positives, users.size(0), "positives");
  check_ids(negatives, users.size(0), "negatives");
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

inline void check_update(Optimizer kind, const Tensor& table, const std::optional<Tensor>& first,
                         const std::optional<Tensor>& second, const Tensor& rows, const Tensor& values) {
  ZX_CHECK(table.dim() == 1 || table.dim() == 2, "table must be [N] or [N, d]");
  const auto check = [&](const Tensor& t, const char* name) {
    ZX_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), name, " must be contiguous float32");
  };
  check(table, "table");
  check(values, "values");
  const int64_t dim = table.dim() == 2 ? table.size(1) : 1;
  ZX_CHECK(values.numel() == rows.size(0) * dim && rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
           "rows must be int64 [n], values [n, d]");
  check_state(kind, table, first, second);
}

// The number that a tensor holds; `value` where there is none.
inline Number number_of(const std::optional<Tensor>& t, double value, const char* name) {
  if (!t) return number_at(nullptr, false, value);
  const bool wide = t->scalar_type() == ScalarType::Double;
  ZX_CHECK(t->numel() == 1 && (wide || t->scalar_type() == ScalarType::Float), name,
           " must be one number, float32 or float64");
  return number_at(t->data_ptr(), wide, value);
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
  ZX_CHECK(indptr.dim() == 1 && indptr.size(0) == rows.size(0) + 1 && indptr.scalar_type() == ScalarType::Long &&
               indptr.is_contiguous() && indices.dim() == 1 && indices.is_contiguous(),
           "indptr must be a contiguous int64 vector, one entry more than rows; indices a contiguous vector");
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
