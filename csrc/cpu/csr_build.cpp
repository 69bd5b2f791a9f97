// A CSR matrix from pairs of codes: count, scatter, sort each row, merge duplicates. An array of the size of the result
// is all the memory that it takes beside it.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kLargest = INT64_C(1) << 31;  // codes and positions must be below
constexpr int64_t kEntriesPerTask = 1 << 15;

constexpr int64_t kAhead = 16;  // pairs between the one whose place is fetched and the one that is written

// Sorts the entries of one row by item, equal items by position, and keeps the last position of each item. Returns how
// many are left. An entry is (item, position) as one word, so that one comparison orders both.
int64_t sort_row(uint64_t* entries, int64_t count) {
  bool ascending = true;
  for (int64_t i = 1; i < count; ++i) ascending &= entries[i - 1] >> 32 < entries[i] >> 32;
  if (ascending) return count;
  std::sort(entries, entries + count);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i)
    if (i + 1 == count || entries[i] >> 32 != entries[i + 1] >> 32) entries[kept++] = entries[i];
  return kept;
}

template <class Code>
std::tuple<Tensor, Tensor, Tensor> build(const Tensor& users, const Tensor& items, int64_t num_users,
                                         int64_t num_items) {
  const int64_t n = users.numel();
  const Code* user = data<Code>(users);
  const Code* item = data<Code>(items);
  Tensor indptr = new_tensor(users, {num_users + 1}, ScalarType::Long);
  int64_t* start = data<int64_t>(indptr);

  std::fill_n(start, num_users + 1, int64_t{0});
  for (int64_t i = 0; i < n; ++i) {
    const int64_t u = user[i], c = item[i];
    ZX_CHECK(u >= 0 && u < num_users, "users must be numbers from 0 to ", num_users - 1, ", got ", u, " at position ",
             i);
    ZX_CHECK(c >= 0 && c < num_items, "items must be numbers from 0 to ", num_items - 1, ", got ", c, " at position ",
             i);
    ++start[u + 1];
  }
  for (int64_t u = 0; u < num_users; ++u) start[u + 1] += start[u];
  const std::unique_ptr<uint64_t[]> entries(new uint64_t[static_cast<size_t>(n)]);  // not initialised
  // Afterwards start[u] is where row u ends, that is, where row u + 1 begins.
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(&entries[static_cast<size_t>(start[user[i + kAhead]])], 1);
    entries[static_cast<size_t>(start[user[i]]++)] = static_cast<uint64_t>(item[i]) << 32 | static_cast<uint64_t>(i);
  }
  std::copy_backward(start, start + num_users, start + num_users + 1);
  start[0] = 0;

  // Rows are shared out in ranges of about as many entries each; what a range is does not matter to the result.
  const int64_t tasks = (n + kEntriesPerTask - 1) / kEntriesPerTask;
  const auto each_row = [&](const auto& f) {
    for_each_block(tasks, 1, [&](int64_t task) {
      // Rows that begin within the task's entries; empty rows may fall to two tasks, which does no harm.
      int64_t* const first = std::lower_bound(start, start + num_users, task * kEntriesPerTask);
      int64_t* const last = std::lower_bound(first, start + num_users, (task + 1) * kEntriesPerTask);
      for (const int64_t* row = first; row < last; ++row) f(row - start, row[0], row[1] - row[0]);
    });
  };
  std::vector<int64_t> end(static_cast<size_t>(num_users));  // of each row that is kept
  each_row([&](int64_t u, int64_t begin, int64_t count) { end[u] = sort_row(&entries[begin], count); });
  for (int64_t u = 1; u < num_users; ++u) end[u] += end[u - 1];
  Tensor indices = new_tensor(users, {n}, ScalarType::Int);
  Tensor rows = new_tensor(users, {n}, ScalarType::Int);
  each_row([&](int64_t u, int64_t begin, int64_t) {
    const int64_t to = u ? end[u - 1] : 0, count = end[u] - to;
    int32_t* const column = data<int32_t>(indices) + to;
    int32_t* const position = data<int32_t>(rows) + to;
    for (int64_t i = 0; i < count; ++i) {
      column[i] = static_cast<int32_t>(entries[begin + i] >> 32);
      position[i] = static_cast<int32_t>(entries[begin + i] & UINT32_MAX);
    }
  });
  std::copy(end.begin(), end.end(), start + 1);
  return {indptr, indices, rows};
}

std::tuple<Tensor, Tensor, Tensor> csr_build(const Tensor& users, const Tensor& items, int64_t num_users,
                                             int64_t num_items) {
  const ScalarType dtype = users.scalar_type();
  ZX_CHECK(users.dim() == 1 && items.dim() == 1 && users.numel() == items.numel() && items.scalar_type() == dtype &&
               users.is_contiguous() && items.is_contiguous(),
           "users and items must be contiguous vectors of one length and dtype");
  ZX_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long, "users and items must be int32 or int64");
  ZX_CHECK(
      num_users >= 0 && num_users < kLargest && num_items >= 0 && num_items <= kLargest && users.numel() < kLargest,
      "num_users, num_items and the number of pairs must be from 0 and below 2^31");
  return dtype == ScalarType::Int ? build<int32_t>(users, items, num_users, num_items)
                                  : build<int64_t>(users, items, num_users, num_items);
}

}  // namespace
}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("csr_build", ZX_BOX(&zx::cpu::csr_build)); }
