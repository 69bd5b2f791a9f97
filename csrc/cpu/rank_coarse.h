// Scores known to within a bound, for half the work of exact ones: the first sieve of the ranking pass.
//
// Rows of both tables are rounded to 16-bit integers, each row by a scale of its own; sums of their products are exact
// in 32 bits, two multiply-adds a lane. What rounding lost of each row is measured, so that by Cauchy-Schwarz no score
// is further from the exact one than a bound of its user: the order of most items and levels is then certain, and only
// the few scores within the bound of a level, and those that may be among the k best, are computed exactly. Results are
// therefore those of exact scores, bit for bit.
//
// Needs AVX-512 VNNI, whose dot products of integers do two multiply-adds where those of floats do one.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "common/ranking.h"
#include "cpu/rank_scores.h"
#include "cpu/simd.h"

namespace zx::cpu {

constexpr int kCoarseUsers = 12, kCoarseItems = 32;  // rows and columns whose sums fit in registers
constexpr int64_t kLeastCoarseDim = 16, kMostCoarseDim = 4096;

// A key is an item's coarse score and, in the last bits, its place in a tile: one number to compare, move and find.
constexpr int kPlaceBits = 12;
constexpr int64_t kPlaces = int64_t{1} << kPlaceBits;
constexpr double kMostUnits = 1 << (31 - kPlaceBits - 1);
constexpr int32_t kNoKey = std::numeric_limits<int32_t>::min();  // below every other; of what is no candidate

// The least key of a score of n units.
inline int32_t key_of(double n) {
  const double most = kMostUnits * 1.9;
  return static_cast<int32_t>(n < -most ? -most : n > most ? most : n) * static_cast<int32_t>(kPlaces);
}

// A row that was rounded: its integers times `scale` are within `error` (a norm) of it.
struct RoundedRow {
  float scale;
  double norm, error;
  bool usable;  // false where a number is not finite, or is so small or large that products might not be
};

// integers has room up to a multiple of two; the odd one out is zero.
struct RoundRow {
  // The norms of two rows stay below the square root of 2^31, so that no sum of products overflows; a little is left
  // for the rounding of the norm itself.
  static constexpr double kNorm = 46336, kLargest = 32767;
  static constexpr int kLanes = 16;

  ZX_HD static RoundedRow run(const float* row, int64_t dim, int16_t* integers) {
    const int64_t whole = dim / kLanes * kLanes;
    float squares[kLanes] = {}, largest[kLanes] = {}, lost[kLanes] = {};
    const auto measure = [&](float x, int64_t l) {
      squares[l] += x * x;
      const float size = std::fabs(x);
      largest[l] = size > largest[l] ? size : largest[l];
    };
    for (int64_t d = 0; d < whole; d += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) measure(row[d + l], l);
    for (int64_t d = whole; d < dim; ++d) measure(row[d], d - whole);
    double square = 0, most = 0;
    for (int l = 0; l < kLanes; ++l) square += squares[l], most = std::max(most, static_cast<double>(largest[l]));
    const double norm = std::sqrt(square);
    // Rounding may lengthen a row by half a unit a coordinate.
    const double scale = std::max(norm / (kNorm - std::sqrt(static_cast<double>(dim))), most / kLargest);
    if (!(scale > 1e-16 && norm < 1e15)) {
      std::memset(integers, 0, sizeof(int16_t) * static_cast<size_t>((dim + 1) / 2 * 2));
      return {0, 0, 0, most == 0 && norm == 0};
    }
    const float unit = static_cast<float>(scale), inverse = 1 / unit;
    const auto round = [&](float x, int64_t l) {
      const float scaled = x * inverse;
      int32_t n = static_cast<int32_t>(scaled + (scaled < 0 ? -0.5f : 0.5f));
      n = n < -32767 ? -32767 : n > 32767 ? 32767 : n;
      const float left = x - static_cast<float>(n) * unit;
      lost[l] += left * left;
      return static_cast<int16_t>(n);
    };
    for (int64_t d = 0; d < whole; d += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) integers[d + l] = round(row[d + l], l);
    for (int64_t d = whole; d < dim; ++d) integers[d] = round(row[d], d - whole);
    if (dim % 2 != 0) integers[dim] = 0;
    double all = 0;
    for (int l = 0; l < kLanes; ++l) all += lost[l];
    // The difference from the row is itself rounded, to a part in 2^24 of the coordinate.
    return {unit, norm, 1.001 * std::sqrt(all) + 1.5e-7 * norm, true};
  }
};

// What the bounds of scores need to know of a table's rounded rows.
struct RoundedTable {
  double norm = 0, error = 0, bias = 0;  // the largest norm, error as a share of the norm, and size of a bias
  bool usable = true;

  void add(const RoundedRow& row) {
    norm = std::max(norm, row.norm);
    if (row.norm > 0) error = std::max(error, row.error / row.norm);
    usable = usable && row.usable;
  }
  void add_bias(float x) {
    usable = usable && std::fabs(x) < 1e30f;  // NaN is not
    bias = std::max(bias, static_cast<double>(std::fabs(x)));
  }
  void add(const RoundedTable& other) {
    norm = std::max(norm, other.norm);
    error = std::max(error, other.error);
    bias = std::max(bias, other.bias);
    usable = usable && other.usable;
  }
};

// A user's scores as whole numbers of units: the exact score of an item is within slope * (its norm) + least units of
// the coarse one, and of every item within `all`.
struct ScoreBound {
  double unit;
  float slope, least, all;
};

// |p q - p' q'| is at most |p - p'| |q| + |p'| |q - q'|. Besides, the dim + 1 operations of the exact score and the few
// of the coarse one may each be wrong by one part in 2^24 of at most |p| |q| + |bias|, and by what underflow loses; and
// rounding to a unit by half of one.
inline ScoreBound score_bound(const RoundedRow& user, const RoundedTable& items, int64_t dim) {
  const double rounding = static_cast<double>(dim + 16) * std::ldexp(1.0, -24), length = user.norm + user.error;
  const double slope = 1.001 * (user.error + length * (items.error + rounding * (1 + items.error)));
  const double least = 1.001 * rounding * items.bias + 1e-36;
  const double largest = length * items.norm * (1 + items.error) + items.bias;
  // A unit costs little of what is certain, and all scores are less than kMostUnits. (The last is for tables of zeros
  // alone: the user's scale in units has to be finite.)
  const double unit = std::max({(slope * items.norm + least) / 8, 1.01 * largest / kMostUnits, 1e-20 * length});
  return {unit, static_cast<float>(1.001 * slope / unit), static_cast<float>(1.001 * least / unit + 0.501),
          static_cast<float>(1.002 * (slope * items.norm + least) / unit + 0.501)};
}

#if ZX_X86

// Scales of a user: out is (sum * item scale * user_scale + bias * bias_scale), rounded, in units.
struct CoarseScale {
  float user, bias;
};

// Keys out[u * stride + i] for kCoarseUsers users a panel and kCoarseItems items a panel. A panel has, for every two
// coordinates, the pairs of integers of its rows.
ZX_TARGET_AVX512 inline void coarse_tile(const int32_t* users, const CoarseScale* user_scale, int64_t user_panels,
                                         const int32_t* items, const float* item_scale, const float* bias,
                                         int64_t item_panels, int64_t pairs, int32_t* out, int64_t stride) {
  for (int64_t p = 0; p < item_panels; ++p) {
    const int32_t* item = items + p * pairs * kCoarseItems;
    const float *scale = item_scale + p * kCoarseItems, *shift = bias + p * kCoarseItems;
    const __m512 scales[2] = {_mm512_loadu_ps(scale), _mm512_loadu_ps(scale + 16)};
    const __m512 shifts[2] = {_mm512_loadu_ps(shift), _mm512_loadu_ps(shift + 16)};
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i place[2] = {_mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(p * kCoarseItems))),
                              _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(p * kCoarseItems + 16)))};
    for (int64_t q = 0; q < user_panels; ++q) {
      const int32_t* user = users + q * pairs * kCoarseUsers;
      __m512i sum[kCoarseUsers][2];
#pragma GCC unroll 16
      for (int u = 0; u < kCoarseUsers; ++u) sum[u][0] = sum[u][1] = _mm512_setzero_si512();
      for (int64_t d = 0; d < pairs; ++d) {
        const __m512i left = _mm512_load_si512(item + d * kCoarseItems);
        const __m512i right = _mm512_load_si512(item + d * kCoarseItems + 16);
#pragma GCC unroll 16
        for (int u = 0; u < kCoarseUsers; ++u) {
          const __m512i x = _mm512_set1_epi32(user[d * kCoarseUsers + u]);
          // (As intrinsics some compilers keep the sums in memory: twice the time. And those want a target with VNNI.)
          asm("vpdpwssd %2, %1, %0" : "+v"(sum[u][0]) : "v"(x), "v"(left));
          asm("vpdpwssd %2, %1, %0" : "+v"(sum[u][1]) : "v"(x), "v"(right));
        }
      }
      int32_t* to = out + q * kCoarseUsers * stride + p * kCoarseItems;
#pragma GCC unroll 16
      for (int u = 0; u < kCoarseUsers; ++u) {
        const __m512 unit = _mm512_set1_ps(user_scale[q * kCoarseUsers + u].user);
        const __m512 bias_unit = _mm512_set1_ps(user_scale[q * kCoarseUsers + u].bias);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[u][h]), _mm512_mul_ps(unit, scales[h]),
                                               _mm512_mul_ps(bias_unit, shifts[h]));
          _mm512_storeu_si512(to + u * stride + 16 * h,
                              _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtps_epi32(score), kPlaceBits), place[h]));
        }
      }
    }
  }
}

// Keys, and room for 16 more.
struct KeyList {
  int32_t* key;
  int64_t size;
};

ZX_TARGET_AVX512 inline __mmask16 entries_at(const KeyList& list, int64_t i) {
  return list.size - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (list.size - i)) - 1);
}

// A number that at least k of the keys reach, and not many more if they differ; there are at least k.
ZX_TARGET_AVX512 inline int32_t reached_of(const KeyList& list, int64_t k) {
  int32_t low = list.key[0], high = low;
  for (int64_t i = 1; i < list.size; ++i) {
    low = list.key[i] < low ? list.key[i] : low;
    high = list.key[i] > high ? list.key[i] : high;
  }
  for (int step = 0; step < 12; ++step) {
    const int32_t middle = low / 2 + high / 2;
    int64_t reaching = 0;
    for (int64_t i = 0; i < list.size; i += 16)
      reaching += __builtin_popcount(_mm512_mask_cmpge_epi32_mask(entries_at(list, i), _mm512_loadu_si512(list.key + i),
                                                                  _mm512_set1_epi32(middle)));
    (reaching >= k ? low : high) = middle;
  }
  return low;
}

// The same of a row of n keys, a multiple of 64, of which some may be none: by the largest of 128 parts of the row.
// kNoKey where this tells nothing.
ZX_TARGET_AVX512 inline int32_t reached_by(const int32_t* row, int64_t n, int64_t k) {
  constexpr int64_t kSpans = 128;
  if (k > kSpans || n < 4 * kSpans) return kNoKey;
  int32_t largest[kSpans + 16];
  __m512i most[kSpans / 16];
  for (__m512i& x : most) x = _mm512_set1_epi32(kNoKey);
  for (int64_t i = 0; i + kSpans <= n; i += kSpans)
#pragma GCC unroll 8
    for (int64_t l = 0; l < kSpans / 16; ++l) most[l] = _mm512_max_epi32(most[l], _mm512_loadu_si512(row + i + 16 * l));
  int64_t size = 0;
  for (const __m512i& x : most) {
    const __mmask16 some = _mm512_cmpneq_epi32_mask(x, _mm512_set1_epi32(kNoKey));
    _mm512_storeu_si512(largest + size, _mm512_maskz_compress_epi32(some, x));
    size += __builtin_popcount(some);
  }
  return size >= k ? reached_of({largest, size}, k) : kNoKey;
}

// Appends to scores (keys without places) and items what reaches `from` of a row or list.
ZX_TARGET_AVX512 inline int64_t append_from(const KeyList& list, int32_t from, int64_t first_item, int32_t* scores,
                                            int32_t* items, int64_t size) {
  const __m512i bar = _mm512_set1_epi32(from), place = _mm512_set1_epi32(static_cast<int32_t>(kPlaces - 1));
  for (int64_t i = 0; i < list.size; i += 16) {
    const __m512i key = _mm512_loadu_si512(list.key + i);
    const __mmask16 reach = _mm512_mask_cmpge_epi32_mask(entries_at(list, i), key, bar);
    if (reach == 0) continue;
    const __m512i item =
        _mm512_add_epi32(_mm512_and_si512(key, place), _mm512_set1_epi32(static_cast<int32_t>(first_item)));
    _mm512_storeu_si512(scores + size, _mm512_maskz_compress_epi32(reach, _mm512_andnot_si512(place, key)));
    _mm512_storeu_si512(items + size, _mm512_maskz_compress_epi32(reach, item));
    size += __builtin_popcount(reach);
  }
  return size;
}

// Keeps of scores and their items, in place, those that reach `from`; returns how many.
ZX_TARGET_AVX512 inline int64_t keep_from(int32_t* scores, int32_t* items, int64_t n, int32_t from) {
  int64_t size = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i score = _mm512_loadu_si512(scores + i), item = _mm512_loadu_si512(items + i);
    const __mmask16 reach = _mm512_mask_cmpge_epi32_mask(entries_at({scores, n}, i), score, _mm512_set1_epi32(from));
    _mm512_storeu_si512(scores + size, _mm512_maskz_compress_epi32(reach, score));
    _mm512_storeu_si512(items + size, _mm512_maskz_compress_epi32(reach, item));
    size += __builtin_popcount(reach);
  }
  return size;
}

// A level of a user: its number, its score in units, and what tells which items are certainly on one side of it.
struct CoarseLevel {
  int64_t number;
  double units;
  const ScoreBound* bound;
  const float* norm;  // of the tile's items

  // Keys from which on scores are certainly above, and below which they are certainly below.
  int32_t above() const { return key_of(std::floor(units + static_cast<double>(bound->all)) + 1); }
  int32_t reach() const { return key_of(std::ceil(units - static_cast<double>(bound->all))); }
};

// Places of items whose side of a level is uncertain, and that level's number.
struct Doubts {
  int32_t *place, *level;
  int64_t size;
};

// Of keys that are near the level: which are certainly above it, by their own norms, and which may be; what may be and
// is not certain is a doubt.
ZX_TARGET_AVX512 __attribute__((noinline)) inline void compare_near(const int32_t* keys, const CoarseLevel& level,
                                                                    __mmask16* above, __mmask16* reach,
                                                                    Doubts* doubts) {
  const __m512i key = _mm512_loadu_si512(keys);
  const __mmask16 near = *reach & ~*above;
  const __m512i place = _mm512_and_si512(key, _mm512_set1_epi32(static_cast<int32_t>(kPlaces - 1)));
  const __m512 norm = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), near, place, level.norm, sizeof(float));
  const __m512 error = _mm512_fmadd_ps(_mm512_set1_ps(level.bound->slope), norm, _mm512_set1_ps(level.bound->least));
  // (Less than 2^20 units: differences are exact to a sixteenth of a unit, which the bound's last decimals cover.)
  const __m512 distance = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(key, kPlaceBits)),
                                        _mm512_set1_ps(static_cast<float>(level.units)));
  const __m512 safe = _mm512_add_ps(error, _mm512_set1_ps(0.25f));
  *above |= _mm512_mask_cmp_ps_mask(near, distance, safe, _CMP_GT_OQ);
  *reach &= ~_mm512_mask_cmp_ps_mask(near, distance, _mm512_sub_ps(_mm512_setzero_ps(), safe), _CMP_LT_OQ);
  const __mmask16 doubtful = *reach & ~*above;
  _mm512_storeu_si512(doubts->place + doubts->size, _mm512_maskz_compress_epi32(doubtful, place));
  _mm512_storeu_si512(doubts->level + doubts->size, _mm512_set1_epi32(static_cast<int32_t>(level.number)));
  doubts->size += __builtin_popcount(doubtful);
}

// The same of the sixteen entries at i of a list, of which few are near.
struct CompareKeys {
  const KeyList& list;
  const CoarseLevel& level;
  Doubts* doubts;
  int32_t high = level.above(), low = level.reach();

  ZX_TARGET_AVX512 void operator()(int64_t i, __mmask16* above, __mmask16* reach) const {
    const __m512i key = _mm512_loadu_si512(list.key + i);
    const __mmask16 there = entries_at(list, i);
    *above = _mm512_mask_cmpge_epi32_mask(there, key, _mm512_set1_epi32(high));
    *reach = _mm512_mask_cmpge_epi32_mask(there, key, _mm512_set1_epi32(low));
    if (__builtin_expect(*above != *reach, 0)) compare_near(list.key + i, level, above, reach, doubts);
  }
};

ZX_TARGET_AVX512 inline int64_t append_keys(const __m512i& key, __mmask16 which, int32_t* to, int64_t size) {
  _mm512_storeu_si512(to + size, _mm512_maskz_compress_epi32(which, key));
  return size + __builtin_popcount(which);
}

// Lists in `to` what reaches `from` of a row of n keys, a multiple of 16.
ZX_TARGET_AVX512 inline void list_from(const int32_t* row, int64_t n, int32_t from, KeyList* to) {
  to->size = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i key = _mm512_loadu_si512(row + i);
    to->size = append_keys(key, _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(from)), to->key, to->size);
  }
}

// Lists in `to`, which may be the list itself, what is certainly above the level; returns how many are certainly below.
ZX_TARGET_AVX512 inline int64_t keep_above(const KeyList& list, const CoarseLevel& level, KeyList* to, Doubts* doubts) {
  const CompareKeys compare{list, level, doubts};
  const int64_t n = list.size, doubted = doubts->size;
  int64_t size = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i key = _mm512_loadu_si512(list.key + i);
    __mmask16 above, reach;
    compare(i, &above, &reach);
    size = append_keys(key, above, to->key, size);
  }
  to->size = size;
  return n - size - (doubts->size - doubted);
}

// The same of a list of which nothing but its size is wanted any more.
ZX_TARGET_AVX512 inline int64_t count_above(KeyList* list, const CoarseLevel& level, Doubts* doubts) {
  const CompareKeys compare{*list, level, doubts};
  const int64_t n = list->size, doubted = doubts->size;
  int64_t size = 0;
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 above, reach;
    compare(i, &above, &reach);
    size += __builtin_popcount(above);
  }
  list->size = size;
  return n - size - (doubts->size - doubted);
}

// Splits a list into what is certainly below the level, which stays, and what is certainly above.
ZX_TARGET_AVX512 inline void split(KeyList* list, const CoarseLevel& level, KeyList* upper, Doubts* doubts) {
  const CompareKeys compare{*list, level, doubts};
  int64_t below = 0, over = 0;
  for (int64_t i = 0; i < list->size; i += 16) {
    const __m512i key = _mm512_loadu_si512(list->key + i);
    __mmask16 above, reach;
    compare(i, &above, &reach);
    below = append_keys(key, entries_at(*list, i) & ~reach, list->key, below);
    over = append_keys(key, above, upper->key, over);
  }
  list->size = below, upper->size = over;
}

#endif

}  // namespace zx::cpu
