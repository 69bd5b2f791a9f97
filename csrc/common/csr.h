// Searches in a canonical CSR matrix (rows sorted, no duplicates). All index arithmetic is 64-bit.
#pragma once

#include <cstdint>

#include "macros.h"

namespace zx {

// One user's items: `items[0 .. count)`, ascending.
template <class Index>
struct Row {
  const Index* items;
  int64_t count;
};

ZX_HD bool is_item(int64_t item, int64_t num_items) {
  return static_cast<uint64_t>(item) < static_cast<uint64_t>(num_items);
}

// Whether indptr's neighbours begin and end are a row of a matrix of so many entries.
ZX_HD bool is_row(int64_t begin, int64_t end, int64_t entries) { return begin >= 0 && begin <= end && end <= entries; }

// Number of entries of the ascending a[0 .. n) that are less than `value`.
template <class T, class V>
ZX_HD int64_t lower_bound(const T* a, int64_t n, V value) {
  int64_t base = 0;
  while (n > 0) {  // the answer is in [base, base + n]; the multiplication keeps the loop free of branches
    const int64_t half = n >> 1;
    const int64_t right = static_cast<V>(a[base + half]) < value;
    base += right * (half + 1);
    n = right ? n - half - 1 : half;
  }
  return base;
}

// Number of entries of the ascending a[0 .. n) that are at most `value`.
template <class T, class V>
ZX_HD int64_t upper_bound(const T* a, int64_t n, V value) {
  int64_t base = 0;
  while (n > 0) {
    const int64_t half = n >> 1;
    const int64_t right = !(value < static_cast<V>(a[base + half]));
    base += right * (half + 1);
    n = right ? n - half - 1 : half;
  }
  return base;
}

template <class Index>
ZX_HD bool row_contains(Row<Index> row, int64_t item) {
  const int64_t j = lower_bound(row.items, row.count, item);
  return j < row.count && static_cast<int64_t>(row.items[j]) == item;
}

// The k-th (from 0) of the items that the row does not hold. items[j] - j counts the missing items below items[j] and
// never falls, so a binary search finds how many of the row's items lie below the answer.
template <class Index>
ZX_HD int64_t complement_select(Row<Index> row, int64_t k) {
  int64_t lo = 0, n = row.count;
  while (n > 0) {
    const int64_t half = n >> 1, j = lo + half;
    if (static_cast<int64_t>(row.items[j]) - j <= k) {
      lo = j + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return k + lo;
}

// The user that owns interaction number e: the last u in [first, last] with indptr[u] <= e.
ZX_HD int64_t owner_between(const int64_t* indptr, int64_t first, int64_t last, int64_t e) {
  return first + upper_bound(indptr + first + 1, last - first, e);
}

// ---- Row filter -----------------------------------------------------------------------------------------------------
// Sixteen bits for every interaction, at the interaction's own offset, that answer most membership questions with one
// load. A row of c items owns 16 c bits. If that covers every item, the bits are the row's exact bitmap; otherwise each
// item sets one hashed bit, and a bit that is clear proves the item absent (a set bit proves nothing). What is sampled
// never depends on the filter, only how soon it is known.
constexpr int kFilterBits = 16;

// Number of bits that items are hashed to, or 0 where the filter is an exact bitmap. An empty row looks at one bit that
// is not its own, in vain: the filter ends with a word more than there are interactions.
ZX_HD uint64_t filter_range(int64_t count, int64_t num_items) {
  if (count == 0) return 1;
  const int64_t bits = count * kFilterBits;
  if (bits >= num_items) return 0;
  return bits < 0xffffffff ? static_cast<uint64_t>(bits) : 0xffffffffu;
}

// An item's bit. (Items that agree in their low 32 bits share it.)
constexpr uint64_t kFilterFactor = 0x9E3779B1u;

ZX_HD uint64_t filter_bit(uint64_t range, int64_t item) {
  const uint64_t id = static_cast<uint64_t>(item);
  const uint64_t hash = ((id & 0xffffffffu) * kFilterFactor) & 0xffffffffu;
  return range == 0 ? id : (hash * range) >> 32;
}

// Membership of one row with the help of a filter, or without one (bits == nullptr).
template <class Index>
struct RowMembership {
  Row<Index> row;
  const uint16_t* bits;  // of this row
  int64_t num_items;

  ZX_HD bool operator()(int64_t item) const {
    if (bits != nullptr) {
      const uint64_t range = filter_range(row.count, num_items);
      const uint64_t bit = filter_bit(range, item);
      if (((bits[bit >> 4] >> (bit & 15)) & 1) == 0) return false;
      if (range == 0) return true;
    }
    return row_contains(row, item);
  }
};

}  // namespace zx
