// Long lists on the GPU: the k-th best entry is found by its digits, and what is no worse is collected and sorted.
//
// A block takes a user. An entry is one number made of score and item (rank_row.cuh). One pass over the scores counts
// in a histogram which first digit of 11 bits the entries have; the digit in which the k-th entry lies is known then,
// and the next pass looks at the entries with this digit alone, by their second one. That ends where few enough entries
// are left that they fit into shared memory, or where all of them belong to the list. A last pass collects: surely
// chosen entries, and those that are left, of which the best fill what room there is. Of level scores the digits of the
// items' numbers decide, so ties have the order of all other lists.
//
// Excluded items are counted like any other, and taken off afterwards; only entries that are collected are looked up.
//
// Lists of up to kSelectBytes are sorted in shared memory. Longer ones lie where the result will be, 8 bytes a place,
// and are sorted there tile by tile: memory does not grow with k. The order of sorting is a bitonic network whose
// comparisons all point the same way (the first of each merge is a mirror), so that it needs no power of two.
#pragma once

#include <type_traits>

#include "cuda/rank_row.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kSelectThreads = 512;
constexpr int kSelectBits = 11;  // of a digit
constexpr int kSelectBins = 1 << kSelectBits;
constexpr int kSelectBytes = 32 << 10;  // of the entries that are sorted at once
constexpr int kItemBits = 32;

// ---- digits ---------------------------------------------------------------------------------------------------------

// The entries that begin with the same bits: of the score first, and once all of these are given, of ~item.
template <class T>
struct Prefix {
  using Bits = decltype(ordered_bits(T{}));
  static constexpr int kScoreBits = 8 * sizeof(Bits);

  Bits score;  // bits that are not given are 0
  unsigned item;
  int score_open, item_open;  // how many are not given

  // Of all entries of a catalogue; the bits that all its ~item have in common are given.
  static __device__ __forceinline__ Prefix all(unsigned num_items) {
    const int open = num_items > 1 ? kItemBits - __clz(static_cast<int>(num_items - 1)) : 1;
    return {0, open < kItemBits ? ~0u << open : 0, kScoreBits, open};
  }
  __device__ __forceinline__ bool holds(Bits s, unsigned i) const {
    if (score_open > 0) return (s ^ score) >> (score_open - 1) >> 1 == 0;
    return s == score && (~i ^ item) >> (item_open - 1) >> 1 == 0;
  }
  // Whether an entry is one of these, or better than all.
  __device__ __forceinline__ bool reaches(Bits s, unsigned i) const { return s > score || (s == score && ~i >= item); }
  __device__ __forceinline__ bool is_given() const { return score_open == 0 && item_open == 0; }
  __device__ __forceinline__ int width() const {
    const int open = score_open > 0 ? score_open : item_open;
    return open < kSelectBits ? open : kSelectBits;
  }
  // The first digit that is not given, of one of these.
  __device__ __forceinline__ unsigned digit(Bits s, unsigned i) const {
    const int w = width();
    const unsigned shifted = score_open > 0 ? static_cast<unsigned>(s >> (score_open - w)) : ~i >> (item_open - w);
    return shifted & ((1u << w) - 1);
  }
  __device__ __forceinline__ void give(unsigned digit) {
    const int w = width();
    if (score_open > 0)
      score_open -= w, score |= static_cast<Bits>(digit) << score_open;
    else
      item_open -= w, item |= digit << item_open;
  }
};

// What the threads of a block share beside bins and entries.
struct SelectShared {
  unsigned sums[kSelectThreads / kWarp];
  unsigned total;                 // of the bins
  unsigned digit, better, level;  // in which bin the list ends, and how many entries lie above it and in it
  unsigned chosen, held;          // entries that are collected
};

// ---- passes over a user's scores ------------------------------------------------------------------------------------

// Calls f(scores, item) for each turn of a warp: score number i of a lane is that of item(i), and NaN beyond the ends.
template <class S, class F>
__device__ __forceinline__ void each_score(const RankRow<S>& row, const F& f) {
  using T = arithmetic_t<S>;
  const Packs packs = row.user.packs;
  const S* const scores = row.scores();
  const unsigned lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (unsigned v = threadIdx.x / kWarp * (kWarp * kRankLoads); v < packs.count; v += kSelectThreads * kRankLoads) {
    T s[kRankLoads * kRankPack];
#pragma unroll
    for (int u = 0; u < kRankLoads; ++u)
      packs.load(scores, row.a.column_stride, row.num_items(), v + u * kWarp + lane, s + u * kRankPack);
    f(s, [&](int i) { return packs.item(v + i / kRankPack * kWarp + lane, i % kRankPack); });
  }
}

// No list has NaN or -inf.
template <class T>
__device__ __forceinline__ bool is_listed(T score) {
  return score > -static_cast<T>(INFINITY);
}

// Counts the candidates that begin with `prefix` by their next digit.
template <class S, class T>
__device__ __forceinline__ void count_digits(const RankRow<S>& row, const Prefix<T>& prefix, unsigned* bins) {
  for (int i = threadIdx.x; i < kSelectBins; i += kSelectThreads) bins[i] = 0;
  __syncthreads();
  each_score(row, [&](const auto& s, const auto& item) {
#pragma unroll
    for (int i = 0; i < kRankLoads * kRankPack; ++i) {
      const auto bits = ordered_bits(s[i]);
      // (The hardware adds up what lanes add to one bin.)
      if (is_listed(s[i]) && prefix.holds(bits, item(i))) atomicAdd(bins + prefix.digit(bits, item(i)), 1u);
    }
  });
  for (int64_t i = threadIdx.x; i < row.user.excluded.count; i += kSelectThreads) {
    const int64_t item = row.excluded(i);
    const T s = row.score(item);
    const auto bits = ordered_bits(s);
    const unsigned number = static_cast<unsigned>(item);
    if (is_listed(s) && prefix.holds(bits, number) && !row.is_positive(item))
      atomicSub(bins + prefix.digit(bits, number), 1u);
  }
  __syncthreads();
}

// Finds the bin in which entry `needed`, counted from the highest bin on, lies.
__device__ __forceinline__ void find_bin(const unsigned* bins, unsigned needed, SelectShared* shared) {
  constexpr int kOwn = kSelectBins / kSelectThreads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int top = kSelectBins - 1 - kOwn * static_cast<int>(threadIdx.x);  // of this thread's bins
  unsigned own = 0;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) own += bins[top - j];
  unsigned sum = own;  // of this thread's bins and of those above, within the warp
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned before = __shfl_up_sync(kFullWarp, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == kWarp - 1) shared->sums[warp] = sum;
  __syncthreads();
  unsigned above = sum - own;
  for (int w = 0; w < warp; ++w) above += shared->sums[w];
  if (threadIdx.x == kSelectThreads - 1) shared->total = above + own;
  if (above < needed && needed <= above + own) {
    int bin = top;
    for (; bin > top - kOwn + 1 && needed > above + bins[bin]; --bin) above += bins[bin];
    shared->digit = static_cast<unsigned>(bin), shared->better = above, shared->level = bins[bin];
  }
  __syncthreads();
}

// ---- sorting --------------------------------------------------------------------------------------------------------

// The lower place of pair p of a comparison at this distance; that of the other is higher.
template <class I>
__device__ __forceinline__ I lower_of(I p, I half) {
  return 2 * p - (p & (half - 1));
}

// The comparisons at distances within a warp, of one entry a lane; the first is with the lane `lane ^ mask`.
template <class E>
__device__ __forceinline__ E compare_lanes(E mine, int half, int mask) {
#pragma unroll 1
  for (; half > 0; half /= 2, mask = half) {
    const bool lower = (threadIdx.x & static_cast<unsigned>(half)) == 0;
    const E other = mine.across(mask);
    if ((mine > other) != lower) mine = other;
  }
  return mine;
}

// Compares at the given distance, and at all lesser ones, within a tile of n entries in shared memory: n is a power of
// two, kWarp at least. The first comparison is with i ^ mask.
template <class E>
__device__ __forceinline__ void compare_down(E* a, int n, int half, int mask) {
#pragma unroll 1
  for (; half >= kWarp; half /= 2, mask = half) {
#pragma unroll 1
    for (int p = threadIdx.x; p < n / 2; p += kSelectThreads) {
      const int i = lower_of(p, half), j = i ^ mask;
      const E lower = a[i], higher = a[j];
      if (higher > lower) a[i] = higher, a[j] = lower;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < n; i += kSelectThreads) a[i] = compare_lanes(a[i], half, mask);
  __syncthreads();
}

// Sorts a tile, the best entry first.
template <class E>
__device__ __forceinline__ void sort_tile(E* a, int n) {
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kSelectThreads) {
    E mine = a[i];
#pragma unroll 1
    for (int size = 2; size <= kWarp; size *= 2) mine = compare_lanes(mine, size / 2, size - 1);
    a[i] = mine;
  }
  __syncthreads();
#pragma unroll 1
  for (int size = 2 * kWarp; size <= n; size *= 2) compare_down(a, n, size / 2, size - 1);
}

// Entries in the memory of the result: as themselves where they fit into 8 bytes, else as ~item, whose score is looked
// up. 0 is no entry.
template <class S>
struct LongList {
  using T = arithmetic_t<S>;
  const RankRow<S>& row;
  unsigned long long* places;  // [k]

  __device__ __forceinline__ void put(int64_t i, const Entry<T>& e) const {
    if constexpr (std::is_same_v<T, float>)
      places[i] = e.key;
    else
      places[i] = e.low;
  }
  __device__ __forceinline__ Entry<T> get(int64_t i) const {
    const unsigned long long word = places[i];
    if constexpr (std::is_same_v<T, float>) return {word};
    const unsigned item = ~static_cast<unsigned>(word);
    return Entry<T>::of(row.score(item), item);
  }
  __device__ __forceinline__ void finish(int64_t i, const Entry<T>& e) const {
    places[i] = static_cast<unsigned long long>(e.is_none() ? int64_t{-1} : int64_t(e.item()));
  }

  // Tile by tile through shared memory: sorts, or compares at a tile's half and below; at last, items are written.
  __device__ __forceinline__ void tiles(Entry<T>* tile, int n, int64_t count, bool sort, bool last) const {
#pragma unroll 1
    for (int64_t first = 0; first < count; first += n) {
      const int64_t left = count - first;
      for (int i = threadIdx.x; i < n; i += kSelectThreads) tile[i] = i < left ? get(first + i) : Entry<T>::none();
      __syncthreads();
      if (sort)
        sort_tile(tile, n);
      else
        compare_down(tile, n, n / 2, n / 2);
      for (int i = threadIdx.x; i < n && i < left; i += kSelectThreads)
        if (last)
          finish(first + i, tile[i]);
        else
          put(first + i, tile[i]);
      __syncthreads();
    }
  }
  // One comparison of the network at a distance of a tile or more. What lies beyond the end would be none.
  __device__ __forceinline__ void compare_far(int64_t count, int64_t half, int64_t mask) const {
#pragma unroll 1
    for (int64_t p = threadIdx.x;; p += kSelectThreads) {
      const int64_t i = lower_of(p, half), j = i ^ mask;
      if (i >= count) break;
      if (j >= count) continue;
      const Entry<T> lower = get(i), higher = get(j);
      if (higher > lower) put(i, higher), put(j, lower);
    }
    __syncthreads();
  }
  __device__ __forceinline__ void sort(Entry<T>* tile, int n, int64_t count) const {
    tiles(tile, n, count, true, count <= n);
#pragma unroll 1
    for (int64_t size = 2 * int64_t{n}; size / 2 < count; size *= 2) {
      compare_far(count, size / 2, size - 1);
#pragma unroll 1
      for (int64_t half = size / 4; half >= n; half /= 2) compare_far(count, half, half);
      tiles(tile, n, count, false, size >= count);
    }
  }
};

// Entries that are held where the list ends: they take the place of the bins.
template <class T>
constexpr unsigned kHeld = kSelectBins * sizeof(unsigned) / sizeof(Entry<T>);

// ---- the kernel -----------------------------------------------------------------------------------------------------

// Gives those lanes that want one a place of their own, counted from `count` on.
__device__ __forceinline__ unsigned next_place(unsigned* count, bool wanted) {
  const unsigned votes = __ballot_sync(kFullWarp, wanted), lane = threadIdx.x % kWarp;
  unsigned start = 0;
  if (votes != 0 && lane == 0) start = atomicAdd(count, static_cast<unsigned>(__popc(votes)));
  return __shfl_sync(kFullWarp, start, 0) + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1)));
}

// Collects the candidates that reach `prefix`: those that begin with it into `held`, unless all of these are chosen.
// (Excluded rows that name an item twice take it off twice. The list is wrong then, but nothing is written beyond it.)
template <class S, class T>
__device__ __forceinline__ void collect(const RankRow<S>& row, const Prefix<T>& prefix, bool all_chosen,
                                        const LongList<S>& list, Entry<T>* tile, unsigned k, bool in_tile,
                                        Entry<T>* held, SelectShared* shared) {
  each_score(row, [&](const auto& s, const auto& item) {
    unsigned reaching = 0;
#pragma unroll
    for (int i = 0; i < kRankLoads * kRankPack; ++i)
      reaching |= static_cast<unsigned>(is_listed(s[i]) && prefix.reaches(ordered_bits(s[i]), item(i))) << i;
#pragma unroll 1
    for (; __any_sync(kFullWarp, reaching != 0); reaching &= reaching - 1) {
      const int i = reaching != 0 ? __ffs(static_cast<int>(reaching)) - 1 : 0;
      const unsigned number = item(i);
      Entry<T> e = Entry<T>::none();
      bool kept = false;
      if (reaching != 0 && row.is_candidate(number)) {
        const T score = row.score(number);  // (indexed registers would be local memory)
        e = Entry<T>::of(score, number);
        kept = !all_chosen && prefix.holds(ordered_bits(score), number);
      }
      const bool chosen = !e.is_none() && !kept;
      const unsigned place = next_place(&shared->chosen, chosen), place_held = next_place(&shared->held, kept);
      if (kept && place_held < kHeld<T>) held[place_held] = e;
      if (chosen && place < k && in_tile) tile[place] = e;
      if (chosen && place < k && !in_tile) list.put(place, e);
    }
  });
  __syncthreads();
}

// The best a.k candidates of a user. `bins` is memory for kSelectBins numbers; entries are held in it later.
template <class S, class T>
__device__ __forceinline__ void select_list(const RankRow<S>& row, unsigned* bins, Entry<T>* tile, int capacity,
                                            SelectShared* shared) {
  const unsigned k = static_cast<unsigned>(row.a.k < row.a.num_items ? row.a.k : row.a.num_items);
  Prefix<T> prefix = Prefix<T>::all(row.num_items());
  unsigned needed = k, level = ~0u;  // of the entries that begin with prefix: how many are chosen, how many there are
  bool all = false;                  // there are no more candidates than places
  while (k > 0 && !all && level > needed && level > kHeld<T> && !prefix.is_given()) {
    count_digits(row, prefix, bins);
    find_bin(bins, needed, shared);
    all = shared->total < needed;  // (only in the first turn)
    if (all) continue;
    prefix.give(shared->digit);
    needed -= shared->better, level = shared->level;
  }
  if (all || k == 0) prefix = {0, 0, Prefix<T>::kScoreBits, kItemBits};
  const bool all_chosen = all || level <= needed || prefix.is_given() || k == 0;
  Entry<T>* const held = reinterpret_cast<Entry<T>*>(bins);
  const LongList<S> list{row, reinterpret_cast<unsigned long long*>(row.a.top_items + row.user.number * row.a.k)};
  const bool in_tile = k <= static_cast<unsigned>(capacity);
  if (threadIdx.x == 0) shared->chosen = shared->held = 0;
  __syncthreads();
  collect(row, prefix, all_chosen, list, tile, k, in_tile, held, shared);
  unsigned count = shared->chosen < k ? shared->chosen : k;
  if (!all_chosen) {
    const unsigned found = shared->held < kHeld<T> ? shared->held : kHeld<T>;
    if (needed > found) needed = found;
    if (needed > k - count) needed = k - count;
    int n = kWarp;
    while (n < static_cast<int>(found)) n *= 2;
    for (int i = static_cast<int>(found + threadIdx.x); i < n; i += kSelectThreads) held[i] = Entry<T>::none();
    __syncthreads();
    sort_tile(held, n);
    for (unsigned i = threadIdx.x; i < needed; i += kSelectThreads)
      if (in_tile)
        tile[count + i] = held[i];
      else
        list.put(count + i, held[i]);
    count += needed;
  }
  if (in_tile) {
    for (int i = static_cast<int>(count + threadIdx.x); i < capacity; i += kSelectThreads) tile[i] = Entry<T>::none();
    __syncthreads();
    sort_tile(tile, capacity);
    for (unsigned i = threadIdx.x; i < count; i += kSelectThreads) list.finish(i, tile[i]);
  } else {
    __syncthreads();
    list.sort(tile, capacity, count);
  }
  for (int64_t i = count + threadIdx.x; i < row.a.k; i += kSelectThreads) list.finish(i, Entry<T>::none());
}

template <class S>
__global__ void __launch_bounds__(kSelectThreads, 2) rank_select_kernel(const RankArgs<S> a, int capacity) {
  using T = arithmetic_t<S>;
  GPU_SHARED(SelectShared, shared, 1);
  GPU_SHARED(RankUser, user, 1);
  GPU_SHARED_DYN(unsigned, bins);
  Entry<T>* const tile = reinterpret_cast<Entry<T>*>(bins + kSelectBins);
  const RankRow<S> row{a, user[0]};
  for (int64_t number = blockIdx.x; number < a.rows; number += gridDim.x) {
    __syncthreads();  // what is shared of the row before may still be read
    if (threadIdx.x == 0) describe_user(a, number, user[0]);
    __syncthreads();
    select_list(row, bins, tile, capacity, shared);
  }
}

// Entries that are sorted at once: all of a list, where they fit.
template <class T>
int select_capacity(int64_t k) {
  int capacity = kWarp;
  while (capacity < k && 2 * capacity * int64_t(sizeof(Entry<T>)) <= kSelectBytes) capacity *= 2;
  return capacity;
}

template <class S>
void rank_select(const RankArgs<S>& a, unsigned blocks, gpuStream stream) {
  using T = arithmetic_t<S>;
  const int capacity = select_capacity<T>(a.k < a.num_items ? a.k : a.num_items);
  const size_t shared = kSelectBins * sizeof(unsigned) + capacity * sizeof(Entry<T>);
  GPU_LAUNCH((rank_select_kernel<S>), blocks, kSelectThreads, shared, stream)(a, capacity);
}

}  // namespace GPU_NS
}  // namespace zx
