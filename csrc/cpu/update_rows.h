// An optimizer's step on the rows of a table, from ascending distinct rows and their gradients.
#pragma once

#include <algorithm>

#include "common/optimizers.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace zx::cpu {

constexpr int64_t kUpdateWords = 65536;  // of a table that one thread takes at a time
constexpr int64_t kRowsAhead = 8;        // that are on their way to the cache
constexpr int64_t kSweepAlone = 16;      // pieces of a sweep that are not worth a second thread beside other processes

template <Optimizer kKind>
struct UpdateRow {
  ZX_HD static void run(const UpdateRule* rule, const float* g, float* p, float* m, float* v, int64_t n) {
    const UpdateRule r = *rule;
    float none = 0;
    if (g == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, 0.0f, p[i], m[i], v[i]);
    } else if constexpr (kKind == Optimizer::kSgd) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], none, none);
    } else if constexpr (kKind == Optimizer::kAdagrad) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], none, v[i]);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) update_element<kKind>(r, g[i], p[i], m[i], v[i]);
    }
  }
};

// The same for rows[from .. to) of a table, each on its way to the cache before its turn.
template <Optimizer kKind>
struct UpdateListedRows {
  ZX_HD static void run(const UpdateRule* rule, const int64_t* rows, int64_t from, int64_t to, const float* g, float* p,
                        float* m, float* v, int64_t size) {
    with_width(size, [&](auto dim) __attribute__((always_inline)) {
      for (int64_t s = from; s < to; ++s) {
        if (s + kRowsAhead < to) prefetch_row<true>(p + rows[s + kRowsAhead] * dim, dim);
        const int64_t at = rows[s] * dim;
        UpdateRow<kKind>::run(rule, g + s * dim, p + at, m == nullptr ? m : m + at, v == nullptr ? v : v + at, dim);
      }
    });
  }
};

// Row rows[s] of the table [table, dim] has the gradient g[s]. Dense Adam sweeps over all rows, the others having a
// gradient of zero. alone: by one thread, unless the sweep is long.
template <Optimizer kKind>
void update_rows(const UpdateRule& rule, const int64_t* rows, int64_t count, const float* g, float* p, float* m,
                 float* v, int64_t table, int64_t dim, bool alone) {
  const int64_t piece = std::max<int64_t>(1, kUpdateWords / std::max<int64_t>(1, dim));
  const UpdateRule* r = &rule;
  const auto at = [&](float* base, int64_t row) { return base == nullptr ? base : base + row * dim; };
  if constexpr (kKind == Optimizer::kAdam) {
    deal_blocks((table + piece - 1) / piece, alone ? kSweepAlone : 1, [&](int64_t block) {
      const int64_t end = std::min(table, (block + 1) * piece);
      int64_t row = block * piece;
      int64_t s = std::lower_bound(rows, rows + count, row) - rows;
      while (row < end) {
        const int64_t next = s < count && rows[s] < end ? rows[s] : end;
        const float* untouched = nullptr;
        if (row < next) simd<UpdateRow<kKind>>(r, untouched, at(p, row), at(m, row), at(v, row), (next - row) * dim);
        row = next;
        if (row < end) {
          simd<UpdateRow<kKind>>(r, g + s * dim, at(p, row), at(m, row), at(v, row), dim);
          ++s, ++row;
        }
      }
    });
  } else {
    constexpr int64_t kPart = 4;  // of a piece: here are fewer rows, and each comes from memory by itself
    const int64_t few = std::max<int64_t>(1, piece / kPart), blocks = (count + few - 1) / few;
    deal_blocks(blocks, alone ? blocks : 1, [&](int64_t block) {
      const int64_t end = std::min(count, (block + 1) * few);
      simd<UpdateListedRows<kKind>>(r, rows, block * few, end, g, p, m, v, dim);
    });
  }
}

// The same with the optimizer known at run time.
inline void update_rows(Optimizer kind, const UpdateRule& rule, const int64_t* rows, int64_t count, const float* g,
                        float* p, float* m, float* v, int64_t table, int64_t dim, bool alone = false) {
  switch (kind) {
    case Optimizer::kSgd:
      return update_rows<Optimizer::kSgd>(rule, rows, count, g, p, m, v, table, dim, alone);
    case Optimizer::kAdagrad:
      return update_rows<Optimizer::kAdagrad>(rule, rows, count, g, p, m, v, table, dim, alone);
    case Optimizer::kAdam:
      return update_rows<Optimizer::kAdam>(rule, rows, count, g, p, m, v, table, dim, alone);
    case Optimizer::kLazyAdam:
      return update_rows<Optimizer::kLazyAdam>(rule, rows, count, g, p, m, v, table, dim, alone);
  }
  ZX_CHECK(false, "no such optimizer");
}

}  // namespace zx::cpu
