// What the kernels that rank a catalogue share: an entry of a list as one number, a user's row of the scores and how it
// is read, and whether an item is a candidate.
#pragma once

#include <cstring>

#include "common/ranking.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kRankPack = 4;                // scores of one load
constexpr int kRankLoads = 2;               // loads of a thread that are on their way at once
constexpr int64_t kRankItems = 0xffff0000;  // fewer items than this: 32 bits hold an item's number, and some beyond

// ---- entries of lists -----------------------------------------------------------------------------------------------

// The bits of a score as an unsigned number of the same order; 0 and -0 are one, as they are for the scores.
__device__ __forceinline__ unsigned ordered_bits(float score) {
  unsigned u;
  score += 0.0f;
  memcpy(&u, &score, sizeof u);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ unsigned long long ordered_bits(double score) {
  unsigned long long u;
  score += 0.0;
  memcpy(&u, &score, sizeof u);
  return u ^ (u >> 63 ? ~0ull : 1ull << 63);
}
__device__ __forceinline__ void from_ordered(unsigned u, float& score) {
  u ^= u >> 31 ? 0x80000000u : 0xffffffffu;
  memcpy(&score, &u, sizeof u);
}
__device__ __forceinline__ void from_ordered(unsigned long long u, double& score) {
  u ^= u >> 63 ? 1ull << 63 : ~0ull;
  memcpy(&score, &u, sizeof u);
}

// A score and its item as one number: the larger entry precedes (ranking.h), none is less than all others.
template <class T>
struct Entry;

template <>
struct Entry<float> {
  unsigned long long key;

  static __device__ __forceinline__ Entry none() { return {0}; }
  static __device__ __forceinline__ Entry of(float score, unsigned item) {
    return {static_cast<unsigned long long>(ordered_bits(score)) << 32 | ~item};
  }
  __device__ __forceinline__ bool is_none() const { return key == 0; }
  __device__ __forceinline__ unsigned item() const { return ~static_cast<unsigned>(key); }
  __device__ __forceinline__ float score() const {
    float s;
    from_ordered(static_cast<unsigned>(key >> 32), s);
    return s;
  }
  __device__ __forceinline__ bool operator>(const Entry& other) const { return key > other.key; }
  __device__ __forceinline__ Entry across(int lanes) const { return {__shfl_xor_sync(kFullWarp, key, lanes)}; }
};

template <>
struct Entry<double> {
  unsigned long long key, low;

  static __device__ __forceinline__ Entry none() { return {0, 0}; }
  static __device__ __forceinline__ Entry of(double score, unsigned item) { return {ordered_bits(score), ~item}; }
  __device__ __forceinline__ bool is_none() const { return key == 0; }
  __device__ __forceinline__ unsigned item() const { return ~static_cast<unsigned>(low); }
  __device__ __forceinline__ double score() const {
    double s;
    from_ordered(key, s);
    return s;
  }
  __device__ __forceinline__ bool operator>(const Entry& other) const {
    return key > other.key || (key == other.key && low > other.low);
  }
  __device__ __forceinline__ Entry across(int lanes) const {
    return {__shfl_xor_sync(kFullWarp, key, lanes), __shfl_xor_sync(kFullWarp, low, lanes)};
  }
};

// ---- what a block works on ------------------------------------------------------------------------------------------

template <class S>
struct RankArgs {
  const S* scores;  // [rows, num_items]
  int64_t row_stride, column_stride;
  int64_t rows, num_items, k;
  const int64_t* users;   // [rows]
  const int64_t* offset;  // [rows + 1], of each user's positives in the results
  const int64_t* positive_indptr;
  const void* positive_indices;    // int64 or int32
  const int64_t* excluded_indptr;  // or null
  const void* excluded_indices;
  bool wide;  // whether indices are int64
  arithmetic_t<S>* positive_scores;
  unsigned long long *greater, *equal;
  int64_t* candidates;         // [rows]
  int64_t* top_items;          // [rows, k]
  unsigned long long* failed;  // -1 beforehand; the first row with a candidate scored NaN
};

// A user's items in a matrix: where they lie in it, not a pointer, which would be taken for one to any kind of memory.
struct Span {
  int64_t first, count;
};

// The items of all users; the index type is known when the kernel runs, as what reads here is seldom.
struct AnyItems {
  const void* items;
  bool wide;

  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(items)[i] : static_cast<const int32_t*>(items)[i];
  }
  __device__ __forceinline__ bool holds(Span span, int64_t item) const {
    int64_t at = span.first, n = span.count;
#pragma unroll 1
    while (n > 0) {  // as lower_bound (csr.h)
      const int64_t half = n >> 1;
      const bool right = (*this)[at + half] < item;
      at += right ? half + 1 : 0;
      n = right ? n - half - 1 : half;
    }
    return at < span.first + span.count && (*this)[at] == item;
  }
};

__device__ __forceinline__ Span span_of(const int64_t* indptr, int64_t user) {
  if (indptr == nullptr) return {0, 0};
  const int64_t first = indptr[user];
  return {first, indptr[user + 1] - first};
}

// A user's scores in packs that start at multiples of 16 bytes (8 for 16-bit scores). Pack v holds the items from
// 4 v - shift on; the packs [first, first + whole) are read at once, those at the ends one by one. So is every pack of
// scores that do not lie side by side.
struct Packs {
  unsigned shift, first, whole, count;

  // (Of a place before the first item a large number.)
  __device__ __forceinline__ unsigned item(unsigned v, int e) const { return v * kRankPack + e - shift; }
  // NaN where there is no item: that is in no order with anything.
  template <class S>
  __device__ __forceinline__ void load(const S* scores, int64_t stride, unsigned num_items, unsigned v,
                                       arithmetic_t<S>* s) const {
    if (v - first < whole) {
      const Pack<S, kRankPack> pack = load_pack<S, kRankPack>(scores + item(v, 0));
#pragma unroll
      for (int e = 0; e < kRankPack; ++e) s[e] = widen(pack.v[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kRankPack; ++e) {
        s[e] = static_cast<arithmetic_t<S>>(NAN);
        const unsigned i = item(v, e);
        if (i < num_items) s[e] = widen(scores[int64_t(i) * stride]);
      }
    }
  }
};

// What a block knows of its user. It lies in shared memory, as the registers are needed for scores and counts.
struct RankUser {
  Packs packs;
  int64_t number;  // of the row
  Span positives, excluded;
};

// A block's row of the scores: the arguments of the kernel, and the user.
template <class S>
struct RankRow {
  const RankArgs<S>& a;
  const RankUser& user;

  __device__ __forceinline__ unsigned num_items() const { return static_cast<unsigned>(a.num_items); }
  __device__ __forceinline__ const S* scores() const { return a.scores + user.number * a.row_stride; }
  __device__ __forceinline__ arithmetic_t<S> score(int64_t item) const {
    return widen(scores()[item * a.column_stride]);
  }
  __device__ __forceinline__ int64_t positive(int64_t i) const {
    return AnyItems{a.positive_indices, a.wide}[user.positives.first + i];
  }
  __device__ __forceinline__ int64_t excluded(int64_t i) const {
    return AnyItems{a.excluded_indices, a.wide}[user.excluded.first + i];
  }
  __device__ __forceinline__ bool is_positive(int64_t item) const {
    return AnyItems{a.positive_indices, a.wide}.holds(user.positives, item);
  }
  __device__ __forceinline__ bool is_candidate(int64_t item) const {
    return !AnyItems{a.excluded_indices, a.wide}.holds(user.excluded, item) || is_positive(item);
  }
};

template <class S>
__device__ __forceinline__ void describe_user(const RankArgs<S>& a, int64_t number, RankUser& user) {
  const bool packed = a.column_stride == 1;
  Packs& p = user.packs;
  const uintptr_t address = reinterpret_cast<uintptr_t>(a.scores + number * a.row_stride);
  p.shift = packed ? static_cast<unsigned>(address / sizeof(S) % kRankPack) : 0;
  const int64_t end = a.num_items + p.shift;
  p.count = static_cast<unsigned>((end + kRankPack - 1) / kRankPack);
  p.first = p.shift > 0;
  const int64_t whole = end / kRankPack - p.first;
  p.whole = packed && whole > 0 ? static_cast<unsigned>(whole) : 0;
  user.number = number;
  user.positives = span_of(a.positive_indptr, a.users[number]);
  user.excluded = span_of(a.excluded_indptr, a.users[number]);
}

}  // namespace GPU_NS
}  // namespace zx
