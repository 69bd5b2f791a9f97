// A CSR matrix from pairs of codes: count, scatter, sort each row, merge duplicates. Two arrays of the size of the
// result are all the memory that it takes.
#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/slices.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kLargest = INT64_C(1) << 31;  // codes and positions must be below
constexpr int64_t kEntriesPerTask = 1 << 15;
constexpr int64_t kLongRow = 1 << 22;  // sorted by the thread that called, which is the one that can be interrupted

// Sorts the entries of one row by item, equal items by position, and keeps the last position of each item. Returns how
// many are left. scratch holds (item, position) as one word each, so that one comparison orders both.
int64_t sort_row(int32_t* items, int32_t* positions, int64_t count, std::vector<uint64_t>& scratch) {
  bool ascending = true;
  for (int64_t i = 1; i < count; ++i) ascending &= items[i - 1] < items[i];
  if (ascending) return count;
  if (static_cast<int64_t>(scratch.size()) < count) scratch.resize(static_cast<size_t>(count));
  uint64_t* key = scratch.data();
  for (int64_t i = 0; i < count; ++i)
    key[i] = static_cast<uint64_t>(items[i]) << 32 | static_cast<uint32_t>(positions[i]);
  if (count < kLongRow)
    std::sort(key, key + count);
  else
    sort_watched(key, key + count, [](uint64_t a, uint64_t b) { return a < b; });
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count && key[i] >> 32 == key[i + 1] >> 32) continue;
    items[kept] = static_cast<int32_t>(key[i] >> 32);
    positions[kept++] = static_cast<int32_t>(key[i] & UINT32_MAX);
  }
  return kept;
}

template <class Code>
std::tuple<Tensor, Tensor, Tensor> build(const Tensor& users, const Tensor& items, int64_t num_users,
                                         int64_t num_items) {
  const int64_t n = users.numel();
  const Code* user = data<Code>(users);
  const Code* item = data<Code>(items);
  Tensor indptr = new_tensor(users, {num_users + 1}, ScalarType::Long);
  Tensor indices = new_tensor(users, {n}, ScalarType::Int);
  Tensor rows = new_tensor(users, {n}, ScalarType::Int);
  int64_t* start = data<int64_t>(indptr);
  int32_t* column = data<int32_t>(indices);
  int32_t* position = data<int32_t>(rows);

  std::fill_n(start, num_users + 1, int64_t{0});
  in_slices(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t u = user[i], c = item[i];
      ZX_CHECK(u >= 0 && u < num_users, "users must be numbers from 0 to ", num_users - 1, ", got ", u, " at position ",
               i);
      ZX_CHECK(c >= 0 && c < num_items, "items must be numbers from 0 to ", num_items - 1, ", got ", c, " at position ",
               i);
      ++start[u + 1];
    }
  });
  for (int64_t u = 0; u < num_users; ++u) start[u + 1] += start[u];
  // Afterwards start[u] is where row u ends, that is, where row u + 1 begins.
  in_slices(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = start[user[i]]++;
      column[at] = static_cast<int32_t>(item[i]);
      position[at] = static_cast<int32_t>(i);
    }
  });
  std::copy_backward(start, start + num_users, start + num_users + 1);
  start[0] = 0;

  // Rows are shared out in ranges of about as many entries each; what a range is does not matter to the result.
  std::vector<int64_t> kept(static_cast<size_t>(num_users));
  const auto sort = [&](int64_t row, std::vector<uint64_t>& scratch) {
    kept[row] = sort_row(column + start[row], position + start[row], start[row + 1] - start[row], scratch);
  };
  if (n >= kLongRow) {
    std::vector<uint64_t> scratch;
    in_slices(num_users, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u)
        if (start[u + 1] - start[u] >= kLongRow) sort(u, scratch);
    });
  }
  const int64_t tasks = (n + kEntriesPerTask - 1) / kEntriesPerTask;
  Failure failure;
  share_blocks(tasks, [&](const auto& next) {
    failure.guard([&] {
      std::vector<uint64_t> scratch;
      for (int64_t task = next(); task >= 0; task = next()) {
        // Rows that begin within the task's entries; empty rows may fall to two tasks, which does no harm.
        int64_t* const first = std::lower_bound(start, start + num_users, task * kEntriesPerTask);
        int64_t* const last = std::lower_bound(first, start + num_users, (task + 1) * kEntriesPerTask);
        for (const int64_t* row = first; row < last; ++row)
          if (row[1] - row[0] < kLongRow) sort(row - start, scratch);
      }
    });
  });
  failure.rethrow();

  int64_t to = 0;
  in_slices(num_users, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t from = start[u], count = kept[u];
      if (from != to) {
        std::copy_n(column + from, count, column + to);
        std::copy_n(position + from, count, position + to);
      }
      start[u] = to;
      to += count;
    }
  });
  start[num_users] = to;
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
