// Groups the positions of a batch by the row that they name, those of a row in the order of the batch: by counting
// where the table is small beside the batch, else by a radix sort of (row, position) pairs, or by counting only what
// the batch touches where rows need not be ascending.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu/slices.h"
#include "torch_stable.h"

namespace zx::cpu {

// One group of equal rows: order[begin .. end) are its positions, in ascending order.
struct Segment {
  int64_t row, begin, end;
};

// Cuts groups into runs [cuts[i], cuts[i + 1]) of at least `least` positions each, the last one excepted: what one
// thread does at a time, and independent of their number.
inline void cut_segments(const std::vector<Segment>& segments, int64_t least, std::vector<int64_t>* cuts) {
  cuts->assign(1, 0);
  int64_t begin = 0;
  for (size_t s = 0; s < segments.size(); ++s)
    if (segments[s].end - begin >= least || s + 1 == segments.size()) {
      cuts->push_back(static_cast<int64_t>(s) + 1);
      begin = segments[s].end;
    }
}

class RowGroups {
 public:
  // Groups positions 0 .. n-1 by row_of(position), each in [0, rows), rows ascending; rows and n below 2^32. Buffers
  // are kept.
  template <class F>
  void sort(int64_t n, int64_t rows, const F& row_of) {
    order_.resize(static_cast<size_t>(n));
    group(n, rows, true, row_of, [&](int64_t at, int64_t place) { order_[place] = static_cast<uint32_t>(at); });
  }

  // The same, but calls place(position, its place in the order) instead of keeping the order. Where a batch touches few
  // of the rows these come, unless they must be ascending, as the batch names them, at a cost that does not depend on
  // the table. A signal may end it in its midst.
  template <class F, class P>
  void group(int64_t n, int64_t rows, bool ascending, const F& row_of, const P& place) {
    ZX_CHECK(rows <= kLargest && n <= kLargest, "tables and batches must have fewer than 2^32 rows");
    if (rows <= kCountedRows && rows <= (ascending ? 4 * n : n))
      by_counting(n, rows, row_of, place);
    else if (!ascending && rows <= kTouchedRows)
      by_touch(n, rows, row_of, place);
    else
      by_digits(n, rows, row_of, place);
  }

  const std::vector<uint32_t>& order() const { return order_; }
  const std::vector<Segment>& segments() const { return segments_; }

  // Hands the groups over for a vector that is no longer needed.
  void exchange(std::vector<Segment>& segments) { segments_.swap(segments); }

 private:
  // One counter a row: no digits, no pairs to move.
  template <class F, class P>
  void by_counting(int64_t n, int64_t rows, const F& row_of, const P& place) {
    counters_.assign(static_cast<size_t>(rows), 0u);
    zeros_ = false;
    uint32_t* counter = counters_.data();
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++counter[row_of(i)];
    });
    segments_.resize(static_cast<size_t>(std::min(rows, n) + 1));
    Segment* segments = segments_.data();
    uint32_t total = 0;
    int64_t distinct = 0;
    for (int64_t row = 0; row < rows; ++row) {  // (whether a row occurs cannot be guessed: written in any case)
      const uint32_t count = counter[row];
      counter[row] = total;
      segments[distinct] = {row, total, total + count};
      distinct += count != 0;
      total += count;
    }
    segments_.resize(static_cast<size_t>(distinct));
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) place(i, counter[row_of(i)]++);
    });
    counters_.clear();
  }

  // A counter a row too, of which only those of the batch are looked at. In between all are zero.
  template <class F, class P>
  void by_touch(int64_t n, int64_t rows, const F& row_of, const P& place) {
    if (!zeros_ || static_cast<int64_t>(counters_.size()) != rows) counters_.assign(static_cast<size_t>(rows), 0u);
    zeros_ = false;
    uint32_t* counter = counters_.data();
    touched_.resize(static_cast<size_t>(n) + 1);
    uint32_t* touched = touched_.data();
    int64_t distinct = 0;
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = row_of(i);
        touched[distinct] = static_cast<uint32_t>(row);
        distinct += counter[row]++ == 0;
      }
    });
    segments_.resize(static_cast<size_t>(distinct));
    uint32_t total = 0;
    for (int64_t s = 0; s < distinct; ++s) {
      const uint32_t row = touched[s], count = counter[row];
      counter[row] = total;
      segments_[s] = {row, total, total + count};
      total += count;
    }
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) place(i, counter[row_of(i)]++);
    });
    for (int64_t s = 0; s < distinct; ++s) counter[touched[s]] = 0;
    zeros_ = true;
  }

  template <class F, class P>
  void by_digits(int64_t n, int64_t rows, const F& row_of, const P& place) {
    keys_.resize(static_cast<size_t>(n));
    spare_.resize(static_cast<size_t>(n));
    int bits = 1;
    while ((int64_t{1} << bits) < rows) ++bits;
    // Few wide digits: 2^11 counters stay in the L1 cache. Small batches are not worth counters that wide.
    const int widest = n >= 2048 ? kDigitBits : 8;
    const int passes = (bits + widest - 1) / widest;
    const int width = (bits + passes - 1) / passes;
    const uint32_t mask = (1u << width) - 1;
    std::array<std::array<uint32_t, 1 << kDigitBits>, 4> counts;
    for (int p = 0; p < passes; ++p) std::fill_n(counts[p].begin(), mask + 1, 0u);
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint32_t row = static_cast<uint32_t>(row_of(i));
        keys_[i] = (static_cast<uint64_t>(row) << 32) | static_cast<uint32_t>(i);
        for (int p = 0; p < passes; ++p) ++counts[p][(row >> (p * width)) & mask];
      }
    });
    for (int p = 0; p < passes; ++p) {
      auto& count = counts[p];
      uint32_t total = 0;
      for (uint32_t v = 0; v <= mask; ++v) {
        const uint32_t c = count[v];
        count[v] = total;
        total += c;
      }
      const int shift = 32 + p * width;
      in_slices(n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) spare_[count[(keys_[i] >> shift) & mask]++] = keys_[i];
      });
      keys_.swap(spare_);
    }
    segments_.clear();
    in_slices(n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = static_cast<int64_t>(keys_[i] >> 32);
        place(static_cast<int64_t>(keys_[i] & 0xffffffffu), i);
        if (i == 0 || row != segments_.back().row) {
          if (i > 0) segments_.back().end = i;
          segments_.push_back({row, i, i});
        }
      }
    });
    if (n > 0) segments_.back().end = n;
  }

  static constexpr int kDigitBits = 11;
  static constexpr int64_t kLargest = int64_t{1} << 32;
  static constexpr int64_t kCountedRows = 1 << 17;  // whose counters fit an L2 cache
  static constexpr int64_t kTouchedRows = 1 << 20;  // whose counters a few thousand rows find in an L3 cache
  std::vector<uint64_t> keys_, spare_;
  std::vector<uint32_t> order_, counters_, touched_;
  bool zeros_ = false;  // whether all counters are zero
  std::vector<Segment> segments_;
};

}  // namespace zx::cpu
