// One sort for all rows that a batch of training touches: its positions in the order of the rows that they name, users
// before items. A position is a sample (its user) or a sample and one of its items.
//
// A stable radix sort of (key, position) pairs by digits of up to 8 bits. Up to kSmallSort positions are sorted by one
// block in its registers, with one launch. Beyond that a pass is one kernel (the scheme of "onesweep" [Adinets and
// Merrill 2022]): all passes' digits are counted beforehand in one reading, a block takes its tile by a ticket, and the
// pairs of a digit in all tiles before it become known by looking back from tile to tile, each of which publishes first
// its own count and later that of all up to it.
//
// What comes out does not depend on the order of threads or blocks: positions of one row ascend.
#pragma once

#include "common/number.h"
#include "common/optimizers.h"
#include "cuda/reduce.cuh"
#include "cuda/sort_rows.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kSmallThreads = 1024, kSmallTurns = 16;
constexpr int64_t kSmallSort = int64_t{kSmallThreads} * kSmallTurns;
constexpr int kPassThreads = 256, kPassTurns = 16, kPassTile = kPassThreads * kPassTurns;
constexpr int kPassWarps = kPassThreads / kWarp;
// Blocks of a multiprocessor that registers are dealt out for. The shared memory of sm_120 holds two; with three,
// sm_100's code keeps some registers in memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kPassResident = 2;
#else
constexpr int kPassResident = 4;
#endif
constexpr int kMostPasses = 4;
constexpr unsigned kDigits = 256;
static_assert(kDigits == kPassThreads, "a thread looks after a digit");
// What a tile publishes of a digit: a count, and whether it is that of the tile alone or of all tiles up to it.
constexpr unsigned kOwnCount = 1u << 30, kCountSoFar = 2u << 30, kCountBits = kOwnCount - 1;
constexpr int64_t kMostPositions = int64_t{kCountBits};

// n / divisor for n < 2^31, as a product.
struct Divider {
  unsigned divisor, factor;
  int shift;

  __device__ __forceinline__ unsigned divide(unsigned n) const {
    return static_cast<unsigned>((static_cast<uint64_t>(n) * factor) >> shift);
  }
};

inline Divider divider_of(unsigned divisor) {
  int bits = 0;
  while ((uint64_t{1} << bits) < divisor) ++bits;
  return {divisor, static_cast<unsigned>((uint64_t{1} << (31 + bits)) / divisor + 1), 31 + bits};
}

// The ids of a batch, and the keys of its positions: users [0, U), U for one out of range; then items, and U + 1 + I
// for one out of range. Positions: the samples, then the items of sample after sample, positives first. So places
// [0, samples) of the sorted batch are users, and the rest are items, whatever the ids.
//
// Of samples that share lists of negatives (mf_shared.cuh) the positions of items are the positives, the items of the
// lists, once for each tile of samples, and at last the negatives of samples that share nothing. How many of these
// there are the device alone knows. An item of a list that no sample uses has the key of one out of range.
constexpr unsigned kNone = ~0u;  // no row
struct BatchKeys {
  const int64_t *users, *positives, *negatives;
  unsigned samples, num_positives, num_negatives;
  unsigned num_users, num_items;
  Divider items;               // of a sample; of a list, where they are shared
  const int64_t* lists;        // [lists, num_negatives], or null where nothing is shared
  const int64_t* alone;        // [samples]: how many samples up to this one share nothing
  const unsigned* uses;        // [tiles, num_negatives]: by how many slots each item of a list is used
  unsigned tiles, tiles_each;  // in all, and of each list

  __device__ __forceinline__ int64_t item_id(unsigned sample, unsigned j) const {
    return j < num_positives ? positives[sample * num_positives + j]
                             : negatives[sample * num_negatives + j - num_positives];
  }
  // Its row, or the number of rows where it has none.
  static __device__ __forceinline__ unsigned in_range(int64_t id, unsigned rows) {
    return static_cast<uint64_t>(id) < rows ? static_cast<unsigned>(id) : rows;
  }
  __device__ __forceinline__ unsigned count_alone(unsigned sample) const { return in_range(alone[sample], samples); }
  __device__ __forceinline__ bool is_alone(unsigned sample) const {
    return alone[sample] != (sample > 0 ? alone[sample - 1] : 0);
  }
  // The sample that is number n of those that share nothing. (Few ask: the others' registers are not to pay for it.)
  __device__ __attribute__((noinline)) unsigned find_alone(unsigned n) const {
    unsigned low = 0, high = samples - 1;
    while (low < high) {
      const unsigned middle = low + (high - low) / 2;
      if (count_alone(middle) > n)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
  // Positions, of `most` that there may be.
  __device__ __forceinline__ unsigned count(unsigned most) const {
    if (lists == nullptr) return most;
    return 2 * samples + (tiles + count_alone(samples - 1)) * num_negatives;
  }
  // The row of a position of shared items, counted from the first of them.
  __device__ __forceinline__ unsigned shared_item(unsigned at) const {
    if (at < samples) return in_range(positives[at], num_items);
    at -= samples;
    const unsigned row = items.divide(at), j = at - row * num_negatives;
    if (row >= tiles) return in_range(negatives[find_alone(row - tiles) * num_negatives + j], num_items);
    return uses[at] == 0 ? num_items : in_range(lists[row / tiles_each * num_negatives + j], num_items);
  }
  __device__ __forceinline__ unsigned key(unsigned position) const {
    if (position < samples) return in_range(users[position], num_users);
    const unsigned at = position - samples, sample = items.divide(at);
    return num_users + 1 +
           (lists != nullptr ? shared_item(at) : in_range(item_id(sample, at - sample * items.divisor), num_items));
  }
};

// How keys are cut into digits.
struct SortPlan {
  int passes, width;
};
inline SortPlan sort_plan(int64_t num_users, int64_t num_items) {
  int bits = 1;
  while ((int64_t{1} << bits) < num_users + num_items + 2) ++bits;
  const int passes = (bits + 7) / 8;
  return {passes, (bits + passes - 1) / passes};
}
inline int64_t pass_tiles(int64_t n) { return (n + kPassTile - 1) / kPassTile; }
// Words that a sort of n positions wants as zeros: how often each digit occurs, the tickets, how many positions there
// are, what tiles publish.
inline int64_t sort_zeros(int64_t n, const SortPlan& plan) {
  return n <= kSmallSort ? 0 : plan.passes * int64_t{kDigits} + kMostPasses + 1 + plan.passes * pass_tiles(n) * kDigits;
}

// What the first kernel of a step does beside sorting: it moves the steps' numbers on that lie in memory, and works
// out the rules of this step. Of users, items and biases.
struct StepNumbers {
  Optimizer kind;
  Number lr[3], step[3];  // step: of this step, or where it lies in memory of the one before
  double x[3], y[3], eps[3];
  UpdateRule* rules;  // [3]
};

__device__ __forceinline__ void begin_step(const StepNumbers& a) {
  if (blockIdx.x != 0 || threadIdx.x >= 3) return;
  const int t = threadIdx.x;
  const Number& number = a.step[t];
  const bool counted = number.single == nullptr && number.twofold == nullptr;  // by the host
  const double step = number.read() + (counted ? 0 : 1);
  if (number.single != nullptr) *const_cast<float*>(number.single) = static_cast<float>(step);
  if (number.twofold != nullptr) *const_cast<double*>(number.twofold) = step;
  a.rules[t] = make_rule(a.kind, a.lr[t].read(), a.x[t], a.y[t], a.eps[t], step);
}

// ---- in a block -----------------------------------------------------------------------------------------------------

// Counts a warp's next 32 digits; returns how many of the warp's pairs before this one have the same.
template <class Count>
__device__ __forceinline__ unsigned rank_in_warp(Count* own, unsigned digit, bool here) {
  const int lane = threadIdx.x % kWarp;
  const unsigned equals = __match_any_sync(kFullWarp, here ? digit : kDigits);
  const unsigned below = static_cast<unsigned>(__popc(equals & ((1u << lane) - 1)));
  const unsigned before = here ? own[digit] : 0u;
  __syncwarp();
  if (here && below == 0) own[digit] = static_cast<Count>(before + __popc(equals));
  __syncwarp();
  return before + below;
}

// Counts of each warp become places in the sorted block. counts: [warps, kDigits]. Returns this thread's digit's
// number in the block (0 from kDigits on) and, in `start`, how many smaller ones there are. All threads must be here.
template <int kThreads, class Count>
__device__ __forceinline__ unsigned places_of_digits(Count* counts, unsigned* start) {
  constexpr int kWarps = kThreads / kWarp;
  const unsigned digit = threadIdx.x;
  unsigned total = 0, all;
  __syncthreads();
  if (digit < kDigits)
    for (int w = 0; w < kWarps; ++w) total += counts[w * kDigits + digit];
  unsigned place = *start = sum_before<kThreads>(total, &all);
  if (digit < kDigits)
    for (int w = 0; w < kWarps; ++w) {
      const unsigned count = counts[w * kDigits + digit];
      counts[w * kDigits + digit] = static_cast<Count>(place);
      place += count;
    }
  __syncthreads();
  return total;
}

// ---- small batches --------------------------------------------------------------------------------------------------

// Bits that hold a position, or a place, of a small sort.
constexpr int kSmallBits = 14;
static_assert(kSmallSort == int64_t{1} << kSmallBits);
constexpr int kSmallWarps = kSmallThreads / kWarp;

// What of this thread's pairs goes to their places, 16 bits at a time, and what comes to it. All threads must be here.
template <class Get, class Put>
__device__ __forceinline__ void exchange_halves(unsigned short* exchange, const unsigned (&position)[kSmallTurns],
                                                unsigned base, int turns, const Get& get, const Put& put) {
  __syncthreads();  // what was there before may still be read
#pragma unroll
  for (int t = 0; t < kSmallTurns; ++t) {
    if (t >= turns) break;
    exchange[position[t] >> kSmallBits] = static_cast<unsigned short>(get(t));
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kSmallTurns; ++t) {
    if (t >= turns) break;
    put(t, exchange[base + t * kWarp]);
  }
}

// 32 KiB of shared memory serve one after another: counts of digits, then pairs on their way from thread to thread.
// narrow: upper halves of keys are 0, and stay where they are. (The host says so: registers are scarce here.)
__global__ void __launch_bounds__(kSmallThreads, 1)
    small_sort_kernel(const BatchKeys ids, unsigned most, int turns, SortPlan plan, bool narrow, unsigned* keys,
                      unsigned* order, const StepNumbers numbers) {
  GPU_SHARED(unsigned short, shared, kSmallSort);
  static_assert(kSmallWarps * kDigits <= kSmallSort);
  begin_step(numbers);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, mask = (1u << plan.width) - 1;
  const unsigned base = warp * kWarp * turns + lane;
  unsigned short* const own = shared + warp * kDigits;
  unsigned key[kSmallTurns], position[kSmallTurns];  // (a place besides, in the position's upper bits)
#pragma unroll
  for (int t = 0; t < kSmallTurns; ++t) {
    if (t >= turns) break;
    // Behind the end are keys that are no smaller than any other in each digit: they stay there.
    position[t] = base + t * kWarp;
    key[t] = position[t] < ids.count(most) ? ids.key(position[t]) : narrow ? 0xffffu : ~0u;
  }
  for (int pass = 0; pass < plan.passes; ++pass) {
    const int shift = pass * plan.width;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < kSmallWarps * kDigits; i += kSmallThreads) shared[i] = 0;
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kSmallTurns; ++t) {
      if (t >= turns) break;
      position[t] |= rank_in_warp(own, key[t] >> shift & mask, true) << kSmallBits;
    }
    unsigned start;
    places_of_digits<kSmallThreads>(shared, &start);
#pragma unroll
    for (int t = 0; t < kSmallTurns; ++t) {
      if (t >= turns) break;
      position[t] += static_cast<unsigned>(own[key[t] >> shift & mask]) << kSmallBits;
    }
    if (!narrow)
      exchange_halves(
          shared, position, base, turns, [&](int t) { return key[t] >> 16; },
          [&](int t, unsigned half) { key[t] = (key[t] & 0xffffu) | half << 16; });
    exchange_halves(
        shared, position, base, turns, [&](int t) { return key[t] & 0xffffu; },
        [&](int t, unsigned half) { key[t] = (key[t] & ~0xffffu) | half; });
    // The places are wanted up to the last exchange, which replaces them.
    exchange_halves(
        shared, position, base, turns, [&](int t) { return position[t] & ((1u << kSmallBits) - 1); },
        [&](int t, unsigned half) { position[t] = half; });
  }
#pragma unroll
  for (int t = 0; t < kSmallTurns; ++t) {
    const unsigned to = base + t * kWarp;
    if (t >= turns || to >= ids.count(most)) break;
    keys[to] = key[t];
    order[to] = position[t];
  }
}

// ---- large ones -----------------------------------------------------------------------------------------------------

// The keys, how often each of their digits occurs, for all passes at once (counts [passes, kDigits], zeros beforehand),
// and how many there are.
__global__ void __launch_bounds__(kPassThreads)
    batch_digits_kernel(const BatchKeys ids, unsigned most, SortPlan plan, unsigned* counts, unsigned* keys,
                        unsigned* size, const StepNumbers numbers) {
  GPU_SHARED(unsigned, own, kMostPasses* kDigits);
  begin_step(numbers);
  const unsigned n = ids.count(most), mask = (1u << plan.width) - 1;
  if (blockIdx.x == 0 && threadIdx.x == 0) *size = n;
  for (unsigned i = threadIdx.x; i < kMostPasses * kDigits; i += kPassThreads) own[i] = 0;
  __syncthreads();
  const unsigned begin = blockIdx.x * unsigned(kPassTile);
  for (int turn = 0; turn < kPassTurns; ++turn) {
    const unsigned i = begin + turn * kPassThreads + threadIdx.x;
    if (i >= n) break;
    const unsigned key = ids.key(i);
    keys[i] = key;
    for (int pass = 0; pass < plan.passes; ++pass)
      atomicAdd(own + pass * kDigits + (key >> (pass * plan.width) & mask), 1u);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < plan.passes * kDigits; i += kPassThreads)
    if (own[i] != 0) atomicAdd(counts + i, own[i]);
}

// What one pass reads and writes. In the first one order is null: positions are in order.
struct PassArgs {
  const unsigned* size;  // [1]
  int shift;
  unsigned mask;
  const unsigned* counts;  // of the digits [kDigits]
  unsigned* ticket;        // [1], 0 beforehand
  unsigned* published;     // [tiles, kDigits], 0 beforehand
  const unsigned *keys, *order;
  unsigned *new_keys, *new_order;
};

// How many pairs of this digit the tiles before this one have; publishes the tile's own `count`. A word says all there
// is to say: no order with other writes is needed.
__device__ __forceinline__ unsigned look_back(unsigned* published, unsigned tile, unsigned digit, unsigned count) {
  unsigned* const mine = published + tile * int64_t{kDigits} + digit;
  if (tile == 0) {
    gpu_store_relaxed(mine, kCountSoFar | count);
    return 0;
  }
  gpu_store_relaxed(mine, kOwnCount | count);
  unsigned before = 0;
  for (const unsigned* other = mine;;) {
    other -= kDigits;
    unsigned said;
    do said = gpu_load_relaxed(other);
    while (said == 0);
    before += said & kCountBits;
    if (said & kCountSoFar) break;
  }
  gpu_store_relaxed(mine, kCountSoFar | (before + count));
  return before;
}

__global__ void __launch_bounds__(kPassThreads, kPassResident) sort_pass_kernel(const PassArgs a) {
  GPU_SHARED(unsigned, sorted, kPassTile);
  GPU_SHARED(unsigned, sorted_order, kPassTile);
  GPU_SHARED(unsigned, counts, kPassWarps* kDigits);
  GPU_SHARED(unsigned, offset, kDigits);  // from a pair's place in the tile to that in the batch
  GPU_SHARED(unsigned, taken, 2);         // the tile, and where the positions end
  if (threadIdx.x == 0) taken[0] = atomicAdd(a.ticket, 1u), taken[1] = *a.size;
  for (unsigned i = threadIdx.x; i < kPassWarps * kDigits; i += kPassThreads) counts[i] = 0;
  __syncthreads();
  const unsigned tile = taken[0], begin = tile * unsigned(kPassTile);
  if (begin >= taken[1]) return;
  const unsigned here = taken[1] - begin < unsigned(kPassTile) ? taken[1] - begin : unsigned(kPassTile);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned base = warp * kWarp * kPassTurns + lane;
  unsigned* const own = counts + warp * kDigits;
  unsigned key[kPassTurns], rank[kPassTurns];
#pragma unroll
  for (int t = 0; t < kPassTurns; ++t) {
    const unsigned i = base + t * kWarp;
    key[t] = i >= here ? 0 : a.keys[begin + i];
  }
#pragma unroll
  for (int t = 0; t < kPassTurns; ++t) rank[t] = rank_in_warp(own, key[t] >> a.shift & a.mask, base + t * kWarp < here);
  unsigned start, all;
  const unsigned count = places_of_digits<kPassThreads>(counts, &start);
  const unsigned smaller = sum_before<kPassThreads>(threadIdx.x <= a.mask ? a.counts[threadIdx.x] : 0u, &all);
  // (`offset` may wrap round; the sum with a place in the tile does not.)
  if (threadIdx.x <= a.mask) offset[threadIdx.x] = smaller + look_back(a.published, tile, threadIdx.x, count) - start;
#pragma unroll
  for (int t = 0; t < kPassTurns; ++t) {
    const unsigned i = base + t * kWarp;
    if (i >= here) continue;  // (after a break sm_100 would spill)
    const unsigned to = own[key[t] >> a.shift & a.mask] + rank[t];
    sorted[to] = key[t];
    sorted_order[to] = a.order != nullptr ? a.order[begin + i] : begin + i;
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < here; i += kPassThreads) {
    const unsigned k = sorted[i], to = offset[k >> a.shift & a.mask] + i;
    a.new_keys[to] = k;
    a.new_order[to] = sorted_order[i];
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Sorts n positions; keys[1] and order[1] hold the result, keys[0] and order[0] are scratch (unused by small sorts).
// zeros: sort_zeros(n, plan) words.
inline void sort_batch(const BatchKeys& ids, int64_t n, const SortPlan& plan, unsigned* const (&keys)[2],
                       unsigned* const (&order)[2], unsigned* zeros, const StepNumbers& numbers, gpuStream stream) {
  const unsigned size = static_cast<unsigned>(n);
  if (n <= kSmallSort) {
    const int turns = static_cast<int>((n + kSmallThreads - 1) / kSmallThreads);
    GPU_LAUNCH((small_sort_kernel), 1, kSmallThreads, 0, stream)
    (ids, size, turns, plan, plan.passes * plan.width <= 16, keys[1], order[1], numbers);
    return;
  }
  const unsigned tiles = static_cast<unsigned>(pass_tiles(n));
  unsigned* const counts = zeros;
  unsigned* const tickets = counts + plan.passes * kDigits;
  unsigned *const count = tickets + kMostPasses, *const published = count + 1;
  unsigned* const made = keys[1 - plan.passes % 2];
  GPU_LAUNCH((batch_digits_kernel), tiles, kPassThreads, 0, stream)(ids, size, plan, counts, made, count, numbers);
  for (int pass = 0; pass < plan.passes; ++pass) {
    const int to = (plan.passes - pass) % 2;  // the last one writes into [1]
    PassArgs a{};
    a.size = count, a.shift = pass * plan.width, a.mask = (1u << plan.width) - 1;
    a.counts = counts + pass * kDigits, a.ticket = tickets + pass;
    a.published = published + pass * int64_t(tiles) * kDigits;
    a.keys = keys[1 - to], a.order = pass == 0 ? nullptr : order[1 - to];
    a.new_keys = keys[to], a.new_order = order[to];
    GPU_LAUNCH((sort_pass_kernel), tiles, kPassThreads, 0, stream)(a);
  }
}

}  // namespace GPU_NS
}  // namespace zx
