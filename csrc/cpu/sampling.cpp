// Sampling on the CPU. What a sample is, is defined in csrc/common/sampler.h; here the same integers are computed for
// 128 samples at a time: the random bits in SIMD lanes, membership by one load from the row filter, and only the
// samples that a filter leaves open by a search in the row. The samples that were refused go on together to their next
// try.
#include "cpu/sampling.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "common/sampler.h"
#include "cpu/parallel.h"
#include "cpu/philox_lanes.h"
#include "cpu/ranges.h"
#include "cpu/simd.h"

namespace zx::cpu {
namespace {

constexpr const char* kUnsound =
    "indptr does not ascend from 0 to at most the number of indices, or indices are out of range";

constexpr int kLanes = 128;
constexpr int64_t kRowsPerTask = 4096;

// ---- Random bits of many samples ------------------------------------------------------------------------------------

// draws() of sample[0 .. n), where the arrays have room for kLanes.
template <int kBytes>
ZX_HD void draw_lanes(SampleKey key, const uint64_t* sample, int n, Stream stream, uint32_t j, uint32_t attempt,
                      uint64_t* first, uint64_t* second) {
  const uint64_t purpose = static_cast<uint32_t>(stream) << 24 | j << 8 | attempt;
  philox_draws<kBytes>(key, sample, 1, &purpose, 0, n, first, second);
}

constexpr int64_t kSmallBound = int64_t{1} << 32;

// ---- Negatives ------------------------------------------------------------------------------------------------------

template <class Items, class Index>
struct NegativeProblem {
  Items items;
  SampleKey key;
  int64_t num_users, num_entries, k, offset;
  bool replacement;
  const int64_t* users;
  const int64_t* numbers;  // of the samples; nullptr: they are offset, offset + 1, ...
  const int64_t* indptr;
  const Index* indices;
  const uint16_t* filter;  // or nullptr
  ComplementSums complements;
  int64_t* out;  // [rows, k]
};

// Items of many draws, in arrays with room for kLanes. The generic form is scalar; the uniform one is SIMD code.
template <int kBytes, class Items>
ZX_HD void item_lanes(const Items& items, const uint64_t* draw, int n, uint64_t* item) {
  for (int i = 0; i < n; ++i) item[i] = static_cast<uint64_t>(items.item(draw[i]));
}
template <int kBytes>
ZX_HD void item_lanes(const UniformItems& items, const uint64_t* draw, int n, uint64_t* item) {
  using L = Longs<kBytes>;
  if (items.num_items >= kSmallBound) {
    for (int i = 0; i < n; ++i) item[i] = static_cast<uint64_t>(items.item(draw[i]));
    return;
  }
  const typename L::Vector bound = typename L::Vector{} + static_cast<uint64_t>(items.num_items);
  for (int i = 0; i < n; i += L::kWidth) {
    typename L::Vector v;
    L::load(v, draw + i);
    L::multiply_high(v, v, bound);
    L::store(item + i, v);
  }
}

// filter_bit of items of a hashed filter, which begin at `item`.
template <int kBytes>
ZX_HD void hashed_bits(const uint64_t* item, const typename Longs<kBytes>::Vector& range,
                       typename Longs<kBytes>::Vector& bit) {
  using L = Longs<kBytes>;
  L::load(bit, item);
  L::multiply(bit, bit, typename L::Vector{} + kFilterFactor);
  L::multiply(bit, bit, range);
  bit >>= 32;
}

// Where in the filter the items' bits are, as filter_bit says: word[i] from begin[i] on, and the bit in it.
template <int kBytes>
ZX_HD void filter_lanes(const int64_t* begin, const uint64_t* range, const uint64_t* item, int n, uint64_t* word,
                        uint64_t* bit) {
  using L = Longs<kBytes>;
  using Vector = typename L::Vector;
  for (int i = 0; i < n; i += L::kWidth) {
    Vector id, r, from, position;
    L::load(id, item + i);
    L::load(r, range + i);
    L::load(from, reinterpret_cast<const uint64_t*>(begin) + i);
    hashed_bits<kBytes>(item + i, r, position);
    const Vector exact = (Vector)(r == 0);
    position = (id & exact) | (position & ~exact);
    L::store(word + i, from + (position >> 4));
    L::store(bit + i, position & 15);
  }
}

// The rows of up to kLanes users.
struct RowLanes {
  int64_t begin[kLanes], count[kLanes];
  uint64_t range[kLanes];  // bits of a hashed filter; 0 for an exact one
  uint64_t sample[kLanes];
};

// Those that still lack an item, closed up.
struct OpenLanes : RowLanes {
  int lane[kLanes];
  uint64_t second[kLanes];  // draws that have not been looked at

  // Lane `at` of `from`, which is number `number` of all, becomes lane `to`.
  ZX_HD void take(const RowLanes& from, int at, int number, uint64_t draw, int to) {
    begin[to] = from.begin[at], count[to] = from.count[at], range[to] = from.range[at];
    sample[to] = from.sample[at], lane[to] = number, second[to] = draw;
  }
};

// Brings n numbers, of many only the first, on their way to the cache.
template <class T>
ZX_HD void fetch_row(const T* row, int64_t n) {
  constexpr int64_t kMostBytes = 512;
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < std::min(n * static_cast<int64_t>(sizeof(T)), kMostBytes); at += 64)
    __builtin_prefetch(bytes + at);
}

// Draws negative j of rows [row, row + n).
template <class Items, class Index>
struct NegativeLanes {
  static constexpr uint64_t kTaken = 2;  // by a draw of the same sample, without replacement

  template <int kBytes>
  ZX_HD static void run(const NegativeProblem<Items, Index>& p, const RowLanes& rows, int n, uint32_t j, int64_t* out) {
    const int64_t num_items = p.items.num_items;
    OpenLanes lanes;
    int64_t most = 0;
    for (int i = 0; i < n; ++i) most = std::max(most, rows.count[i]);
    uint64_t first[kLanes];
    uint32_t attempt = 0;
    int open = 0;
    if (draws_by_rejection(most, num_items)) {
      uint64_t second[kLanes];
      const int* all = nullptr;
      draw_lanes<kBytes>(p.key, rows.sample, n, Items::kStream, j, attempt++, first, second);
      open = try_items<kBytes>(p, rows, all, second, n, first, j, lanes, out);
      if (open > 0) open = try_items<kBytes>(p, lanes, lanes.lane, lanes.second, open, lanes.second, j, lanes, out);
    } else {
      for (int i = 0; i < n; ++i) {
        const bool drawn = draws_by_rejection(rows.count[i], num_items);
        lanes.take(rows, i, i, 0, open);
        open += drawn;
        if (!drawn) exhaust(p, rows, i, j, out);
      }
    }
    for (; attempt < kRejectionBlocks && open > 0; ++attempt) {
      draw_lanes<kBytes>(p.key, lanes.sample, open, Items::kStream, j, attempt, first, lanes.second);
      open = try_items<kBytes>(p, lanes, lanes.lane, lanes.second, open, first, j, lanes, out);
      if (open > 0) open = try_items<kBytes>(p, lanes, lanes.lane, lanes.second, open, lanes.second, j, lanes, out);
    }
    for (int t = 0; t < open; ++t) exhaust(p, rows, lanes.lane[t], j, out);
  }

  // Gives each of `open` lanes the item of its draw; returns how many were refused, which `left` then has, with their
  // second draws. (That may be what they come from.) lane: their numbers; nullptr: all lanes, in their order.
  template <int kBytes>
  ZX_HD static int try_items(const NegativeProblem<Items, Index>& p, const RowLanes& from, const int* lane,
                             const uint64_t* second, int open, const uint64_t* draw, uint32_t j, OpenLanes& left,
                             int64_t* out) {
    // One load from the filter for each lane. A clear bit settles it; of the others, those with an exact filter are
    // refused and those with a hashed one are looked up in the row.
    uint64_t item[kLanes], word[kLanes], bit[kLanes];
    item_lanes<kBytes>(p.items, draw, open, item);
    filter_lanes<kBytes>(from.begin, from.range, item, open, word, bit);
    for (int t = 0; t < open; ++t) word[t] = p.filter[word[t]];
    for (int t = 0; t < open; ++t) word[t] = (word[t] >> bit[t]) & 1;
    if (!p.replacement && j > 0)
      for (int t = 0; t < open; ++t)
        if (is_among(out + (lane != nullptr ? lane[t] : t) * p.k, j, static_cast<int64_t>(item[t]))) word[t] = kTaken;
    if (lane != nullptr)
      for (int t = 0; t < open; ++t) out[lane[t] * p.k + j] = static_cast<int64_t>(item[t]);
    else if (p.k == 1)
      for (int t = 0; t < open; ++t) out[t] = static_cast<int64_t>(item[t]);
    else
      for (int t = 0; t < open; ++t) out[t * p.k + j] = static_cast<int64_t>(item[t]);
    int hit[kLanes], doubtful[kLanes], hits = 0, doubts = 0, refused = 0;
    for (int t = 0; t < open; ++t) {
      hit[hits] = t;
      hits += word[t] != 0;
    }
    for (int h = 0; h < hits; ++h) {
      doubtful[doubts] = hit[h];
      doubts += word[hit[h]] != kTaken && from.range[hit[h]] != 0;
    }
    if (doubts > 0) look_up(p, from, item, doubtful, doubts, word);
    for (int h = 0; h < hits; ++h) {
      const int t = hit[h];
      left.take(from, t, lane != nullptr ? lane[t] : t, second[t], refused);
      refused += word[t] != 0;
    }
    return refused;
  }

  // Whether the rows of those lanes hold their items. All binary searches go on step by step together: each step of one
  // waits for memory, and nothing but the number of steps is a branch.
  ZX_HD static void look_up(const NegativeProblem<Items, Index>& p, const RowLanes& rows, const uint64_t* item,
                            const int* doubtful, int n, uint64_t* held) {
    int64_t base[kLanes], size[kLanes], wanted[kLanes], longest = 0;
    for (int d = 0; d < n; ++d) {
      const int t = doubtful[d];
      const bool empty = rows.count[t] == 0;  // such a row has no bit of its own, and no item to be compared with
      base[d] = empty ? 0 : rows.begin[t], size[d] = std::max<int64_t>(1, rows.count[t]);
      wanted[d] = empty ? -1 : static_cast<int64_t>(item[t]);
      longest = std::max(longest, size[d]);
      fetch_row(p.indices + base[d], size[d]);
    }
    for (; longest > 1; longest -= longest >> 1)
      for (int d = 0; d < n; ++d) {  // the item is at base .. base + size, if anywhere
        const int64_t half = size[d] >> 1;
        base[d] += static_cast<int64_t>(p.indices[base[d] + half]) <= wanted[d] ? half : 0;
        size[d] -= half;
      }
    for (int d = 0; d < n; ++d) held[doubtful[d]] = static_cast<int64_t>(p.indices[base[d]]) == wanted[d];
  }

  ZX_HD static void exhaust(const NegativeProblem<Items, Index>& p, const RowLanes& rows, int i, uint32_t j,
                            int64_t* out) {
    out[i * p.k + j] =
        complement(p, Row<Index>{p.indices + rows.begin[i], rows.count[i]}, rows.sample[i], j, out + i * p.k);
  }

  // Rare or long: kept out of the loop's code.
  __attribute__((noinline)) static int64_t complement(const NegativeProblem<Items, Index>& p, Row<Index> row,
                                                      uint64_t sample, uint32_t j, const int64_t* previous) {
    const uint32_t num_previous = p.replacement ? 0 : j;
    if constexpr (!std::is_same_v<Items, UniformItems>)
      if (const int64_t* sums = p.complements.find(row.items - p.indices, row.count))
        return draw_from_complement(SummedItems<Items>(p.items, sums), row, p.key, sample, j, previous, num_previous);
    return draw_from_complement(p.items, row, p.key, sample, j, previous, num_previous);
  }
};

// Many negatives of one row, with replacement: lanes are these, so that the row's filter stays in the cache and items
// are written side by side.
template <class Items, class Index>
struct ManyNegatives {
  static constexpr int64_t kLeast = 16;  // negatives that are worth it

  // Of the row (users' `row`, of sample number `sample`) those numbered [0, k), of which the filter is a bitmap or, if
  // there is a range, hashed. (Of an empty row it is not asked for.)
  template <int kBytes>
  ZX_HD static void run(const NegativeProblem<Items, Index>& p, Row<Index> row, const uint16_t* filter, uint64_t sample,
                        int64_t* out) {
    const uint64_t range = filter_range(row.count, p.items.num_items);
    const bool drawn = draws_by_rejection(row.count, p.items.num_items);
    for (int64_t from = 0; from < p.k; from += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, p.k - from));
      int lane[kLanes], open = n;
      uint64_t first[kLanes], second[kLanes];
      for (int i = 0; i < n; ++i) lane[i] = i;
      for (uint32_t attempt = 0; attempt < kRejectionBlocks && open > 0 && drawn; ++attempt) {
        draw<kBytes>(p.key, sample, static_cast<uint32_t>(from), lane, open, attempt, first, second);
        open = try_items<kBytes>(p, row, filter, range, first, open, n, lane, second, out + from);
        if (open > 0) open = try_items<kBytes>(p, row, filter, range, second, open, n, lane, second, out + from);
      }
      for (int t = 0; t < open; ++t)
        out[from + lane[t]] =
            NegativeLanes<Items, Index>::complement(p, row, sample, static_cast<uint32_t>(from + lane[t]), nullptr);
    }
  }

  // draws() of the sample's negatives from + lane[0 .. n).
  template <int kBytes>
  ZX_HD static void draw(SampleKey key, uint64_t sample, uint32_t from, const int* lane, int n, uint32_t attempt,
                         uint64_t* first, uint64_t* second) {
    uint64_t purpose[kLanes];
    const uint32_t stream = static_cast<uint32_t>(Items::kStream) << 24 | attempt;
    for (int i = 0; i < n; ++i) purpose[i] = stream | (from + static_cast<uint32_t>(lane[i])) << 8;
    philox_draws<kBytes>(key, &sample, 0, purpose, 1, n, first, second);
  }

  // Gives every open lane the item of its draw; returns how many the row has, and closes these up, with their second
  // draws.
  template <int kBytes>
  ZX_HD static int try_items(const NegativeProblem<Items, Index>& p, Row<Index> row, const uint16_t* filter,
                             uint64_t range, const uint64_t* draw, int open, int n, int* lane, uint64_t* second,
                             int64_t* out) {
    uint64_t item[kLanes], word[kLanes];
    item_lanes<kBytes>(p.items, draw, open, item);
    if (open == n)
      for (int t = 0; t < n; ++t) out[t] = static_cast<int64_t>(item[t]);
    else
      for (int t = 0; t < open; ++t) out[lane[t]] = static_cast<int64_t>(item[t]);
    if (row.count == 0) return 0;
    if (range == 0)
      for (int t = 0; t < open; ++t) word[t] = item[t];
    else
      for (int t = 0; t < open; t += Longs<kBytes>::kWidth) {
        typename Longs<kBytes>::Vector bit;
        hashed_bits<kBytes>(item + t, typename Longs<kBytes>::Vector{} + range, bit);
        Longs<kBytes>::store(word + t, bit);
      }
    for (int t = 0; t < open; ++t) word[t] = static_cast<uint64_t>(filter[word[t] >> 4]) >> (word[t] & 15) & 1;
    int hit[kLanes], hits = 0, left = 0;
    for (int t = 0; t < open; ++t) {
      hit[hits] = t;
      hits += word[t] != 0;
    }
    if (range != 0) look_up(row, item, hit, hits, word);
    for (int h = 0; h < hits; ++h) {
      const int t = hit[h];
      lane[left] = lane[t], second[left] = second[t];
      left += word[t] != 0;
    }
    return left;
  }

  // Whether the row, which is not empty, holds those items. All binary searches go on together: a step of one waits for
  // the one before it.
  ZX_HD static void look_up(Row<Index> row, const uint64_t* item, const int* hit, int hits, uint64_t* held) {
    int64_t base[kLanes], size = row.count;
    for (int h = 0; h < hits; ++h) base[h] = 0;
    for (; size > 1; size -= size >> 1)
      for (int h = 0; h < hits; ++h) {
        const int64_t half = size >> 1;
        base[h] += static_cast<int64_t>(row.items[base[h] + half]) <= static_cast<int64_t>(item[hit[h]]) ? half : 0;
      }
    for (int h = 0; h < hits; ++h)
      held[hit[h]] = static_cast<int64_t>(row.items[base[h]]) == static_cast<int64_t>(item[hit[h]]);
  }
};

// Rows [begin, end). Returns the first row whose user is out of range or has no such negative, or whose row of the
// matrix is none, or kNoneFailed.
template <class Items, class Index>
struct NegativeRows {
  template <int kBytes>
  ZX_HD static int64_t run(const NegativeProblem<Items, Index>* problem, int64_t begin, int64_t end) {
    const NegativeProblem<Items, Index>& p = *problem;
    int64_t failed = kNoneFailed;
    for (int64_t row = begin; row < end; row += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, end - row));
      const int64_t* users = p.users + row;
      // The next block's rows are on their way while this one is drawn. (Where there are none nothing is fetched.)
      const int ahead = static_cast<int>(std::min<int64_t>(kLanes, end - row - n));
      for (int i = 0; i < ahead; ++i)
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p.indptr) +
                                                         static_cast<uintptr_t>(users[n + i]) * sizeof(int64_t)));
      RowLanes rows;
      bool valid = AllBelow<int64_t>::run(users, n, p.num_users);
      if (valid) {
        int64_t last[kLanes];
        uint64_t unsound = 0;  // (whose highest bit tells)
        for (int i = 0; i < n; ++i) rows.begin[i] = p.indptr[users[i]], last[i] = p.indptr[users[i] + 1];
        for (int i = 0; i < n; ++i) {
          const uint64_t first = static_cast<uint64_t>(rows.begin[i]), end_of_row = static_cast<uint64_t>(last[i]);
          rows.count[i] = static_cast<int64_t>(end_of_row - first);
          unsound |= first | end_of_row | (end_of_row - first) | (static_cast<uint64_t>(p.num_entries) - end_of_row);
        }
        valid = static_cast<int64_t>(unsound) >= 0;
      }
      if (!valid)  // rows that do not exist are drawn for like those of users without items, and -1 follows afterwards
        for (int i = 0; i < n; ++i) {
          const bool known = has_row(p, users[i]);
          rows.begin[i] = known ? p.indptr[users[i]] : 0;
          rows.count[i] = known ? p.indptr[users[i] + 1] - rows.begin[i] : 0;
        }
      int64_t* out = p.out + row * p.k;
      for (int i = 0; i < n; ++i) {
        const int64_t at = p.offset + row + i;
        rows.sample[i] = static_cast<uint64_t>(p.numbers != nullptr ? p.numbers[at] : at);
      }
      // (Where the matrix is empty there is no filter, and nothing to ask it for.)
      if ((p.filter != nullptr || p.num_entries == 0) && p.replacement && p.k >= ManyNegatives<Items, Index>::kLeast) {
        for (int i = 0; i < n; ++i) {
          if (i + 1 < n && p.filter != nullptr) {
            fetch_row(p.filter + rows.begin[i + 1], rows.count[i + 1]);
            fetch_row(p.indices + rows.begin[i + 1], rows.count[i + 1]);
          }
          ManyNegatives<Items, Index>::template run<kBytes>(p, {p.indices + rows.begin[i], rows.count[i]},
                                                            p.filter != nullptr ? p.filter + rows.begin[i] : p.filter,
                                                            rows.sample[i], out + i * p.k);
        }
      } else if (p.filter != nullptr) {
        for (int i = 0; i < n; ++i) rows.range[i] = filter_range(rows.count[i], p.items.num_items);
        for (int64_t j = 0; j < p.k; ++j)
          NegativeLanes<Items, Index>::template run<kBytes>(p, rows, n, static_cast<uint32_t>(j), out);
      } else {
        for (int i = 0; i < n; ++i)
          one_by_one(p, {p.indices + rows.begin[i], rows.count[i]}, rows.sample[i], out + i * p.k);
      }
      if (!valid)
        for (int i = n - 1; i >= 0; --i)
          if (!has_row(p, users[i])) {
            std::fill_n(out + i * p.k, p.k, int64_t{-1});
            failed = std::min(failed, row + i);
          }
      // (-1, and what rows that are no rows of this catalogue lead to.)
      const uint64_t items = static_cast<uint64_t>(p.items.num_items);
      bool outside = false;
      for (int64_t i = 0; i < n * p.k; ++i) outside |= static_cast<uint64_t>(out[i]) >= items;
      if (outside)
        for (int64_t i = n * p.k - 1; i >= 0; --i)
          if (static_cast<uint64_t>(out[i]) >= items) out[i] = -1, failed = std::min(failed, row + i / p.k);
    }
    return failed;
  }

  ZX_HD static bool exists(const NegativeProblem<Items, Index>& p, int64_t user) {
    return static_cast<uint64_t>(user) < static_cast<uint64_t>(p.num_users);
  }

  // Whether the user exists and his row lies within the matrix.
  ZX_HD static bool has_row(const NegativeProblem<Items, Index>& p, int64_t user) {
    return exists(p, user) && is_row(p.indptr[user], p.indptr[user + 1], p.num_entries);
  }

  __attribute__((noinline)) static void one_by_one(const NegativeProblem<Items, Index>& p, Row<Index> row,
                                                   uint64_t sample, int64_t* out) {
    const RowMembership<Index> contains{row, nullptr, p.items.num_items};
    for (uint32_t j = 0; j < p.k; ++j) {
      int64_t item = -1;
      const bool drawn = draw_by_rejection(p.items, row, contains, p.key, sample, j, out, p.replacement ? 0 : j, item);
      out[j] = drawn ? item : NegativeLanes<Items, Index>::complement(p, row, sample, j, out);
    }
  }
};

// Seed, epoch and first sample number from a tensor that holds them.
void read_key(const Tensor& key, int64_t& seed, int64_t& epoch, int64_t& first) {
  ZX_CHECK(key.dim() == 1 && key.size(0) == 3 && key.scalar_type() == ScalarType::Long && key.is_contiguous(),
           "key must be a contiguous int64 vector of seed, epoch and offset");
  const int64_t* numbers = data<int64_t>(key);
  seed = numbers[0], epoch = numbers[1], first = numbers[2];
}

int64_t table_bits(const Tensor& table) {
  int64_t bits = 0;
  while ((int64_t{1} << bits) < table.size(0)) ++bits;
  return bits;
}

}  // namespace

DrawNegatives draw_negatives(const Tensor& indptr, const Tensor& indices, const std::optional<Tensor>& filter,
                             const std::optional<Tensor>& slots, const std::optional<Tensor>& masses, int64_t num_items,
                             int64_t k, int64_t seed, int64_t epoch, bool replacement, const int64_t* numbers,
                             const ComplementSums& complements) {
  check_negatives(indptr, indices, filter, slots, masses, num_items, k);
  return dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    const auto drawer = [&](auto items) -> DrawNegatives {
      NegativeProblem<decltype(items), Index> p{};
      p.items = items, p.key = make_key(static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch));
      p.num_users = indptr.size(0) - 1, p.num_entries = indices.size(0), p.k = k, p.replacement = replacement;
      p.numbers = numbers, p.indptr = data<int64_t>(indptr), p.indices = data<Index>(indices);
      p.complements = complements;
      if (p.num_entries > 0) p.filter = data_or_null<uint16_t>(filter);  // (else it must not be believed: no row is)
      return [p](int64_t first, int64_t rows, const int64_t* users, int64_t* out) {
        auto task = p;
        task.offset = first, task.users = users, task.out = out;
        return simd<NegativeRows<decltype(items), Index>>(
            static_cast<const NegativeProblem<decltype(items), Index>*>(&task), int64_t{0}, rows);
      };
    };
    if (slots)
      return drawer(
          AliasItems{num_items, data<uint64_t>(*slots), static_cast<int>(table_bits(*slots)), data<int64_t>(*masses)});
    if (masses) return drawer(CandidateItems{num_items, data<int64_t>(*masses), masses->size(0)});
    return drawer(UniformItems{num_items});
  });
}

namespace {

std::tuple<Tensor, Tensor> draw_all(const Tensor& users, int64_t offset, int64_t k, const DrawNegatives& draw) {
  const int64_t rows = users.size(0);
  Tensor out = new_tensor(users, {rows, k}, ScalarType::Long);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  std::atomic<int64_t> first_failed{kNoneFailed};
  const int64_t rows_per_task = std::max<int64_t>(kLanes, kRowsPerTask / std::max<int64_t>(k, 1) / kLanes * kLanes);
  for_each_block((rows + rows_per_task - 1) / rows_per_task, 1, [&](int64_t task) {
    const int64_t begin = task * rows_per_task, n = std::min(rows - begin, rows_per_task);
    const int64_t row = draw(offset + begin, n, data<int64_t>(users) + begin, data<int64_t>(out) + begin * k);
    if (row == kNoneFailed) return;
    int64_t seen = first_failed.load();
    while (begin + row < seen && !first_failed.compare_exchange_weak(seen, begin + row)) {
    }
  });
  const int64_t row = first_failed.load();
  *data<int64_t>(failed) = row == kNoneFailed ? -1 : row;
  return {out, failed};
}

void check_users(const Tensor& users) {
  ZX_CHECK(users.dim() == 1 && users.scalar_type() == ScalarType::Long && users.is_contiguous(),
           "users must be a contiguous int64 vector");
}

}  // namespace

std::tuple<Tensor, Tensor> sample_negatives(const Tensor& users, const Tensor& indptr, const Tensor& indices,
                                            std::optional<Tensor> filter, std::optional<Tensor> slots,
                                            std::optional<Tensor> masses, int64_t num_items, int64_t k, int64_t seed,
                                            int64_t epoch, int64_t offset, bool replacement, std::optional<Tensor> key,
                                            std::optional<Tensor> complement_rows,
                                            std::optional<Tensor> complement_masses) {
  if (key) read_key(*key, seed, epoch, offset);
  check_users(users);
  return draw_all(users, offset, k,
                  draw_negatives(indptr, indices, filter, slots, masses, num_items, k, seed, epoch, replacement,
                                 nullptr, complement_sums(complement_rows, complement_masses, masses)));
}

std::tuple<Tensor, Tensor> sample_negatives_at(const Tensor& users, const Tensor& numbers, const Tensor& indptr,
                                               const Tensor& indices, std::optional<Tensor> filter,
                                               std::optional<Tensor> slots, std::optional<Tensor> masses,
                                               int64_t num_items, int64_t k, int64_t seed, int64_t epoch,
                                               bool replacement, std::optional<Tensor> key,
                                               std::optional<Tensor> complement_rows,
                                               std::optional<Tensor> complement_masses) {
  int64_t offset = 0;
  if (key) read_key(*key, seed, epoch, offset);
  check_users(users);
  ZX_CHECK(numbers.dim() == 1 && numbers.scalar_type() == ScalarType::Long && numbers.is_contiguous() &&
               numbers.size(0) == users.size(0),
           "numbers must be a contiguous int64 vector as long as users");
  return draw_all(users, 0, k,
                  draw_negatives(indptr, indices, filter, slots, masses, num_items, k, seed, epoch, replacement,
                                 data<int64_t>(numbers), complement_sums(complement_rows, complement_masses, masses)));
}

// ---- The epoch's order, backwards -----------------------------------------------------------------------------------

Tensor unshuffle(const Tensor& cells, int64_t total, int64_t seed, int64_t epoch, std::optional<Tensor> key) {
  int64_t offset = 0;
  if (key) read_key(*key, seed, epoch, offset);
  ZX_CHECK(cells.dim() == 1 && cells.scalar_type() == ScalarType::Long && cells.is_contiguous(),
           "cells must be a contiguous int64 vector");
  ZX_CHECK(total >= 0 && total < INT64_C(1) << 62, "total must be from 0 and below 2^62, but is ", total);
  Permutation permutation;
  make_permutation(make_key(static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch)), static_cast<uint64_t>(total),
                   permutation);
  const int64_t n = cells.size(0);
  Tensor out = new_tensor(cells, {n}, ScalarType::Long);
  const int64_t* cell = data<int64_t>(cells);
  int64_t* number = data<int64_t>(out);
  std::atomic<bool> sound{true};
  for_each_block((n + kRowsPerTask - 1) / kRowsPerTask, 1, [&](int64_t task) {
    for (int64_t i = task * kRowsPerTask; i < std::min(n, (task + 1) * kRowsPerTask); ++i) {
      if (!is_item(cell[i], total)) {
        sound = false;
        return;
      }
      number[i] = static_cast<int64_t>(unpermute(permutation, static_cast<uint64_t>(cell[i])));
    }
  });
  ZX_CHECK(sound, "cells must be from 0 and below total");
  return out;
}

// ---- The row filter -------------------------------------------------------------------------------------------------

Tensor row_filter(const Tensor& indptr, const Tensor& indices, int64_t num_items) {
  check_matrix(indptr, indices, "the matrix");
  ZX_CHECK(num_items >= 0, "num_items must not be negative, but is ", num_items);
  const int64_t num_users = indptr.size(0) - 1, entries = indices.size(0);
  std::atomic<bool> sound{true};
  Tensor filter = new_tensor(indptr, {indices.size(0) + 1}, ScalarType::Short);
  uint16_t* bits = data<uint16_t>(filter);
  bits[indices.size(0)] = 0;
  const int64_t* start = data<int64_t>(indptr);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    const Index* items = data<Index>(indices);
    for_each_block((num_users + kRowsPerTask - 1) / kRowsPerTask, 1, [&](int64_t task) {
      const int64_t last = std::min(num_users, (task + 1) * kRowsPerTask);
      for (int64_t u = task * kRowsPerTask; u < last; ++u) {
        if (!is_row(start[u], start[u + 1], entries)) {
          sound = false;
          return;
        }
        const int64_t begin = start[u], count = start[u + 1] - begin;
        std::fill_n(bits + begin, count, uint16_t{0});
        const uint64_t range = filter_range(count, num_items);
        for (int64_t e = begin; e < begin + count; ++e) {
          if (!is_item(static_cast<int64_t>(items[e]), num_items)) {
            sound = false;
            return;
          }
          const uint64_t bit = filter_bit(range, static_cast<int64_t>(items[e]));
          bits[begin + static_cast<int64_t>(bit >> 4)] |= static_cast<uint16_t>(1u << (bit & 15));
        }
      }
    });
  });
  ZX_CHECK(sound, kUnsound);
  return filter;
}

// ---- Membership -----------------------------------------------------------------------------------------------------

// result[r, c] = whether users[r] has items[c] (or items[r, c]).
Tensor has_items(const Tensor& users, const Tensor& items, const Tensor& indptr, const Tensor& indices,
                 std::optional<Tensor> filter, int64_t num_items) {
  ZX_CHECK(users.dim() == 1 && users.scalar_type() == ScalarType::Long && users.is_contiguous(),
           "users must be a contiguous int64 vector");
  ZX_CHECK((items.dim() == 1 || items.dim() == 2) && items.scalar_type() == ScalarType::Long && items.is_contiguous(),
           "items must be a contiguous int64 vector or matrix");
  const int64_t rows = users.size(0), columns = items.dim() == 2 ? items.size(1) : items.size(0);
  const int64_t stride = items.dim() == 2 ? columns : 0;
  ZX_CHECK(items.dim() == 1 || items.size(0) == rows, "items must have one row a user");
  check_negatives(indptr, indices, filter, std::nullopt, std::nullopt, num_items, 0);
  const int64_t num_users = indptr.size(0) - 1, entries = indices.size(0);
  std::atomic<bool> sound{true};
  Tensor result = new_tensor(users, {rows, columns}, ScalarType::Bool);
  bool* out = data<bool>(result);
  const int64_t* start = data<int64_t>(indptr);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    const int64_t per_task = std::max<int64_t>(1, kRowsPerTask / std::max<int64_t>(columns, 1));
    for_each_block((rows + per_task - 1) / per_task, 1, [&](int64_t task) {
      for (int64_t r = task * per_task; r < std::min(rows, (task + 1) * per_task); ++r) {
        const int64_t u = data<int64_t>(users)[r];
        if (!is_item(u, num_users) || !is_row(start[u], start[u + 1], entries)) {
          sound = false;
          return;
        }
        const int64_t begin = start[u];
        const RowMembership<Index> contains{{data<Index>(indices) + begin, start[u + 1] - begin},
                                            filter ? data<uint16_t>(*filter) + begin : nullptr,
                                            num_items};
        const int64_t* item = data<int64_t>(items) + r * stride;
        for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = is_item(item[c], num_items) && contains(item[c]);
      }
    });
  });
  ZX_CHECK(sound, "users are out of range, or ", kUnsound);
  return result;
}

namespace {

template <class Index>
struct HeldProblem {
  int64_t num_users, num_entries, num_items;
  const int64_t* indptr;
  const Index* indices;
  const uint16_t* filter;  // or nullptr
};

// A list of items that the rows of many users are compared with. An item's first place in the list, from 1, is marked
// in a table of all items; the places of one item are a chain.
struct HeldList {
  std::vector<uint16_t> marks, next;  // marks are zero between calls
  std::vector<uint32_t> word;         // of each item in an exact bitmap, and its bit there; filled up to whole words
  std::vector<uint16_t> bit;
  uint64_t places[65];  // of each mark, where the list has at most 64

  void resize(int64_t num_items, int64_t k) {
    const size_t padded = static_cast<size_t>((k + 63) / 64 * 64);
    if (static_cast<int64_t>(marks.size()) < num_items) marks.assign(static_cast<size_t>(num_items), 0);
    next.resize(static_cast<size_t>(k)), word.assign(padded, 0), bit.assign(padded, 0);
  }
};

// Where a row has an exact bitmap, the items' bits in it tell, unless the row is short beside the list. Other rows are
// looked through for items that are marked.
template <class Index>
struct HeldRows {
  static constexpr int64_t kLook = 2;   // bits that are looked at in the time of an entry of a row
  static constexpr int64_t kStep = 8;   // entries that are looked at together: mostly none is in the list
  static constexpr int64_t kRare = 2;   // a row that is expected to have fewer of the list's items than 1 / kRare
  static constexpr int64_t kAhead = 4;  // rows that are on their way to the cache
  static constexpr int64_t kFetchedBytes = 512;  // of each: the hardware fetches what follows

  ZX_HD static bool run(const HeldProblem<Index>* problem, int64_t rows, const int64_t* users, const int64_t* items,
                        int64_t k, uint64_t* held, HeldList* list) {
    const HeldProblem<Index>& p = *problem;
    const int64_t words = (k + 63) / 64;
    bool sound = true;
    for (int64_t r = 0; r < rows; ++r)
      sound &= is_item(users[r], p.num_users) && is_row(p.indptr[users[r]], p.indptr[users[r] + 1], p.num_entries);
    if (!sound) return false;
    uint16_t *marks = list->marks.data(), *next = list->next.data(), *bit = list->bit.data();
    uint32_t* word = list->word.data();
    list->places[0] = 0;
    for (int64_t j = k - 1; j >= 0; --j) {
      next[j] = marks[items[j]];
      marks[items[j]] = static_cast<uint16_t>(j + 1);
      if (words == 1) list->places[j + 1] = list->places[next[j]] | uint64_t{1} << j;
      word[j] = static_cast<uint32_t>(items[j] >> 4), bit[j] = static_cast<uint16_t>(1u << (items[j] & 15));
    }
    for (int64_t r = 0; r < rows && sound; ++r) {
      if (r + kAhead < rows) fetch(p, users[r + kAhead], k);
      const int64_t begin = p.indptr[users[r]], count = p.indptr[users[r] + 1] - begin;
      uint64_t* out = held + r * words;
      if (by_bits(p, count, k)) {
        for (int64_t w = 0; w < words; ++w) out[w] = bits(p.filter + begin, word + 64 * w, bit + 64 * w);
        continue;
      }
      const Index* row = p.indices + begin;
      for (int64_t w = 0; w < words; ++w) out[w] = 0;
      sound = AllBelow<Index>::run(row, count, p.num_items);
      if (sound && words == 1 && kRare * count * k > p.num_items)
        out[0] = all_places(row, count, marks, list->places);
      else if (sound)
        look_through(row, count, marks, next, out);
    }
    for (int64_t j = 0; j < k; ++j) marks[items[j]] = 0;
    return sound;
  }

  ZX_HD static bool by_bits(const HeldProblem<Index>& p, int64_t count, int64_t k) {
    return p.filter != nullptr && kLook * count > k && filter_range(count, p.num_items) == 0;
  }

  ZX_HD static void fetch(const HeldProblem<Index>& p, int64_t user, int64_t k) {
    const int64_t begin = p.indptr[user], count = p.indptr[user + 1] - begin;
    const bool by = by_bits(p, count, k);
    const char* from =
        by ? reinterpret_cast<const char*>(p.filter + begin) : reinterpret_cast<const char*>(p.indices + begin);
    const int64_t bytes = by ? p.num_items / 8 : count * static_cast<int64_t>(sizeof(Index));
    for (int64_t at = 0; at < std::min(bytes, kFetchedBytes); at += 64) __builtin_prefetch(from + at);
  }

  // Bit j of the result: whether bit[j] is set in filter[word[j]], for 64 of them. The loads are one by one; what
  // follows is SIMD code.
  ZX_HD static uint64_t bits(const uint16_t* filter, const uint32_t* word, const uint16_t* bit) {
    alignas(64) uint16_t loaded[64];
    alignas(64) uint8_t set[64];
#pragma GCC unroll 8
    for (int j = 0; j < 64; ++j) loaded[j] = filter[word[j]];
    for (int j = 0; j < 64; ++j) set[j] = (loaded[j] & bit[j]) != 0;
    uint64_t all = 0;
#pragma GCC unroll 8
    for (int j = 0; j < 64; j += 8) all |= low_bits(set + j) << j;
    return all;
  }

  // Eight bytes of 0 or 1 as the bits of one.
  ZX_HD static uint64_t low_bits(const uint8_t* bytes) {
    uint64_t all = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    std::memcpy(&all, bytes, sizeof all);  // the product has byte i's bit at place 56 + i, and no carries
    all = all * 0x0102040810204080u >> 56;
#else
    for (int i = 0; i < 8; ++i) all |= static_cast<uint64_t>(bytes[i]) << i;
#endif
    return all;
  }

  // Without branches: where several of a row's items are in the list, nobody can guess which.
  ZX_HD static uint64_t all_places(const Index* row, int64_t count, const uint16_t* marks, const uint64_t* places) {
    uint64_t all = 0, others = 0;
    int64_t e = 0;
    for (; e + 2 <= count; e += 2) all |= places[marks[row[e]]], others |= places[marks[row[e + 1]]];
    if (e < count) all |= places[marks[row[e]]];
    return all | others;
  }

  ZX_HD static void look_through(const Index* row, int64_t count, const uint16_t* marks, const uint16_t* next,
                                 uint64_t* out) {
    int64_t e = 0;
    for (; e + kStep <= count; e += kStep) {
      unsigned any = 0;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kStep; ++i) any |= marks[row[e + i]];
      if (any != 0) note(row + e, kStep, marks, next, out);
    }
    unsigned any = 0;
    for (int64_t i = e; i < count; ++i) any |= marks[row[i]];
    if (any != 0) note(row + e, count - e, marks, next, out);
  }

  // Rare: kept out of the loop's code.
  __attribute__((noinline)) static void note(const Index* row, int64_t n, const uint16_t* marks, const uint16_t* next,
                                             uint64_t* out) {
    for (int64_t i = 0; i < n; ++i)
      for (int place = marks[row[i]]; place != 0; place = next[place - 1])
        out[(place - 1) >> 6] |= 1ull << ((place - 1) & 63);
  }
};

}  // namespace

FindHeld find_held(const Tensor& indptr, const Tensor& indices, const std::optional<Tensor>& filter,
                   int64_t num_items) {
  check_negatives(indptr, indices, filter, std::nullopt, std::nullopt, num_items, 0);
  return dispatch_index(indices.scalar_type(), [&](auto index) -> FindHeld {
    using Index = decltype(index);
    HeldProblem<Index> p{indptr.size(0) - 1,    indices.size(0),      num_items,
                         data<int64_t>(indptr), data<Index>(indices), nullptr};
    if (p.num_entries > 0) p.filter = data_or_null<uint16_t>(filter);
    return [p](int64_t rows, const int64_t* users, const int64_t* items, int64_t k, uint64_t* held) {
      static thread_local HeldList list;
      list.resize(p.num_items, k);
      return simd<HeldRows<Index>>(static_cast<const HeldProblem<Index>*>(&p), rows, users, items, k, held, &list);
    };
  });
}

// ---- Positives ------------------------------------------------------------------------------------------------------

namespace {

enum class Order : int64_t { kSequential = 0, kShuffled = 1, kReplacement = 2, kUsers = 3 };

template <class Index>
struct PositiveProblem {
  SampleKey key;
  Order order;
  int64_t num_users, num_entries, offset, positives;
  int64_t kept;  // interactions of the users who take part
  const int64_t* indptr;
  const Index* indices;
  const int64_t* hint;
  int64_t hint_size;
  int shift;
  const int64_t* gap_start;
  const int64_t* gap_total;
  int64_t num_gaps;
  const int64_t* active;  // users who take part, for Order::kUsers
  int64_t num_active;
  Permutation permutation;  // for Order::kShuffled
  int64_t* out_users;
  int64_t* out_positives;  // [rows, positives]
};

template <class Index>
struct PositiveRows {
  // False if the matrix, hint, gaps and active contradict each other: nothing outside of them is read.
  template <int kBytes>
  ZX_HD static bool run(const PositiveProblem<Index>* problem, int64_t begin, int64_t end) {
    const PositiveProblem<Index>& p = *problem;
    int64_t edges[2][kLanes];  // of this block and of the next one, whose numbers are on their way meanwhile
    const bool ahead = p.order != Order::kUsers;
    if (ahead && begin < end) interactions<kBytes>(p, begin, lanes_from(begin, end), edges[0]);
    for (int64_t row = begin, turn = 0; row < end; row += kLanes, turn ^= 1) {
      const int n = lanes_from(row, end);
      uint64_t sample[kLanes], first[kLanes], second[kLanes];
      int64_t user[kLanes], *edge = edges[turn];
      for (int i = 0; i < n; ++i) sample[i] = static_cast<uint64_t>(p.offset + row + i);
      if (!ahead) {
        draw_lanes<kBytes>(p.key, sample, n, Stream::kReplacementPositive, 0, 0, first, second);
        for (int i = 0; i < n; ++i) user[i] = p.active[mulhi64(first[i], static_cast<uint64_t>(p.num_active))];
        if (!AllBelow<int64_t>::run(user, n, p.num_users)) return false;
        for (int i = 0; i < n; ++i) {
          const int64_t start = p.indptr[user[i]], count = p.indptr[user[i] + 1] - start;
          edge[i] = start + static_cast<int64_t>(mulhi64(second[i], static_cast<uint64_t>(count)));
        }
      } else {
        if (row + n < end) {
          const int more = lanes_from(row + n, end);
          interactions<kBytes>(p, row + n, more, edges[turn ^ 1]);
          if (AllBelow<int64_t>::run(edges[turn ^ 1], more, p.num_entries)) fetch(p, edges[turn ^ 1], more);
        }
        if (!AllBelow<int64_t>::run(edge, n, p.num_entries) || !find_owners(p, edge, n, user)) return false;
      }
      if (!AllBelow<int64_t>::run(edge, n, p.num_entries)) return false;
      for (int i = 0; i < n; ++i) p.out_users[row + i] = user[i];
      int64_t* out = p.out_positives + row * p.positives;
      for (int i = 0; i < n; ++i) out[i * p.positives] = static_cast<int64_t>(p.indices[edge[i]]);
      if (p.positives == 2) {
        draw_lanes<kBytes>(p.key, sample, n, Stream::kSecondPositive, 0, 0, first, second);
        bool sound = true;
        for (int i = 0; i < n; ++i) sound &= is_row(p.indptr[user[i]], p.indptr[user[i] + 1], p.num_entries);
        if (!sound) return false;
        for (int i = 0; i < n; ++i) {
          const int64_t start = p.indptr[user[i]], count = p.indptr[user[i] + 1] - start;
          out[i * 2 + 1] = static_cast<int64_t>(p.indices[start + second_position(first[i], edge[i] - start, count)]);
        }
      }
    }
    return true;
  }

  ZX_HD static int lanes_from(int64_t row, int64_t end) {
    return static_cast<int>(std::min<int64_t>(kLanes, end - row));
  }

  // The interactions that samples row .. row + n are.
  template <int kBytes>
  ZX_HD static void interactions(const PositiveProblem<Index>& p, int64_t row, int n, int64_t* edge) {
    uint64_t sample[kLanes];
    for (int i = 0; i < n; ++i) sample[i] = static_cast<uint64_t>(p.offset + row + i);
    if (p.order == Order::kReplacement) {
      uint64_t first[kLanes], second[kLanes];
      draw_lanes<kBytes>(p.key, sample, n, Stream::kReplacementPositive, 0, 0, first, second);
      for (int i = 0; i < n; ++i) edge[i] = static_cast<int64_t>(mulhi64(first[i], static_cast<uint64_t>(p.kept)));
    } else {
      if (p.order == Order::kShuffled)
        shuffle(p.permutation, sample, n, edge);
      else
        for (int i = 0; i < n; ++i) edge[i] = static_cast<int64_t>(sample[i]);
      if (static_cast<int64_t>(p.permutation.size) > p.kept)
        for (int i = 0; i < n; ++i) edge[i] %= p.kept;  // several draws of each interaction
    }
    if (p.num_gaps > 0)
      for (int i = 0; i < n; ++i) edge[i] = kept_interaction(p.gap_start, p.gap_total, p.num_gaps, edge[i]);
  }

  // What find_owners, and the samples, read of each interaction.
  ZX_HD static void fetch(const PositiveProblem<Index>& p, const int64_t* edge, int n) {
    for (int i = 0; i < n; ++i) {
      __builtin_prefetch(p.indices + edge[i]);
      __builtin_prefetch(p.hint + std::min(edge[i] >> p.shift, p.hint_size - 1));
    }
  }

  // Consecutive samples are consecutive cells of the permutation's grid: no division for each of them.
  ZX_HD static void shuffle(const Permutation& permutation, const uint64_t* sample, int n, int64_t* edge) {
    const uint32_t columns = permutation.columns;
    if (columns < kLanes) {
      for (int i = 0; i < n; ++i) edge[i] = static_cast<int64_t>(permute(permutation, sample[i]));
      return;
    }
    const uint32_t row = static_cast<uint32_t>(sample[0] / columns);
    const uint32_t column = static_cast<uint32_t>(sample[0] % columns);
    uint32_t left[kLanes], right[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t c = column + static_cast<uint32_t>(i);
      left[i] = c >= columns ? row + 1 : row;
      right[i] = c >= columns ? c - columns : c;
    }
    for (int round = 0; round < permutation.rounds; round += 2) {
      const uint32_t key[4] = {permutation.key[2 * round], permutation.key[2 * round + 1],
                               permutation.key[2 * round + 2], permutation.key[2 * round + 3]};
      const uint32_t rows = permutation.rows;
      for (int i = 0; i < kLanes; ++i) left[i] = permutation_round(left[i], right[i], key, rows);
      for (int i = 0; i < kLanes; ++i) right[i] = permutation_round(right[i], left[i], key + 2, columns);
    }
    uint64_t beyond = 0;
    for (int i = 0; i < n; ++i) {
      const uint64_t cell = static_cast<uint64_t>(left[i]) * columns + right[i];
      edge[i] = static_cast<int64_t>(cell);
      beyond |= cell >= permutation.size;
    }
    if (beyond != 0)
      for (int i = 0; i < n; ++i)
        if (static_cast<uint64_t>(edge[i]) >= permutation.size)
          edge[i] = static_cast<int64_t>(permute(permutation, static_cast<uint64_t>(edge[i])));
  }

  ZX_HD static bool find_owners(const PositiveProblem<Index>& p, const int64_t* edge, int n, int64_t* user) {
    int64_t first[kLanes], last[kLanes], most = 0;
    for (int i = 0; i < n; ++i) most = std::max(most, edge[i]);
    if (most >> p.shift >= p.hint_size) return false;
    for (int i = 0; i < n; ++i) {
      const int64_t block = edge[i] >> p.shift;
      first[i] = p.hint[block];
      last[i] = block + 1 < p.hint_size ? p.hint[block + 1] : p.num_users - 1;
      __builtin_prefetch(p.indptr + first[i]);
    }
    if (!AllBelow<int64_t>::run(first, n, p.num_users) || !AllBelow<int64_t>::run(last, n, p.num_users)) return false;
    // Mostly the owner is among the next few users: counted without branches. Else what is left is searched.
    constexpr int kNear = 4;
    for (int i = 0; i < n; ++i) {
      int64_t passed = 0;
      for (int t = 1; t <= kNear; ++t) passed += p.indptr[std::min(first[i] + t, p.num_users)] <= edge[i];
      user[i] = first[i] + passed;
    }
    for (int i = 0; i < n; ++i)
      if (user[i] == first[i] + kNear) user[i] = owner_between(p.indptr, user[i], last[i], edge[i]);
    if (!AllBelow<int64_t>::run(user, n, p.num_users)) return false;
    bool owns = true;
    for (int i = 0; i < n; ++i) owns &= (p.indptr[user[i]] <= edge[i]) & (edge[i] < p.indptr[user[i] + 1]);
    return owns;
  }
};

}  // namespace

DrawPositives draw_positives(const Tensor& indptr, const Tensor& indices, const Tensor& hint, int64_t hint_shift,
                             const std::optional<Tensor>& gaps, const std::optional<Tensor>& active, int64_t order,
                             int64_t kept, int64_t total, int64_t positives, int64_t seed, int64_t epoch) {
  check_positives(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, positives);
  return dispatch_index(indices.scalar_type(), [&](auto index) -> DrawPositives {
    using Index = decltype(index);
    PositiveProblem<Index> p{};
    p.key = make_key(static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch));
    p.order = static_cast<Order>(order);
    p.num_users = indptr.size(0) - 1, p.num_entries = indices.size(0), p.positives = positives, p.kept = kept;
    p.indptr = data<int64_t>(indptr), p.indices = data<Index>(indices);
    p.hint = data<int64_t>(hint), p.hint_size = hint.size(0), p.shift = static_cast<int>(hint_shift);
    if (gaps) {
      p.num_gaps = gaps->size(1);
      p.gap_start = data<int64_t>(*gaps), p.gap_total = p.gap_start + p.num_gaps;
    }
    if (active) p.active = data<int64_t>(*active), p.num_active = active->size(0);
    make_permutation(p.key, static_cast<uint64_t>(total), p.permutation);
    return [p, total](int64_t first, int64_t rows, int64_t* users, int64_t* items) {
      check_samples(first, rows, total);
      PositiveProblem<Index> task = p;
      task.offset = first, task.out_users = users, task.out_positives = items;
      return simd<PositiveRows<Index>>(static_cast<const PositiveProblem<Index>*>(&task), int64_t{0}, rows);
    };
  });
}

std::tuple<Tensor, Tensor> sample_positives(const Tensor& indptr, const Tensor& indices, const Tensor& hint,
                                            int64_t hint_shift, std::optional<Tensor> gaps,
                                            std::optional<Tensor> active, int64_t order, int64_t kept, int64_t total,
                                            int64_t begin, int64_t rows, int64_t positives, int64_t seed, int64_t epoch,
                                            std::optional<Tensor> key) {
  if (key) read_key(*key, seed, epoch, begin);
  const DrawPositives draw =
      draw_positives(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, positives, seed, epoch);
  check_samples(begin, rows, total);
  std::atomic<bool> sound{true};
  Tensor users = new_tensor(indptr, {rows}, ScalarType::Long);
  Tensor items =
      positives == 2 ? new_tensor(indptr, {rows, 2}, ScalarType::Long) : new_tensor(indptr, {rows}, ScalarType::Long);
  for_each_block((rows + kRowsPerTask - 1) / kRowsPerTask, 1, [&](int64_t task) {
    const int64_t first = task * kRowsPerTask, n = std::min(rows - first, kRowsPerTask);
    if (!draw(begin + first, n, data<int64_t>(users) + first, data<int64_t>(items) + first * positives)) sound = false;
  });
  ZX_CHECK(sound, "hint, gaps or active do not belong to this matrix, or ", kUnsound);
  return {users, items};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("sample_negatives", ZX_BOX(&zx::cpu::sample_negatives));
  m.impl("sample_negatives_at", ZX_BOX(&zx::cpu::sample_negatives_at));
  m.impl("sample_positives", ZX_BOX(&zx::cpu::sample_positives));
  m.impl("unshuffle", ZX_BOX(&zx::cpu::unshuffle));
  m.impl("row_filter", ZX_BOX(&zx::cpu::row_filter));
  m.impl("has_items", ZX_BOX(&zx::cpu::has_items));
}
