// Sampling on the GPU: the integers of csrc/common/sampler.h, by a thread for each of them. They are the CPU's bit for
// bit, as nothing depends on which thread draws what.
//
// A kernel takes its seed, epoch and first sample number from memory where it is given a place to read them: a CUDA
// graph then draws other samples at each replay.
#pragma once

#include "common/sampler.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kSampleThreads = 256;
constexpr int64_t kSampleBlocks = 1 << 16;  // at most: more work is walked in strides

// Seed, epoch and offset: numbers, or where device[0 .. 3) has them.
struct SampleOrigin {
  uint64_t seed;
  int64_t epoch, offset;
  const int64_t* device;

  __device__ __forceinline__ SampleKey key() const {
    return device != nullptr ? make_key(static_cast<uint64_t>(device[0]), static_cast<uint32_t>(device[1]))
                             : make_key(seed, static_cast<uint32_t>(epoch));
  }
  __device__ __forceinline__ int64_t first() const { return device != nullptr ? device[2] : offset; }
};

// ---- negatives ------------------------------------------------------------------------------------------------------

// Items whose complement a whole warp searches together: all lanes call with the same row and unit, and get the same.
//
// Of items that are not uniform a row's complement has no closed form (sampler.h walks along the row). Here the lanes
// take 32 of the row's items at a time, and a scan gives the running totals of their masses: prefix sums of the
// complement, whose first one beyond the unit is searched for. All of it is in integers: the result is the walk's.
template <class Items>
struct WarpItems : Items {
  __device__ __forceinline__ explicit WarpItems(const Items& items) : Items(items) {}

  template <class Index>
  __device__ __forceinline__ uint64_t complement_mass(Row<Index> row) const {
    unsigned long long mass = 0;
    for (int64_t j = threadIdx.x % kWarp; j < row.count; j += kWarp)
      mass += mass_of(static_cast<int64_t>(row.items[j]));
    return this->mass_below(this->num_items) - warp_combine(mass, kWarp, Add{});
  }
  template <class Index>
  __device__ __forceinline__ int64_t complement_item(Row<Index> row, uint64_t m) const {
    const int lane = threadIdx.x % kWarp;
    unsigned long long skipped = 0;  // mass of the row's items before those that are looked at
    for (int64_t first = 0; first < row.count; first += kWarp) {
      const int64_t item = first + lane < row.count ? static_cast<int64_t>(row.items[first + lane]) : -1;
      const bool here = is_item(item, this->num_items);
      const unsigned long long below = here ? this->mass_below(item) : 0;
      const unsigned long long mass = here ? this->mass_below(item + 1) - below : 0;
      unsigned long long before = mass;  // with what the lanes below have, and at last without its own
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const unsigned long long other = __shfl_up_sync(kFullWarp, before, offset);
        if (lane >= offset) before += other;
      }
      const unsigned beyond = __ballot_sync(kFullWarp, here && below - (skipped + before - mass) > m);
      if (beyond != 0) {  // the items that are skipped end before the lowest of these
        skipped += __shfl_sync(kFullWarp, before - mass, __ffs(static_cast<int>(beyond)) - 1);
        break;
      }
      skipped += __shfl_sync(kFullWarp, before, kWarp - 1);
    }
    return this->item_at(m + skipped);
  }

 private:
  __device__ __forceinline__ unsigned long long mass_of(int64_t item) const {
    return is_item(item, this->num_items) ? this->mass_below(item + 1) - this->mass_below(item) : 0;
  }
};

// The complement of a row of these has a closed form, and a lane draws from it alone.
template <class Items>
constexpr bool kDrawsAlone = false;
template <>
inline constexpr bool kDrawsAlone<UniformItems> = true;

template <class Items, class Index>
struct NegativeArgs {
  Items items;
  SampleOrigin origin;
  int64_t rows, k, num_users, num_entries;
  bool replacement;
  const int64_t* users;
  const int64_t* numbers;  // of the samples, or null: they are those from the origin's on
  const int64_t* indptr;
  const Index* indices;
  const uint16_t* filter;      // or null
  ComplementSums complements;  // of rows that lanes draw for alone
  int64_t* out;                // [rows, k]
  unsigned long long* failed;  // -1 beforehand; the first row that lacks a negative, or whose user does not exist

  __device__ __forceinline__ uint64_t sample(int64_t first, int64_t row) const {
    return static_cast<uint64_t>(numbers != nullptr ? numbers[row] : first + row);
  }
};

// Exact draws from complements, for those lanes of a warp that `need` one: the warp draws them one after the other.
// All lanes must be here; the row's items so far are in memory that other lanes see. A lane hands over no more than its
// row and j: what follows from these is read again, as registers are few.
template <class Items, class Index>
__device__ __forceinline__ int64_t draw_together(const NegativeArgs<Items, Index>& a, bool need, SampleKey key,
                                                 int64_t first, int64_t row, int64_t j, int64_t otherwise) {
  const WarpItems<Items> together(a.items);
  int64_t result = otherwise;
  for (unsigned left = __ballot_sync(kFullWarp, need); left != 0; left &= left - 1) {
    const int from = __ffs(static_cast<int>(left)) - 1;
    const int64_t its_row = __shfl_sync(kFullWarp, row, from), its_j = __shfl_sync(kFullWarp, j, from);
    const int64_t user = a.users[its_row], begin = a.indptr[user];
    const Row<Index> items{a.indices + begin, a.indptr[user + 1] - begin};
    const int64_t item =
        draw_from_complement(together, items, key, a.sample(first, its_row), static_cast<uint32_t>(its_j),
                             a.out + its_row * a.k, a.replacement ? 0 : its_j);
    if (static_cast<int>(threadIdx.x % kWarp) == from) result = item;
  }
  return result;
}

// With replacement a thread draws one negative, else it draws a row's k one after the other. Warps stay together, so
// that they can draw from complements together.
template <class Items, class Index>
__global__ void __launch_bounds__(kSampleThreads, 3) negatives_kernel(const NegativeArgs<Items, Index> a) {
  const SampleKey key = a.origin.key();
  const int64_t first = a.origin.first();
  const int64_t per_row = a.replacement ? a.k : 1, each = a.replacement ? 1 : a.k;
  const int64_t work = a.rows * per_row, threads = gridDim.x * int64_t(kSampleThreads);
  for (int64_t turn = blockIdx.x * int64_t(kSampleThreads) + threadIdx.x / kWarp * kWarp; turn < work;
       turn += threads) {
    const int64_t i = turn + threadIdx.x % kWarp;
    const bool live = i < work;
    const int64_t row = !live ? 0 : per_row == 1 ? i : i / per_row;
    const int64_t j0 = i - row * per_row;
    const int64_t user = a.users[row];
    int64_t* out = a.out + row * a.k;
    const bool exists = is_item(user, a.num_users) && is_row(a.indptr[user], a.indptr[user + 1], a.num_entries);
    bool lacking = !exists;
    Row<Index> items{a.indices, 0};
    const uint16_t* filter = a.filter;
    if (exists) {
      const int64_t begin = a.indptr[user];
      items = {a.indices + begin, a.indptr[user + 1] - begin};
      if (filter != nullptr) filter += begin;
    }
    const RowMembership<Index> contains{items, filter, a.items.num_items};
    for (int64_t n = 0; n < each; ++n) {
      const int64_t j = j0 + n, num_previous = a.replacement ? 0 : j;
      const uint64_t sample = a.sample(first, row);
      int64_t item = -1;
      bool drawn = !(live && exists);
      if (!drawn)
        drawn =
            draw_by_rejection(a.items, items, contains, key, sample, static_cast<uint32_t>(j), out, num_previous, item);
      if constexpr (kDrawsAlone<Items>) {
        if (!drawn)
          item = draw_from_complement(a.items, items, key, sample, static_cast<uint32_t>(j), out, num_previous);
      } else {
        const int64_t* sums = drawn ? nullptr : a.complements.find(items.items - a.indices, items.count);
        if (sums != nullptr) {
          const SummedItems<Items> alone(a.items, sums);
          item = draw_from_complement(alone, items, key, sample, static_cast<uint32_t>(j), out, num_previous);
          drawn = true;
        }
        item = draw_together(a, !drawn, key, first, row, j, item);
      }
      if (!is_item(item, a.items.num_items))
        item = -1;  // what a row that is none of this catalogue leads to is no item
      if (live) out[j] = item;
      lacking |= item < 0;
      if (!kDrawsAlone<Items> && each > 1) __syncwarp();  // other lanes read this row's items
    }
    if (live && lacking) atomicMin(a.failed, static_cast<unsigned long long>(row));
  }
}

// ---- positives ------------------------------------------------------------------------------------------------------

enum class Order : int64_t { kSequential = 0, kShuffled = 1, kReplacement = 2, kUsers = 3 };

template <class Index>
struct PositiveArgs {
  SampleOrigin origin;
  Order order;
  int64_t rows, positives, num_users, num_entries;
  int64_t total, kept;  // samples of the epoch; interactions of the users who take part
  const int64_t* indptr;
  const Index* indices;
  const int64_t* hint;
  int64_t hint_size;
  int shift;
  const int64_t* gaps;  // [2, num_gaps]
  int64_t num_gaps;
  const int64_t* active;  // users who take part, for Order::kUsers
  int64_t num_active;
  int64_t* out_users;      // [rows]
  int64_t* out_positives;  // [rows, positives]
};

// Where an interaction is, and whose: -1 where the matrix, hint, gaps and active contradict each other.
struct Interaction {
  int64_t user, edge, begin, count;
};

template <class Index>
__device__ __forceinline__ Interaction find_interaction(const PositiveArgs<Index>& a, const Draws& d, uint64_t sample,
                                                        const Permutation& permutation) {
  const Interaction none{-1, 0, 0, 0};
  int64_t user, edge = 0;
  if (a.order == Order::kUsers) {
    user = a.active[mulhi64(d.first, static_cast<uint64_t>(a.num_active))];
  } else {
    if (a.order == Order::kReplacement) {
      edge = static_cast<int64_t>(mulhi64(d.first, static_cast<uint64_t>(a.kept)));
    } else {
      edge = static_cast<int64_t>(a.order == Order::kShuffled ? permute(permutation, sample) : sample);
      if (a.total > a.kept) edge %= a.kept;  // several draws of each interaction
    }
    edge = kept_interaction(a.gaps, a.gaps + a.num_gaps, a.num_gaps, edge);
    const int64_t block = edge >> a.shift;
    if (!is_item(edge, a.num_entries) || block >= a.hint_size) return none;
    const int64_t first = a.hint[block], last = block + 1 < a.hint_size ? a.hint[block + 1] : a.num_users - 1;
    if (!is_item(first, a.num_users) || !is_item(last, a.num_users)) return none;
    user = owner_between(a.indptr, first, last, edge);
  }
  if (!is_item(user, a.num_users)) return none;
  const int64_t begin = a.indptr[user], end = a.indptr[user + 1];
  if (!is_row(begin, end, a.num_entries)) return none;
  if (a.order == Order::kUsers)
    edge = begin + static_cast<int64_t>(mulhi64(d.second, static_cast<uint64_t>(end - begin)));
  return begin <= edge && edge < end ? Interaction{user, edge, begin, end - begin} : none;
}

template <class Index>
__global__ void __launch_bounds__(kSampleThreads) positives_kernel(const PositiveArgs<Index> a) {
  GPU_SHARED(Permutation, permutation, 1);
  const SampleKey key = a.origin.key();
  const int64_t first = a.origin.first();
  if (a.order == Order::kShuffled) {
    if (threadIdx.x == 0) make_permutation(key, static_cast<uint64_t>(a.total), permutation[0]);
    __syncthreads();
  }
  const int64_t threads = gridDim.x * int64_t(kSampleThreads);
  for (int64_t row = blockIdx.x * int64_t(kSampleThreads) + threadIdx.x; row < a.rows; row += threads) {
    // A captured graph draws as many samples at each replay, wherever `device` says that they begin. Those beyond the
    // epoch, which the host has not seen and cannot refuse, are the first ones again.
    const uint64_t number = static_cast<uint64_t>(first + row), total = static_cast<uint64_t>(a.total);
    const uint64_t sample = number < total ? number : number % total;
    Draws d{};
    if (a.order == Order::kUsers || a.order == Order::kReplacement)
      d = draws(key, sample, Stream::kReplacementPositive, 0, 0);
    const Interaction at = find_interaction(a, d, sample, permutation[0]);
    a.out_users[row] = at.user;
    int64_t* out = a.out_positives + row * a.positives;
    out[0] = at.user < 0 ? -1 : static_cast<int64_t>(a.indices[at.edge]);
    if (a.positives == 2) {
      d = draws(key, sample, Stream::kSecondPositive, 0, 0);
      const int64_t second = second_position(d.first, at.edge - at.begin, at.count);
      out[1] = at.user < 0 ? -1 : static_cast<int64_t>(a.indices[at.begin + second]);
    }
  }
}

// numbers[i] = the sample that the epoch's shuffle takes to cells[i]; -1 where that is no cell of it.
__global__ void __launch_bounds__(kSampleThreads)
    unshuffle_kernel(const SampleOrigin origin, const int64_t* cells, int64_t n, int64_t total, int64_t* numbers) {
  GPU_SHARED(Permutation, permutation, 1);
  if (threadIdx.x == 0) make_permutation(origin.key(), static_cast<uint64_t>(total), permutation[0]);
  __syncthreads();
  const int64_t threads = gridDim.x * int64_t(kSampleThreads);
  for (int64_t i = blockIdx.x * int64_t(kSampleThreads) + threadIdx.x; i < n; i += threads) {
    const int64_t cell = cells[i];
    numbers[i] =
        is_item(cell, total) ? static_cast<int64_t>(unpermute(permutation[0], static_cast<uint64_t>(cell))) : -1;
  }
}

// ---- membership -----------------------------------------------------------------------------------------------------

// Sets every interaction's bit of the row filter, which is 0 beforehand.
template <class Index>
__global__ void __launch_bounds__(kSampleThreads)
    row_filter_kernel(const int64_t* indptr, int64_t num_users, const Index* indices, int64_t nnz, int64_t num_items,
                      unsigned short* filter) {
  const int64_t threads = gridDim.x * int64_t(kSampleThreads);
  for (int64_t e = blockIdx.x * int64_t(kSampleThreads) + threadIdx.x; e < nnz; e += threads) {
    const int64_t user = owner_between(indptr, 0, num_users - 1, e);
    const int64_t begin = indptr[user], count = indptr[user + 1] - begin;
    // (A bit of a matrix that is none is not set: whoever asks the filter is told that the item is absent.)
    if (!is_row(begin, begin + count, nnz) || e < begin || e >= begin + count ||
        !is_item(static_cast<int64_t>(indices[e]), num_items))
      continue;
    const uint64_t bit = filter_bit(filter_range(count, num_items), static_cast<int64_t>(indices[e]));
    unsigned short* word = filter + begin + static_cast<int64_t>(bit >> 4);
    const unsigned short mask = static_cast<unsigned short>(1u << (bit & 15));
    // There is no atomicOr of 16 bits.
    unsigned short seen = 0;
    for (;;) {
      const unsigned short before = atomicCAS(word, seen, static_cast<unsigned short>(seen | mask));
      if (before == seen) break;
      seen = before;
    }
  }
}

// out[r, c] = whether users[r] has items[c] (stride 0) or items[r, c] (stride columns).
template <class Index>
__global__ void __launch_bounds__(kSampleThreads)
    has_items_kernel(const int64_t* users, int64_t rows, const int64_t* items, int64_t columns, int64_t stride,
                     const int64_t* indptr, int64_t num_users, const Index* indices, int64_t nnz,
                     const uint16_t* filter, int64_t num_items, bool* out) {
  const int64_t work = rows * columns, threads = gridDim.x * int64_t(kSampleThreads);
  for (int64_t i = blockIdx.x * int64_t(kSampleThreads) + threadIdx.x; i < work; i += threads) {
    const int64_t row = i / columns, column = i - row * columns, user = users[row];
    const int64_t item = items[row * stride + column];
    out[i] = false;
    if (!is_item(user, num_users) || !is_item(item, num_items)) continue;
    const int64_t begin = indptr[user], end = indptr[user + 1];
    if (!is_row(begin, end, nnz)) continue;
    const RowMembership<Index> contains{
        {indices + begin, end - begin}, filter != nullptr ? filter + begin : nullptr, num_items};
    out[i] = contains(item);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

inline unsigned sample_blocks(int64_t work) {
  const int64_t blocks = (work + kSampleThreads - 1) / kSampleThreads;
  return static_cast<unsigned>(blocks > kSampleBlocks ? kSampleBlocks : blocks);
}

template <class Items, class Index>
void sample_negatives(const NegativeArgs<Items, Index>& a, gpuStream stream) {
  if (a.rows == 0 || a.k == 0) return;
  GPU_LAUNCH((negatives_kernel<Items, Index>), sample_blocks(a.replacement ? a.rows * a.k : a.rows), kSampleThreads, 0,
             stream)
  (a);
}

// Uniform over all items, over candidates (masses alone), or weighted by an alias table and its prefix sums.
template <class Index>
void sample_negatives(NegativeArgs<UniformItems, Index> a, const uint64_t* slots, int bits, const int64_t* masses,
                      int64_t num_masses, gpuStream stream) {
  const auto with = [&](auto items) {
    sample_negatives(NegativeArgs<decltype(items), Index>{items, a.origin, a.rows, a.k, a.num_users, a.num_entries,
                                                          a.replacement, a.users, a.numbers, a.indptr, a.indices,
                                                          a.filter, a.complements, a.out, a.failed},
                     stream);
  };
  const int64_t num_items = a.items.num_items;
  if (slots != nullptr) return with(AliasItems{num_items, slots, bits, masses});
  if (masses != nullptr) return with(CandidateItems{num_items, masses, num_masses});
  with(UniformItems{num_items});
}

template <class Index>
void sample_positives(const PositiveArgs<Index>& a, gpuStream stream) {
  if (a.rows == 0) return;
  GPU_LAUNCH((positives_kernel<Index>), sample_blocks(a.rows), kSampleThreads, 0, stream)(a);
}

inline void unshuffle(const SampleOrigin& origin, const int64_t* cells, int64_t n, int64_t total, int64_t* numbers,
                      gpuStream stream) {
  if (n == 0) return;
  GPU_LAUNCH((unshuffle_kernel), sample_blocks(n), kSampleThreads, 0, stream)(origin, cells, n, total, numbers);
}

template <class Index>
void row_filter(const int64_t* indptr, int64_t num_users, const Index* indices, int64_t nnz, int64_t num_items,
                unsigned short* filter, gpuStream stream) {
  if (nnz == 0 || num_users == 0) return;
  GPU_LAUNCH((row_filter_kernel<Index>), sample_blocks(nnz), kSampleThreads, 0, stream)
  (indptr, num_users, indices, nnz, num_items, filter);
}

template <class Index>
void has_items(const int64_t* users, int64_t rows, const int64_t* items, int64_t columns, int64_t stride,
               const int64_t* indptr, int64_t num_users, const Index* indices, int64_t nnz, const uint16_t* filter,
               int64_t num_items, bool* out, gpuStream stream) {
  if (rows == 0 || columns == 0) return;
  GPU_LAUNCH((has_items_kernel<Index>), sample_blocks(rows * columns), kSampleThreads, 0, stream)
  (users, rows, items, columns, stride, indptr, num_users, indices, nnz, filter, num_items, out);
}

}  // namespace GPU_NS
}  // namespace zx
