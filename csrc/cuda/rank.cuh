// Rankings of a catalogue on the GPU, over scores that a matrix product has left in memory: a block of threads takes a
// user and reads the scores once. Counts are integers and lists have a strict order (csrc/common/ranking.h), so the
// results do not depend on which thread saw what.
//
// Counts. Up to 8 held-out positives are compared with each score in registers. More are sorted in shared memory, at
// most kRankLevels in a pass; each score then searches its place and is counted in a histogram. Both count all items.
// What excluded items add is taken off afterwards: they are few, and no score has to be masked.
//
// Lists. `best` holds the best entries so far, sorted. A score that is no worse than the last of them is put into a
// queue. Once the queue is full, its entries that are no candidates are dropped, the others are sorted and merged into
// `best` (as FAISS' WarpSelect and RAFT's warpsort do). Excluded items so cost a search only where they score high.
// Lists of more than kRankList places are made by a kernel of their own (rank_select.cuh).
#pragma once

#include "cuda/rank_select.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kRankThreads = 256;
constexpr int64_t kRankBlocks = 1 << 16;  // at most: more users are walked in strides
constexpr int kRankRegisters = 8;         // positives that are counted in registers
constexpr int kRankLevels = 511;          // positives that one pass counts by search: a power of two less one
constexpr int kRankList = 512;            // places of a list; longer ones are selected (docs/cuda.md says why here)

static_assert(kRankPack * kRankLoads * kWarp <= kRankThreads,
              "an empty queue has room for what a warp finds in a turn");

// ---- the list -------------------------------------------------------------------------------------------------------

// Compares within a warp what a bitonic network compares at strides of 16 and less, for its sequences of the sizes
// first to last. `a` has a multiple of kRankThreads entries; a thread only touches those at its own places.
template <class E>
__device__ __forceinline__ void sort_within_warps(E* a, int n, int first, int last, bool ascending) {
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kRankThreads) {
    E mine = a[i];
#pragma unroll 1
    for (int size = first; size <= last; size *= 2)
#pragma unroll 1
      for (int stride = size < kWarp ? size / 2 : kWarp / 2; stride > 0; stride /= 2) {
        const E other = mine.across(stride);
        const bool lesser = ((i & stride) == 0) == (((i & size) == 0) == ascending);
        if ((mine > other) == lesser) mine = other;
      }
    a[i] = mine;
  }
}

// Makes each bitonic sequence of `size` entries a sorted one; those at odd places are sorted the other way round.
template <class E>
__device__ __forceinline__ void merge_bitonic(E* a, int n, int size, bool ascending) {
#pragma unroll 1
  for (int stride = size / 2; stride >= kWarp; stride /= 2) {
    __syncthreads();
#pragma unroll 1
    for (int p = threadIdx.x; p < n / 2; p += kRankThreads) {
      const int i = 2 * p - (p & (stride - 1));
      const E left = a[i], right = a[i + stride];
      if ((left > right) == (((i & size) == 0) == ascending)) a[i] = right, a[i + stride] = left;
    }
  }
  __syncthreads();
  sort_within_warps(a, n, size, size, ascending);
}

// What the threads of a block share beside the lists' entries.
struct RankShared {
  unsigned above[kRankRegisters], level[kRankRegisters];
  unsigned removed, queued;
  int length;  // of the list; 0: none is wanted, or no longer
};

// The list: `best`, sorted, and behind it the queue, `capacity` entries each.
template <class T>
struct RankList {
  Entry<T>* best;
  RankShared* shared;
  int capacity;

  __device__ __forceinline__ Entry<T>* queue() const { return best + capacity; }
  __device__ __forceinline__ int length() const { return shared->length; }
  __device__ __forceinline__ Entry<T> last() const { return best[shared->length - 1]; }
  // What a score has to reach. (No score is less than -inf: all are looked at until the list is full.)
  __device__ __forceinline__ T least() const {
    const T infinite = static_cast<T>(INFINITY);
    return length() == 0 ? infinite : last().is_none() ? -infinite : last().score();
  }
  __device__ __forceinline__ void clear() const {
    for (int i = threadIdx.x; i < capacity; i += kRankThreads) best[i] = Entry<T>::none();
  }
};

// Empties the queue into the list. All threads of the block must be here, and have met since the last entry was put.
template <class S, class T>
__device__ __forceinline__ void merge_queue(const RankRow<S>& row, const RankList<T>& list) {
  const int n = list.capacity;
  const unsigned count = list.shared->queued;
  if (count > 0) {
    for (int i = threadIdx.x; i < n; i += kRankThreads) {
      Entry<T> e = static_cast<unsigned>(i) < count ? list.queue()[i] : Entry<T>::none();
      if (!e.is_none() && !row.is_candidate(e.item())) e = Entry<T>::none();
      list.queue()[i] = e;
    }
    sort_within_warps(list.queue(), n, 2, kWarp, true);
#pragma unroll 1
    for (int size = 2 * kWarp; size <= n; size *= 2) merge_bitonic(list.queue(), n, size, true);
    for (int i = threadIdx.x; i < n; i += kRankThreads)
      if (list.queue()[i] > list.best[i]) list.best[i] = list.queue()[i];
    merge_bitonic(list.best, n, n, false);
    if (threadIdx.x == 0) list.shared->queued = 0;  // (all have read it: there were barriers)
  }
  __syncthreads();
}

// ---- counting -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned warp_sum(unsigned v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return warp_combine(v, kWarp, Add{});
#else
  return __reduce_add_sync(kFullWarp, v);
#endif
}

// Goes on through the packs from v on, a warp's turn each: add() counts its scores. Stops at the first turn with scores
// that may belong into the list, or may be NaN; returns their bits. At the end it returns 0, and v lies beyond.
template <class S, class T, class Count>
__device__ __forceinline__ unsigned scan_on(const RankRow<S>& row, T least, unsigned& v, const Count& add) {
  const Packs packs = row.user.packs;
  const S* const scores = row.scores();
  const unsigned lane = threadIdx.x % kWarp;
  for (; v < packs.count; v += kRankThreads * kRankLoads) {
    T s[kRankLoads * kRankPack];
#pragma unroll
    for (int u = 0; u < kRankLoads; ++u)
      packs.load(scores, row.a.column_stride, row.num_items(), v + u * kWarp + lane, s + u * kRankPack);
    add(s);
    bool notable = false;  // NaN is, too
#pragma unroll
    for (int i = 0; i < kRankLoads * kRankPack; ++i) notable |= !(s[i] < least);
    if (!__any_sync(kFullWarp, notable)) continue;
    unsigned left = 0;
#pragma unroll
    for (int i = 0; i < kRankLoads * kRankPack; ++i) left |= static_cast<unsigned>(!(s[i] < least)) << i;
    return left;
  }
  return 0;
}

// Up to kRankRegisters positives, in the registers of each thread. Loops over the scores are compiled for 0, 1, 2, 4
// and 8 of them; everything else stands once.
template <class T>
struct RegisterCounts {
  T levels[kRankRegisters];
  float above[kRankRegisters];  // whole numbers: the comparison makes 1 or 0 of this type in one instruction
  RankShared* shared;
  int taken;  // the least of those numbers that is enough

  template <class S>
  __device__ __forceinline__ RegisterCounts(const RankRow<S>& row, RankShared* shared_) : shared(shared_) {
    const int count = static_cast<int>(row.user.positives.count);
    taken = count <= 2 ? count : count <= 4 ? 4 : kRankRegisters;
#pragma unroll
    for (int j = 0; j < kRankRegisters; ++j) {
      levels[j] = j < count ? row.score(row.positive(j)) : static_cast<T>(NAN);
      above[j] = 0;
    }
  }
  template <int N, class S>
  __device__ __forceinline__ unsigned scan_with(const RankRow<S>& row, T least, unsigned& v) {
    return scan_on(row, least, v, [&](const auto& s) {
      if (__any_sync(kFullWarp, add<N>(s))) level<N>(s);
    });
  }
  template <class S>
  __device__ __forceinline__ unsigned scan(const RankRow<S>& row, T least, unsigned& v) {
    switch (taken) {
      case 0:
        return scan_with<0>(row, least, v);
      case 1:
        return scan_with<1>(row, least, v);
      case 2:
        return scan_with<2>(row, least, v);
      case 4:
        return scan_with<4>(row, least, v);
      default:
        return scan_with<kRankRegisters>(row, least, v);
    }
  }
  // Whether a score is level with a positive, which level() then counts: that is seldom.
  template <int N, int M>
  __device__ __forceinline__ bool add(const T (&s)[M]) {
    bool same = false;
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j) {
        above[j] += s[i] > levels[j] ? 1.0f : 0.0f;
        same |= s[i] == levels[j];
      }
    return same;
  }
  template <int N, int M>
  __device__ __forceinline__ void level(const T (&s)[M]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      unsigned same = 0;
#pragma unroll
      for (int i = 0; i < M; ++i) same += s[i] == levels[j];
      if (!__any_sync(kFullWarp, same > 0)) continue;
      same = warp_sum(same);
      if (threadIdx.x % kWarp == 0) atomicAdd(shared->level + j, same);
    }
  }
  __device__ __forceinline__ void take_off(T s) {
#pragma unroll
    for (int j = 0; j < kRankRegisters; ++j) {
      above[j] -= s > levels[j] ? 1.0f : 0.0f;
      if (s == levels[j]) atomicSub(shared->level + j, 1u);
    }
  }
  template <class S>
  __device__ __forceinline__ void finish(const RankRow<S>& row) {
#pragma unroll
    for (int j = 0; j < kRankRegisters; ++j) {
      if (j >= taken) break;
      const unsigned sum = warp_sum(static_cast<unsigned>(static_cast<int>(above[j])));
      if (threadIdx.x % kWarp == 0) atomicAdd(shared->above + j, sum);
    }
    __syncthreads();
    const int j = threadIdx.x;
    if (j >= row.user.positives.count) return;
    const int64_t out = row.a.offset[row.user.number];
    row.a.positive_scores[out + j] = row.score(row.positive(j));
    row.a.greater[out + j] = shared->above[j];
    row.a.equal[out + j] = shared->level[j] - 1;  // a positive is level with itself
  }
};

// `count` positives from number `first` on: their scores, sorted, and how many scores fell where (score_bin).
template <class T>
struct SearchCounts {
  T* levels;       // a power of two of them, more than count; +inf behind the last
  unsigned* bins;  // [2 * count + 2]
  int64_t first;
  int count, half;  // half of that power

  // NaN, which is in no order, counts as -inf: the row is reported anyway.
  template <class S>
  __device__ __forceinline__ T positive(const RankRow<S>& row, int i) const {
    const T s = row.score(row.positive(first + i));
    return s == s ? s : -static_cast<T>(INFINITY);
  }
  // Sorts by counting who precedes whom, out of `unsorted`, which has room for count scores.
  template <class S>
  __device__ __forceinline__ SearchCounts(const RankRow<S>& row, int64_t first_, T* levels_, unsigned* bins_,
                                          T* unsorted)
      : levels(levels_), bins(bins_), first(first_), half(1) {
    const int64_t left = row.user.positives.count - first;
    count = static_cast<int>(left < kRankLevels ? left : int64_t(kRankLevels));
    while (2 * half <= count) half *= 2;
    for (int i = threadIdx.x; i < count; i += kRankThreads) unsorted[i] = positive(row, i);
    for (int i = threadIdx.x; i < 2 * count + 2; i += kRankThreads) bins[i] = 0;
    for (int i = count + threadIdx.x; i < 2 * half; i += kRankThreads) levels[i] = static_cast<T>(INFINITY);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kRankThreads) {
      const T s = unsorted[i];
      int before = 0;
      for (int j = 0; j < count; ++j) before += unsorted[j] < s || (unsorted[j] == s && j < i);
      levels[before] = s;
    }
    __syncthreads();
  }
  __device__ __forceinline__ int below(T s) const {
    int j = 0;
    for (int step = half; step > 0; step /= 2) j += levels[j + step - 1] < s ? step : 0;
    return j;
  }
  __device__ __forceinline__ void count_one(T s, unsigned by) {
    const int j = below(s), bin = 2 * j + (j < count && levels[j] == s);
    if (bin > 0) atomicAdd(bins + bin, by);  // nobody asks how many are below all
  }
  template <class S>
  __device__ __forceinline__ unsigned scan(const RankRow<S>& row, T least, unsigned& v) {
    return scan_on(row, least, v, [&](const auto& s) {
#pragma unroll
      for (const T score : s) count_one(score, 1u);
    });
  }
  __device__ __forceinline__ void take_off(T s) { count_one(s, ~0u); }
  template <class S>
  __device__ __forceinline__ void finish(const RankRow<S>& row) {
    __syncthreads();
    const int lane = threadIdx.x, last = 2 * count + 1;
    if (lane < kWarp) {  // bins[b] becomes what is at b or above; bins[last] is 0
      unsigned carried = 0;
      for (int top = last; top >= 0; top -= kWarp) {
        const int b = top - lane;
        unsigned sum = b >= 0 ? bins[b] : 0;
        for (int offset = 1; offset < kWarp; offset *= 2) {
          const unsigned before = __shfl_up_sync(kFullWarp, sum, offset);
          if (lane >= offset) sum += before;
        }
        sum += carried;
        if (b >= 0) bins[b] = sum;
        carried = __shfl_sync(kFullWarp, sum, kWarp - 1);
      }
    }
    __syncthreads();
    const int64_t out = row.a.offset[row.user.number] + first;
    for (int i = threadIdx.x; i < count; i += kRankThreads) {
      const T s = positive(row, i);
      const int bin = 2 * below(s) + 1;
      row.a.positive_scores[out + i] = row.score(row.positive(first + i));
      row.a.greater[out + i] = bins[bin + 1];
      row.a.equal[out + i] = bins[bin] - bins[bin + 1] - 1;
    }
  }
};

// ---- the pass over a user's scores ----------------------------------------------------------------------------------

// Looks at scores that may belong into the list, or may be NaN: a lane at those of its packs from v on that have a bit
// in `notable`, one a turn. They are few, and read once more. Returns the bits of those that the queue has no room for.
template <class S, class T>
__device__ __forceinline__ unsigned consider(const RankRow<S>& row, const RankList<T>& list, unsigned v,
                                             unsigned notable) {
  const unsigned lane = threadIdx.x % kWarp, capacity = static_cast<unsigned>(list.capacity);
#pragma unroll 1
  for (; __any_sync(kFullWarp, notable != 0); notable &= notable - 1) {
    Entry<T> e = Entry<T>::none();
    const int i = __ffs(static_cast<int>(notable)) - 1;
    const unsigned item = row.user.packs.item(v + i / kRankPack * kWarp + lane, i % kRankPack);
    if (notable != 0 && item < row.num_items()) {
      const T s = row.score(item);
      if (s > -static_cast<T>(INFINITY)) e = Entry<T>::of(s, item);
      if (!(s == s) && row.is_candidate(item))
        atomicMin(row.a.failed, static_cast<unsigned long long>(row.user.number));
    }
    if (list.length() == 0) continue;
    const bool wanted = e > list.last();
    const unsigned votes = __ballot_sync(kFullWarp, wanted), total = static_cast<unsigned>(__popc(votes));
    if (total == 0) continue;
    unsigned start = 0;
    if (lane == 0) start = atomicAdd(&list.shared->queued, total);
    start = __shfl_sync(kFullWarp, start, 0);
    if (start + total > capacity) {  // the places that are left were given to this warp: they stay empty
      for (unsigned p = start + lane; p < capacity; p += kWarp) list.queue()[p] = Entry<T>::none();
      return notable;
    }
    if (wanted) list.queue()[start + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1)))] = e;
  }
  return 0;
}

template <class S, class T, class Counts>
__device__ __forceinline__ void scan(const RankRow<S>& row, const RankList<T>& list, Counts& counts) {
  const unsigned turn = kRankThreads * kRankLoads;
  unsigned v = threadIdx.x / kWarp * (kWarp * kRankLoads);
  unsigned left = 0;  // of the packs at v, which are counted: scores that are to be looked at, or found no room
  T least = list.length() > 0 ? -static_cast<T>(INFINITY) : static_cast<T>(INFINITY);
  for (;;) {
    bool full = false;
    for (;;) {
      if (!__any_sync(kFullWarp, left != 0)) {
        left = counts.scan(row, least, v);
        if (!__any_sync(kFullWarp, left != 0)) break;
      }
      left = consider(row, list, v, left);
      full = __any_sync(kFullWarp, left != 0);
      if (full) break;
      v += turn;
    }
    if (list.length() == 0) return;
    const bool done = __syncthreads_and(!full);
    merge_queue(row, list);
    if (done) return;
    least = list.least();
  }
}

// Scans, takes off what the excluded items have added, and writes the counts.
template <class S, class T, class Counts>
__device__ __forceinline__ void count_and_list(const RankRow<S>& row, const RankList<T>& list, Counts counts) {
  RankShared* const shared = list.shared;
  scan(row, list, counts);
  unsigned removed = 0;
  for (int64_t i = threadIdx.x; i < row.user.excluded.count; i += kRankThreads) {
    const int64_t item = row.excluded(i);
    if (row.is_positive(item)) continue;
    counts.take_off(row.score(item));
    ++removed;
  }
  removed = warp_sum(removed);
  if (threadIdx.x % kWarp == 0) atomicAdd(&shared->removed, removed);
  counts.finish(row);
  __syncthreads();
  if (threadIdx.x == 0) {
    row.a.candidates[row.user.number] = row.a.num_items - int64_t(shared->removed);
    shared->removed = 0;
  }
}

template <class S, class T>
__device__ __forceinline__ void write_list(const RankRow<S>& row, const RankList<T>& list) {
  int64_t* const to = row.a.top_items + row.user.number * row.a.k;
  for (int i = threadIdx.x; i < row.a.k; i += kRankThreads)
    to[i] = list.best[i].is_none() ? -1 : int64_t(list.best[i].item());
}

template <class S>
__global__ void __launch_bounds__(kRankThreads, sizeof(S) == 8 ? 2 : 3) rank_kernel(const RankArgs<S> a, int capacity) {
  using T = arithmetic_t<S>;
  GPU_SHARED(RankShared, shared, 1);
  GPU_SHARED(RankUser, user, 1);
  const RankRow<S> row{a, user[0]};
  GPU_SHARED_DYN(Entry<T>, entries);  // lists [2, capacity]; levels and unsorted levels; bins
  T* const levels = reinterpret_cast<T*>(entries + 2 * capacity);
  unsigned* const bins = reinterpret_cast<unsigned*>(levels + 2 * (kRankLevels + 1));
  const RankList<T> list{entries, shared, capacity};
  for (int64_t number = blockIdx.x; number < a.rows; number += gridDim.x) {
    __syncthreads();  // what is shared of the row before may still be read
    if (threadIdx.x == 0) {
      describe_user(a, number, user[0]);
      shared->removed = shared->queued = 0;
      shared->length = static_cast<int>(a.k);
    }
    if (threadIdx.x < kRankRegisters) shared->above[threadIdx.x] = shared->level[threadIdx.x] = 0;
    list.clear();
    __syncthreads();
    const int64_t m = row.user.positives.count;
    if (m <= kRankRegisters)
      count_and_list(row, list, RegisterCounts<T>(row, shared));
    else
      for (int64_t first = 0; first < m; first += kRankLevels) {
        if (first > 0 && threadIdx.x == 0) shared->length = 0;  // (nobody looks at it before the next barrier)
        count_and_list(row, list, SearchCounts<T>(row, first, levels, bins, levels + kRankLevels + 1));
      }
    write_list(row, list);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Places of a list and of its queue, a power of two times kRankThreads; 0: there is no list.
inline int rank_capacity(int64_t k) {
  int capacity = k > 0 ? kRankThreads : 0;
  while (capacity < k) capacity *= 2;
  return capacity;
}

template <class T>
int64_t rank_shared_bytes(int capacity) {
  return 2 * capacity * int64_t(sizeof(Entry<T>)) + 2 * (kRankLevels + 1) * int64_t(sizeof(T) + sizeof(unsigned));
}

// `most` blocks at most: a block of a smaller grid takes several users. `longest`: of the lists that are made with the
// counts, kRankList at most.
template <class S>
void rank_scores(RankArgs<S> a, gpuStream stream, int64_t most = kRankBlocks, int64_t longest = kRankList) {
  if (a.rows == 0) return;
  const unsigned blocks = static_cast<unsigned>(a.rows < most ? a.rows : most);
  if (a.k > longest) {
    rank_select(a, blocks, stream);
    a.k = 0;
  }
  const int capacity = rank_capacity(a.k);
  GPU_LAUNCH((rank_kernel<S>), blocks, kRankThreads, static_cast<size_t>(rank_shared_bytes<arithmetic_t<S>>(capacity)),
             stream)
  (a, capacity);
}

}  // namespace GPU_NS
}  // namespace zx
