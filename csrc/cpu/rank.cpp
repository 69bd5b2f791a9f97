// The ranking pass on the CPU: where held-out positives stand among all candidates, and each user's top k.
//
// Blocks of users go over tiles of items. The scores of a tile come from the factors (rank_scores.h) or from a matrix
// and stay in the cache; what is no candidate becomes NaN there, which is above, below and level with nothing. Then,
// row by row, candidates are counted against the user's levels, the distinct scores of his positives, and those above
// the k-th best so far are collected. Users are independent of each other, so that nothing depends on blocks or
// threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "common/ranking.h"
#include "cpu/parallel.h"
#include "cpu/places.h"
#include "cpu/rank_scores.h"
#include "cpu/simd.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kBlockUsers = 36;       // a multiple of both kernels' users
constexpr int64_t kTileBytes = 16384;     // of one user's scores: a block's tile takes 576 KiB
constexpr int64_t kSlabBytes = 64 << 20;  // of packed items; larger tables go slab by slab
constexpr int64_t kFewLevels = 16;        // up to here each level takes its own pass over the row
constexpr int64_t kGroup = 64;            // scores that are compared with the k-th best together
constexpr int64_t kNoFailure = std::numeric_limits<int64_t>::max();

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
    if (top->empty() && k <= kSpans && n >= 4 * kSpans) begin(row, n, k, top);
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

  // The maxima of 128 parts of the row: at least k scores reach what at least k of them reach. Found by halving an
  // interval, since any such number will do.
  ZX_HD static void begin(const T* row, int64_t n, int64_t k, TopK<T>* top) {
    T maxima[kSpans];
    for (int64_t l = 0; l < kSpans; ++l) maxima[l] = -kInfinity<T>;
    for (int64_t i = 0; i + kSpans <= n; i += kSpans)
      for (int64_t l = 0; l < kSpans; ++l) maxima[l] = row[i + l] > maxima[l] ? row[i + l] : maxima[l];
    T low = maxima[0], high = maxima[0];
    for (int64_t l = 1; l < kSpans; ++l) {
      low = maxima[l] < low ? maxima[l] : low;
      high = maxima[l] > high ? maxima[l] : high;
    }
    if (!(low > -kInfinity<T> && high < kInfinity<T>)) return;
    for (int step = 0; step < 10; ++step) {
      const T middle = low / 2 + high / 2;
      int_of<T> reaching = 0;
      for (int64_t l = 0; l < kSpans; ++l) reaching += maxima[l] >= middle;
      if (reaching >= k)
        low = middle;
      else
        high = middle;
    }
    top->promise(low);
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
  Places<T> places;
  std::vector<int32_t> level_at, level_of;  // of places, of positives
  LevelCells<T> cells;
  std::vector<int64_t> bins;            // of many levels
  std::vector<int64_t> greater, equal;  // of few
  int64_t removed;
  TopK<T> top;

  bool many() const { return num_levels > kFewLevels; }

  // False where a positive's score is NaN.
  bool start(Row<Index> held_out, Row<Index> no_candidates, const T* held_out_scores, int64_t first_item, int64_t k) {
    positives = held_out, excluded = no_candidates, scores = held_out_scores;
    next_positive = lower_bound(positives.items, positives.count, first_item);
    next_excluded = lower_bound(excluded.items, excluded.count, first_item);
    removed = 0;
    top.start(k);
    for (int64_t i = 0; i < positives.count; ++i)
      if (scores[i] != scores[i]) return false;
    sort_levels();
    if (many()) cells.cover(levels.data(), num_levels);
    bins.assign(many() ? static_cast<size_t>(2 * num_levels + 1) : 0, 0);
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

  // Takes the scores row[0 .. width) of items from first_item, padded in place to a multiple of 64. False where a
  // candidate's score is NaN.
  bool add(T* row, int64_t width, int64_t first_item, int64_t k, typename CountMany<T>::Scratch* scratch) {
    constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
    const int64_t end = first_item + width, padded = (width + kGroup - 1) / kGroup * kGroup;
    int64_t masked = 0;
    // First every excluded item, then the positives among them back again: no comparing of the two lists.
    for (; next_excluded < excluded.count && excluded.items[next_excluded] < end; ++next_excluded, ++masked)
      row[static_cast<int64_t>(excluded.items[next_excluded]) - first_item] = kNaN;
    for (; next_positive < positives.count && positives.items[next_positive] < end; ++next_positive) {
      T& score = row[static_cast<int64_t>(positives.items[next_positive]) - first_item];
      masked -= score != score;
      score = scores[next_positive];
    }
    removed += masked;
    for (int64_t i = width; i < padded; ++i) row[i] = kNaN;
    if (simd<CountNaN<T>>(static_cast<const T*>(row), padded) != masked + padded - width) return false;
    if (many())
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
    if (many()) {
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

// ---- Where scores come from -----------------------------------------------------------------------------------------

// Dot products of factors, item by item slab of packed panels.
template <class T>
struct FactorScores {
  const T *user_factors, *item_factors, *bias;  // bias may be nullptr
  int64_t num_items, dim;
  ScorePanels panels = score_panels<T>();
  int64_t slab_begin = 0, slab_end = 0;
  AlignedArray<T> packed, packed_bias;

  int64_t slab_items() const {
    const int64_t tiles = kSlabBytes / std::max<int64_t>(1, dim * static_cast<int64_t>(sizeof(T))) / kTile<T>;
    return std::max<int64_t>(1, tiles) * kTile<T>;
  }

  void pack(int64_t begin, int64_t end) {
    slab_begin = begin, slab_end = end;
    const int64_t width = panels.items, count = (end - begin + width - 1) / width;
    if (!packed) {
      const int64_t most = std::min(slab_items(), num_items) / width + 1;
      packed = aligned_array<T>(most * width * dim);
      packed_bias = aligned_array<T>(most * width);
    }
    for_each_block(count, 64, [&](int64_t p) {
      const int64_t first = begin + p * width, rows = std::min(width, end - first);
      const T* row[64];
      for (int64_t r = 0; r < rows; ++r) row[r] = item_factors + (first + r) * dim;
      pack_panel<T>(row, rows, width, dim, packed.get() + p * width * dim);
      for (int64_t r = 0; r < width; ++r)
        packed_bias[static_cast<size_t>(p * width + r)] = bias != nullptr && r < rows ? bias[first + r] : T(0);
    });
  }

  struct Block {
    AlignedArray<T> users;
    int64_t user_panels;
  };
  Block block() const { return {aligned_array<T>(kBlockUsers * dim), 0}; }

  void load(Block& block, const int64_t* users, int64_t /*first_row*/, int64_t n) const {
    block.user_panels = (n + panels.users - 1) / panels.users;
    for (int64_t q = 0; q < block.user_panels; ++q) {
      const int64_t rows = std::min<int64_t>(panels.users, n - q * panels.users);
      const T* row[kBlockUsers];
      for (int64_t r = 0; r < rows; ++r) row[r] = user_factors + users[q * panels.users + r] * dim;
      pack_panel<T>(row, rows, panels.users, dim, block.users.get() + q * panels.users * dim);
    }
  }

  template <class Index>
  void pairs(int64_t user, int64_t /*row*/, Row<Index> items, T* out) const {
    score_pairs<T, Index>(user_factors + user * dim, item_factors, bias, items.items, items.count, dim, out);
  }

  void tile(const Block& block, int64_t begin, int64_t width, int64_t /*n*/, T* out) const {
    const int64_t p = (begin - slab_begin) / panels.items;
    score_tile<T>(block.users.get(), block.user_panels, packed.get() + p * panels.items * dim,
                  packed_bias.get() + p * panels.items, (width + panels.items - 1) / panels.items, dim, out, kTile<T>);
  }
};

// Rows of a given matrix [B, I] of In, copied because what is no candidate is overwritten.
template <class T, class In>
struct GivenScores {
  const In* scores;
  int64_t row_stride, column_stride, num_items;

  int64_t slab_items() const { return std::max<int64_t>(num_items, 1); }
  void pack(int64_t, int64_t) {}

  struct Block {
    int64_t first_row;
  };
  Block block() const { return {0}; }
  void load(Block& block, const int64_t* /*users*/, int64_t first_row, int64_t /*n*/) const {
    block.first_row = first_row;
  }

  template <class Index>
  void pairs(int64_t /*user*/, int64_t row, Row<Index> items, T* out) const {
    for (int64_t i = 0; i < items.count; ++i)
      out[i] = static_cast<T>(scores[row * row_stride + static_cast<int64_t>(items.items[i]) * column_stride]);
  }

  void tile(const Block& block, int64_t begin, int64_t width, int64_t n, T* out) const {
    for (int64_t r = 0; r < n; ++r) {
      const In* row = scores + (block.first_row + r) * row_stride + begin * column_stride;
      for (int64_t i = 0; i < width; ++i) out[r * kTile<T> + i] = static_cast<T>(row[i * column_stride]);
    }
  }
};

// ---- The pass -------------------------------------------------------------------------------------------------------

template <class T, class Index>
struct RankProblem {
  int64_t rows, num_items, k;
  const int64_t* users;  // [rows]
  Csr<Index> positives, excluded;
  const int64_t* offset;  // [rows + 1], of each user's positives in the next three
  T* scores;
  int64_t *greater, *equal;
  int64_t* candidates;  // [rows]
  int64_t* top_items;   // [rows, k]
  T* top_scores;        // [rows, k]
};

// Users [begin, begin + n) and the items of the slab. Returns the first row with a NaN score.
template <class T, class Index, class Source>
int64_t rank_block(const RankProblem<T, Index>& p, const Source& source, typename Source::Block& block, T* tile,
                   typename CountMany<T>::Scratch* scratch, std::vector<UserRanking<T, Index>>& rankings, int64_t begin,
                   int64_t n, int64_t first_item, int64_t last_item) {
  const bool resumed = first_item > 0;
  // Where one tile is everything the positives' scores are read off it.
  const bool whole = p.num_items <= kTile<T>;
  source.load(block, p.users + begin, begin, n);
  if (whole) source.tile(block, 0, p.num_items, n, tile);
  for (int64_t u = 0; u < n; ++u) {
    const int64_t row = begin + u, user = p.users[row];
    UserRanking<T, Index>& ranking = rankings[static_cast<size_t>(u)];
    const Row<Index> positives = p.positives.row(user);
    T* scores = p.scores + p.offset[row];
    if (!resumed) {
      if (whole)
        for (int64_t i = 0; i < positives.count; ++i)
          scores[i] = tile[u * kTile<T> + static_cast<int64_t>(positives.items[i])];
      else
        source.pairs(user, row, positives, scores);
      std::fill_n(p.greater + p.offset[row], positives.count, int64_t{0});
      std::fill_n(p.equal + p.offset[row], positives.count, int64_t{-1});  // a positive is level with itself
      p.candidates[row] = p.num_items;
    }
    if (!ranking.start(positives, p.excluded.row(user), scores, first_item, p.k)) return row;
    if (resumed && p.k > 0) ranking.top.resume(p.top_scores + row * p.k, p.top_items + row * p.k);
  }
  int64_t failed = kNoFailure;
  for (int64_t first = first_item; first < last_item; first += kTile<T>) {
    const int64_t width = std::min(kTile<T>, last_item - first);
    if (!whole) source.tile(block, first, width, n, tile);
    for (int64_t u = 0; u < n; ++u)
      if (!rankings[static_cast<size_t>(u)].add(tile + u * kTile<T>, width, first, p.k, scratch))
        failed = std::min(failed, begin + u);
  }
  for (int64_t u = 0; u < n; ++u) {
    const int64_t row = begin + u;
    UserRanking<T, Index>& ranking = rankings[static_cast<size_t>(u)];
    ranking.finish(p.greater + p.offset[row], p.equal + p.offset[row]);
    p.candidates[row] -= ranking.removed;
    if (p.k > 0) ranking.top.finish(p.top_scores + row * p.k, p.top_items + row * p.k);
  }
  return failed;
}

// Returns the first row with a NaN score, or -1.
template <class T, class Index, class Source>
int64_t rank_all(const RankProblem<T, Index>& p, Source& source) {
  std::atomic<int64_t> failed{kNoFailure};
  const int64_t slab = source.slab_items();
  // An empty catalogue is one empty slab.
  for (int64_t first_item = 0; first_item == 0 || first_item < p.num_items; first_item += slab) {
    const int64_t last_item = std::min(p.num_items, first_item + slab);
    source.pack(first_item, last_item);
    share_blocks((p.rows + kBlockUsers - 1) / kBlockUsers, [&](auto&& next_block) {
      auto block = source.block();
      AlignedArray<T> tile = aligned_array<T>(kBlockUsers * kTile<T>);
      const auto scratch = std::make_unique<typename CountMany<T>::Scratch>();
      std::vector<UserRanking<T, Index>> rankings(kBlockUsers);
      for (int64_t b = next_block(); b >= 0; b = next_block()) {
        const int64_t begin = b * kBlockUsers, n = std::min(kBlockUsers, p.rows - begin);
        const int64_t row =
            rank_block(p, source, block, tile.get(), scratch.get(), rankings, begin, n, first_item, last_item);
        int64_t seen = failed.load();
        while (row < seen && !failed.compare_exchange_weak(seen, row)) {
        }
      }
    });
    if (failed.load() != kNoFailure) return failed.load();
  }
  return -1;
}

void check_csr(const Tensor& indptr, const Tensor& indices, const char* name) {
  ZX_CHECK(
      indptr.dim() == 1 && indptr.size(0) >= 1 && indptr.scalar_type() == ScalarType::Long && indptr.is_contiguous(),
      name, " must have an int64 indptr");
  ZX_CHECK(indices.dim() == 1 && indices.is_contiguous(), name, " must have contiguous indices");
}

using RankResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Allocates the results, fills in the problem and calls run(problem), which returns the failed row.
template <class T, class Run>
RankResult with_problem(const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
                        const std::optional<Tensor>& excluded_indptr, const std::optional<Tensor>& excluded_indices,
                        int64_t num_items, int64_t k, Run&& run) {
  ZX_CHECK(users.dim() == 1 && users.scalar_type() == ScalarType::Long && users.is_contiguous(),
           "users must be a contiguous int64 vector");
  const int64_t rows = users.size(0);
  ZX_CHECK(offset.dim() == 1 && offset.size(0) == rows + 1 && offset.scalar_type() == ScalarType::Long &&
               offset.is_contiguous(),
           "offset must be int64 [users + 1]");
  ZX_CHECK(k >= 0 && num_items >= 0, "k and num_items must not be negative");
  check_csr(indptr, indices, "positives");
  if (excluded_indptr) {
    check_csr(*excluded_indptr, *excluded_indices, "excluded");
    ZX_CHECK(excluded_indices->scalar_type() == indices.scalar_type(),
             "positives and excluded must have indices of one dtype");
  }
  const int64_t count = data<int64_t>(offset)[rows];
  Tensor scores = new_tensor(users, {count}, scalar_type_of<T>);
  Tensor greater = new_tensor(users, {count}, ScalarType::Long), equal = new_tensor(users, {count}, ScalarType::Long);
  Tensor candidates = new_tensor(users, {rows}, ScalarType::Long);
  Tensor top_items = new_tensor(users, {rows, k}, ScalarType::Long);
  Tensor top_scores = new_tensor(users, {rows, k}, scalar_type_of<T>);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  *data<int64_t>(failed) = dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    RankProblem<T, Index> p;
    p.rows = rows, p.num_items = num_items, p.k = k;
    p.users = data<int64_t>(users), p.offset = data<int64_t>(offset);
    p.positives = {data<int64_t>(indptr), data<Index>(indices)};
    if (excluded_indptr) p.excluded = {data<int64_t>(*excluded_indptr), data<Index>(*excluded_indices)};
    p.scores = data<T>(scores), p.greater = data<int64_t>(greater), p.equal = data<int64_t>(equal);
    p.candidates = data<int64_t>(candidates);
    p.top_items = data<int64_t>(top_items), p.top_scores = data<T>(top_scores);
    return run(p);
  });
  return {scores, greater, equal, candidates, top_items, failed};
}

}  // namespace

RankResult rank_factors(const Tensor& user_factors, const Tensor& item_factors, std::optional<Tensor> item_bias,
                        const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
                        std::optional<Tensor> excluded_indptr, std::optional<Tensor> excluded_indices, int64_t k) {
  ZX_CHECK(user_factors.dim() == 2 && item_factors.dim() == 2 && user_factors.size(1) == item_factors.size(1) &&
               user_factors.is_contiguous() && item_factors.is_contiguous(),
           "factors must be contiguous [U, d] and [I, d]");
  ZX_CHECK(user_factors.scalar_type() == item_factors.scalar_type(), "factors must have one dtype");
  const int64_t num_items = item_factors.size(0);
  if (item_bias)
    ZX_CHECK(item_bias->dim() == 1 && item_bias->size(0) == num_items && item_bias->is_contiguous() &&
                 item_bias->scalar_type() == item_factors.scalar_type(),
             "item_bias must be [I], of the factors' dtype");
  const auto run = [&](auto type) {
    using T = decltype(type);
    return with_problem<T>(
        users, offset, indptr, indices, excluded_indptr, excluded_indices, num_items, k, [&](const auto& p) {
          FactorScores<T> source{data<T>(user_factors), data<T>(item_factors),
                                 item_bias ? data<T>(*item_bias) : nullptr, num_items, item_factors.size(1)};
          return rank_all(p, source);
        });
  };
  switch (user_factors.scalar_type()) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Double:
      return run(double{});
    default:
      ZX_CHECK(false, "factors must be float32 or float64");
  }
}

RankResult rank_scores(const Tensor& scores, const Tensor& users, const Tensor& offset, const Tensor& indptr,
                       const Tensor& indices, std::optional<Tensor> excluded_indptr,
                       std::optional<Tensor> excluded_indices, int64_t k) {
  ZX_CHECK(scores.dim() == 2 && scores.size(0) == users.size(0), "scores must have one row a user");
  return dispatch_floating(scores.scalar_type(), [&](auto type) {
    using In = decltype(type);
    using T = compute_t<In>;
    return with_problem<T>(
        users, offset, indptr, indices, excluded_indptr, excluded_indices, scores.size(1), k, [&](const auto& p) {
          GivenScores<T, In> source{data<In>(scores), scores.stride(0), scores.stride(1), scores.size(1)};
          return rank_all(p, source);
        });
  });
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("rank_factors", TORCH_BOX(&zx::cpu::rank_factors));
  m.impl("rank_scores", TORCH_BOX(&zx::cpu::rank_scores));
}
