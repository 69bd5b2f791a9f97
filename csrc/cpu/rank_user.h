// What the ranking pass keeps of one user: his levels (the distinct scores of his positives), how many candidates are
// above and level with each, and his top k so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/ranking.h"
#include "cpu/places.h"
#include "cpu/simd.h"

namespace zx::cpu {

constexpr int64_t kTileBytes = 16384;  // of one user's scores
constexpr int64_t kFewLevels = 16;     // up to here each level takes its own pass over the row
constexpr int64_t kGroup = 64;         // scores that are compared with the k-th best together

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr int64_t kTile = kTileBytes / static_cast<int64_t>(sizeof(T));

// ---- Counting -------------------------------------------------------------------------------------------------------

// Adds to greater[j] and equal[j] the scores above and level with levels[j]; n is a multiple of 64.
template <class T>
struct CountFew {
  ZX_HD static void run(const T* row, int64_t n, const T* levels, int64_t m, int64_t* greater, int64_t* equal) {
    for (int64_t j = 0; j < m; ++j) {
      const T level = levels[j];
      int_of<T> above = 0, same = 0;
      for (int64_t i = 0; i < n; ++i) {
        above += row[i] > level;
        same += row[i] == level;
      }
      greater[j] += above;
      equal[j] += same;
    }
  }
};

// Cells of equal width over the range of the levels, for counting scores among many levels.
template <class T>
struct LevelCells {
  static constexpr int32_t kCells = 2048;
  T base = 0, scale = 0, last = 0;

  // Never falls while the score rises; NaN is in cell 0. (A difference times a factor cannot be contracted, so that
  // every instruction set finds the same cell.)
  ZX_HD int32_t cell(T score) const {
    const T x = (score - base) * scale;
    const T y = x > T(0) ? x : T(0);
    return static_cast<int32_t>(y < last ? y : last);
  }

  void cover(const T* levels, int64_t m) {
    int64_t first = 0, end = m - 1;
    while (first < end && levels[first] == -kInfinity<T>) ++first;
    while (first < end && levels[end] == kInfinity<T>) --end;
    const T width = (levels[end] - levels[first]) / T(kCells - 4);
    base = levels[first] - width, scale = 1 / width, last = T(kCells - 1);
    // Levels that are all infinite, or a range whose width or its inverse is: one cell.
    if (!std::isfinite(base) || !std::isfinite(width) || !std::isfinite(scale)) base = scale = last = T(0);
  }
};

// Adds each score of a row to its bin (score_bin) among many levels; n is a multiple of 64, levels[m] is NaN. Scores in
// cells without a level only need their cell counted; the few others wait and are compared with the levels of theirs.
template <class T>
struct CountMany {
  static constexpr int64_t kSets = 2;  // of counters, so that scores of one cell wait less for each other

  struct Scratch {
    uint16_t count[kSets][LevelCells<T>::kCells] = {};  // zero between rows
    uint8_t shared[LevelCells<T>::kCells] = {};         // 1 where a level lies, 0 between rows
    int32_t first_level[LevelCells<T>::kCells];         // of those in a shared cell
    int32_t waiting[kTile<T>];
  };

  ZX_HD static void run(const T* row, int64_t n, const T* levels, int64_t m, const LevelCells<T>* cells, int64_t* bins,
                        Scratch* scratch) {
    const LevelCells<T> to = *cells;
    for (int64_t j = m - 1; j >= 0; --j) {
      const int32_t c = to.cell(levels[j]);
      scratch->shared[c] = 1;
      scratch->first_level[c] = static_cast<int32_t>(j);
    }
    int64_t waiting = 0;
    for (int64_t i = 0; i < n; i += kGroup) {
      int32_t cell[kGroup];
      for (int64_t l = 0; l < kGroup; ++l) cell[l] = to.cell(row[i + l]);
      for (int64_t l = 0; l < kGroup; l += kSets) {
        for (int64_t s = 0; s < kSets; ++s) {
          ++scratch->count[s][cell[l + s]];
          scratch->waiting[waiting] = static_cast<int32_t>(i + l + s);
          waiting += scratch->shared[cell[l + s]];
        }
      }
    }
    for (int64_t j = 0, begin = 0;;) {
      const int32_t end = j < m ? to.cell(levels[j]) : LevelCells<T>::kCells;
      int32_t between = 0;
      for (int64_t c = begin; c < end; ++c) between += scratch->count[0][c] + scratch->count[1][c];
      bins[2 * j] += between;
      if (j == m) break;
      scratch->shared[end] = 0;
      while (++j < m && to.cell(levels[j]) == end) {
      }
      begin = end + 1;
    }
    std::memset(scratch->count, 0, sizeof scratch->count);
    for (int64_t w = 0; w < waiting; ++w) {
      const T score = row[scratch->waiting[w]];
      const int64_t j = scratch->first_level[to.cell(score)];
      ++bins[__builtin_expect(score >= levels[j + 1], 0) ? score_bin(levels, j + 1, m, score)
                                                         : 2 * j + (score >= levels[j]) + (score > levels[j])];
    }
  }
};

// How many scores of a row are NaN; n is a multiple of 64.
template <class T>
struct CountNaN {
  ZX_HD static int64_t run(const T* row, int64_t n) {
    int_of<T> count = 0;
    for (int64_t i = 0; i < n; ++i) count += row[i] != row[i];
    return count;
  }
};

// ---- Top k ----------------------------------------------------------------------------------------------------------

// The k first of what was offered in ascending order of items.
template <class T>
class TopK {
 public:
  void start(int64_t k) {
    k_ = k;
    floor_ = -kInfinity<T>;
    kept_.clear();
  }

  // Whatever is offered later has to be above this.
  T floor() const { return floor_; }
  bool empty() const { return kept_.empty(); }
  // Promises that k scores of the row are at least `score`.
  void promise(T score) { floor_ = std::nextafter(score, -kInfinity<T>); }

  void offer(T score, int64_t item) {
    kept_.push_back({score, item});
    if (static_cast<int64_t>(kept_.size()) >= 2 * k_ + 32) shrink();
  }

  // Takes what was kept of an earlier tile, best first, -1 padding.
  void resume(const T* scores, const int64_t* items) {
    for (int64_t j = 0; j < k_ && items[j] >= 0; ++j) kept_.push_back({scores[j], items[j]});
    if (static_cast<int64_t>(kept_.size()) == k_) floor_ = kept_.back().score;
  }

  void finish(T* scores, int64_t* items) {
    if (!sort_distinct()) {
      if (static_cast<int64_t>(kept_.size()) > k_) shrink();
      std::sort(kept_.begin(), kept_.end(), Before());
    }
    const int64_t n = static_cast<int64_t>(kept_.size());
    for (int64_t j = 0; j < k_; ++j) {
      items[j] = j < n ? kept_[static_cast<size_t>(j)].item : -1;
      scores[j] = j < n ? kept_[static_cast<size_t>(j)].score : -kInfinity<T>;
    }
  }

 private:
  struct Before {
    bool operator()(const Scored<T>& a, const Scored<T>& b) const { return precedes(a, b); }
  };

  void shrink() {
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end(), Before());
    kept_.resize(static_cast<size_t>(k_));
    floor_ = kept_.back().score;
  }

  // Scores that differ are put in order by their places; false if some are equal.
  bool sort_distinct() {
    const size_t n = kept_.size();
    T* values = places_.start(static_cast<int64_t>(n));
    for (size_t i = 0; i < n; ++i) values[i] = -kept_[i].score;
    const int32_t* below = places_.below();
    sorted_.assign(n, {T(0), -1});
    for (size_t i = 0; i < n; ++i) {
      Scored<T>& place = sorted_[static_cast<size_t>(below[i])];
      if (place.item >= 0) return false;
      place = kept_[i];
    }
    kept_.swap(sorted_);
    return true;
  }

  int64_t k_ = 0;
  T floor_ = 0;
  std::vector<Scored<T>> kept_, sorted_;
  Places<T> places_;
};

// Offers the scores of a row above the floor; n is a multiple of 64, and items past the end are NaN.
template <class T>
struct CollectTop {
  static constexpr int64_t kSpans = 128;

  ZX_HD static void run(const T* row, int64_t n, int64_t first_item, int64_t k, TopK<T>* top) {
    if (top->empty()) {
      const T reached = reached_by(row, n, k);
      if (reached > -kInfinity<T>) top->promise(reached);
    }
    for (int64_t i = 0; i < n; i += kGroup) {
      const T floor = top->floor();
      int_of<T> any = 0;
      for (int64_t l = 0; l < kGroup; ++l) any |= row[i + l] > floor;
      if (any) collect(row + i, first_item + i, top);
    }
  }

  // One group: comparing all at once leaves few branches that cannot be foreseen.
  ZX_HD static void collect(const T* row, int64_t first_item, TopK<T>* top) {
    const T floor = top->floor();
    uint8_t hit[kGroup];
    for (int64_t l = 0; l < kGroup; ++l) hit[l] = row[l] > floor;
    uint64_t hits = 0;  // bit l: whether score l is above the floor
    for (int64_t w = 0; w < kGroup; w += 8) {
      uint64_t word = 0;
      for (int64_t l = 0; l < 8; ++l) word |= static_cast<uint64_t>(hit[w + l]) << (8 * l);
      hits |= word * 0x0102040810204080 >> 56 << w;
    }
    for (; hits != 0; hits &= hits - 1) {
      const int64_t l = __builtin_ctzll(hits);
      top->offer(row[l], first_item + l);
    }
  }

  // A number that at least k scores of the row reach, or -infinity: the maxima of 128 parts of the row are looked at,
  // and what k of them reach is found by halving an interval, since any such number will do.
  ZX_HD static T reached_by(const T* row, int64_t n, int64_t k) {
    if (k > kSpans || n < 4 * kSpans) return -kInfinity<T>;
    T maxima[kSpans];
    for (int64_t l = 0; l < kSpans; ++l) maxima[l] = -kInfinity<T>;
    for (int64_t i = 0; i + kSpans <= n; i += kSpans)
      for (int64_t l = 0; l < kSpans; ++l) maxima[l] = row[i + l] > maxima[l] ? row[i + l] : maxima[l];
    T low = maxima[0], high = maxima[0];
    for (int64_t l = 1; l < kSpans; ++l) {
      low = maxima[l] < low ? maxima[l] : low;
      high = maxima[l] > high ? maxima[l] : high;
    }
    if (!(low > -kInfinity<T> && high < kInfinity<T>)) return -kInfinity<T>;
    for (int step = 0; step < 10; ++step) {
      const T middle = low / 2 + high / 2;
      int_of<T> reaching = 0;
      for (int64_t l = 0; l < kSpans; ++l) reaching += maxima[l] >= middle;
      if (reaching >= k)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

// ---- One user -------------------------------------------------------------------------------------------------------

template <class Index>
struct Csr {
  const int64_t* indptr = nullptr;  // nullptr: no interactions
  const Index* indices = nullptr;

  Row<Index> row(int64_t user) const {
    if (indptr == nullptr) return {nullptr, 0};
    return {indices + indptr[user], indptr[user + 1] - indptr[user]};
  }
};

// What the passes over tiles add up, for one user.
template <class T, class Index>
struct UserRanking {
  Row<Index> positives, excluded;
  const T* scores;                       // of the positives
  int64_t next_positive, next_excluded;  // the first at or after the current tile
  std::vector<T> levels;                 // ascending, distinct; NaN at the end
  int64_t num_levels;
  bool binned;  // scores are counted in bins among the levels, rather than for each level
  Places<T> places;
  std::vector<int32_t> level_at, level_of;  // of places, of positives
  LevelCells<T> cells;
  std::vector<int64_t> bins;
  std::vector<int64_t> greater, equal;  // of levels
  int64_t removed;
  TopK<T> top;

  // False where a positive's score is NaN.
  bool start(Row<Index> held_out, Row<Index> no_candidates, const T* held_out_scores, int64_t first_item, int64_t k,
             bool coarse) {
    positives = held_out, excluded = no_candidates, scores = held_out_scores;
    next_positive = first_item == 0 ? 0 : lower_bound(positives.items, positives.count, first_item);
    next_excluded = first_item == 0 ? 0 : lower_bound(excluded.items, excluded.count, first_item);
    removed = 0;
    top.start(k);
    for (int64_t i = 0; i < positives.count; ++i)
      if (scores[i] != scores[i]) return false;
    sort_levels();
    binned = coarse || num_levels > kFewLevels;
    if (binned && !coarse) cells.cover(levels.data(), num_levels);
    bins.assign(binned ? static_cast<size_t>(2 * num_levels + 1) : 0, 0);
    greater.assign(static_cast<size_t>(num_levels), 0);
    equal.assign(static_cast<size_t>(num_levels), 0);
    return true;
  }

  void sort_levels() {
    constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
    const size_t n = static_cast<size_t>(positives.count);
    std::copy_n(scores, n, places.start(positives.count));
    const int32_t* below = places.below();
    levels.assign(n + 1, kNaN);
    for (size_t i = 0; i < n; ++i) levels[static_cast<size_t>(below[i])] = scores[i];
    // Places that equal scores leave empty are closed up.
    level_at.resize(n);
    size_t distinct = 0;
    for (size_t r = 0; r < n; ++r) {
      const T level = levels[r];
      level_at[r] = static_cast<int32_t>(distinct);
      levels[distinct] = level;
      distinct += level == level;
    }
    levels[distinct] = kNaN;
    num_levels = static_cast<int64_t>(distinct);
    level_of.resize(n);
    for (size_t i = 0; i < n; ++i) level_of[i] = level_at[static_cast<size_t>(below[i])];
  }

  // Makes `gone` of what is no candidate in the row of items [first_item, end); positives become what value(i) is.
  // Returns how many are no candidates.
  template <class R, class Value>
  int64_t mask(R* row, int64_t first_item, int64_t end, R gone, const Value& value) {
    int64_t masked = 0;
    // First every excluded item, then the positives among them back again: no comparing of the two lists.
    for (; next_excluded < excluded.count && excluded.items[next_excluded] < end; ++next_excluded, ++masked)
      row[static_cast<int64_t>(excluded.items[next_excluded]) - first_item] = gone;
    for (; next_positive < positives.count && positives.items[next_positive] < end; ++next_positive) {
      R& score = row[static_cast<int64_t>(positives.items[next_positive]) - first_item];
      masked -= score == gone || score != score;
      score = value(next_positive);
    }
    removed += masked;
    return masked;
  }

  // Takes the scores row[0 .. width) of items from first_item, padded in place to a multiple of 64. False where a
  // candidate's score is NaN.
  bool add(T* row, int64_t width, int64_t first_item, int64_t k, typename CountMany<T>::Scratch* scratch) {
    constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
    const int64_t end = first_item + width, padded = (width + kGroup - 1) / kGroup * kGroup;
    const int64_t masked = mask(row, first_item, end, kNaN, [&](int64_t i) { return scores[i]; });
    for (int64_t i = width; i < padded; ++i) row[i] = kNaN;
    if (simd<CountNaN<T>>(static_cast<const T*>(row), padded) != masked + padded - width) return false;
    if (binned)
      simd<CountMany<T>>(static_cast<const T*>(row), padded, static_cast<const T*>(levels.data()), num_levels,
                         static_cast<const LevelCells<T>*>(&cells), bins.data(), scratch);
    else
      simd<CountFew<T>>(static_cast<const T*>(row), padded, static_cast<const T*>(levels.data()), num_levels,
                        greater.data(), equal.data());
    if (k > 0) simd<CollectTop<T>>(static_cast<const T*>(row), padded, first_item, k, &top);
    return true;
  }

  // Adds the counts of each positive to what earlier slabs counted.
  void finish(int64_t* positive_greater, int64_t* positive_equal) {
    if (binned) {
      int64_t above = 0;
      for (int64_t j = num_levels - 1; j >= 0; --j) {
        above += bins[static_cast<size_t>(2 * j + 2)];
        greater[static_cast<size_t>(j)] = above;
        equal[static_cast<size_t>(j)] = bins[static_cast<size_t>(2 * j + 1)];
        above += equal[static_cast<size_t>(j)];
      }
    }
    for (int64_t i = 0; i < positives.count; ++i) {
      const size_t j = static_cast<size_t>(level_of[static_cast<size_t>(i)]);
      positive_greater[i] += greater[j];
      positive_equal[i] += equal[j];
    }
  }
};

}  // namespace zx::cpu
