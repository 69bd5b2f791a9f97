// A training step of matrix factorization on the GPU with the semantics of a mini-batch, as csrc/cpu/mf_exact.h has it
// on the CPU: gather, scores, loss, gradients and update, in place.
//
//   1. The batch's positions are sorted by the rows that they name (batch_sort.cuh).
//   2. The users' pass goes through the samples in the order of users: P_u in registers, each row of items read once;
//      scores, loss, derivatives ("coefficients", left in memory for 3), and the sum of the user's gradient.
//   3. The items' pass goes through the positions of items and sums derivative times P_u. Nobody reads the row any
//      more, which is updated at once.
//   4. The end: users' rows, and what could not be finished before.
//
// Passes take the sorted positions in chunks of a fixed number, a group of threads (rows.cuh) to a chunk. A row whose
// positions lie in one chunk is finished there. Of one that crosses a chunk's edge each chunk leaves its part in
// memory, and the end adds them up, in order: how often a row occurs makes no difference to how the work is dealt out.
// There are no atomics on floats, and nothing depends on the number of multiprocessors: the same bits each time and on
// every GPU.
//
// Where scores are cosines the rows are scaled to length 1 as they are loaded, and what a chunk has summed up goes
// through that: the derivatives in a row are linear in those in its direction, so parts still add up.
//
// Dense Adam moves all rows: its items' pass keeps the sums, and the end goes through the tables. So do rows too long
// for a group's registers.
//
// Samples that share lists of negatives have a pass of their own in the place of the users' (mf_shared.cuh), before the
// sort. It leaves derivatives in rows, and the pass that follows sums those of users and of items at once.
#pragma once

#include "common/cosines.h"
#include "cuda/batch_sort.cuh"
#include "cuda/mf_shared.cuh"
#include "cuda/rows.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kStepThreads = 256;
constexpr int kStepColumns = 4;             // rows of items, or of users, that are on their way together
constexpr int kStepPack = 4;                // elements of an access where rows are aligned
constexpr unsigned kMostChunk = 32;         // positions of a chunk
constexpr int64_t kEnoughChunks = 1 << 12;  // below which they are made shorter
constexpr unsigned kLongParts = 64;         // parts of a row's sum from which on a whole block adds them up

struct StepTable {
  float *values, *m, *v;  // [rows, dim]; m and v are null where the optimizer has no such state
  unsigned rows;
  bool wanted;
};

// Where rows' sums are until the end takes them.
struct StepSums {
  float* whole;    // [slots, dim], of rows within a chunk
  float* parts;    // [chunks, 2, dim]: of the row that came in from the chunk before, and of the one that goes on
  bool by_row;     // whether a slot is a row of the table, or the sorted position where the row begins
  unsigned chunk;  // positions of a chunk; 0 where their number decides, which the device alone knows
  unsigned first;  // where this side begins among the sorted positions
  unsigned size;   // positions, or as many as there may be
  unsigned first_key;
  unsigned* begins;  // [rows], dense Adam alone: 1 + the row's first place on this side, or 0

  ZX_HD unsigned chunks() const { return (size + chunk - 1) / chunk; }
};

// What the pass over shared negatives leaves, as BlockArgs names it; coefficient is then of what samples do not share.
struct SharedLeft {
  const float* positive;
  float* rows;  // derivatives in users, then those in lists' items
  const float* list_bias;
};

struct StepArgs {
  StepTable user, item, bias;
  const float* constants;  // [num_items] or null: what a loss takes beside each item
  const float* weight;     // [samples] or null
  int dim, width;
  BatchKeys ids;
  const unsigned *keys, *order;
  StepSums by_user, by_item;
  float *bias_whole, *bias_parts;  // as by_item's, of one element
  float* coefficient;              // [samples, J]
  float* user_scale;               // [samples], of cosines: what the user's row is multiplied by
  SharedLeft shared;
  const UpdateRule* rules;  // [3]
  double* partials;         // of the users' pass, a block each
  unsigned partial_count;
  double *value, *total;  // one number each: the reduced loss, and what its sum over samples is added to, or null
  Params<float> params;
  float scale, decay, longest, log_cols;
  double value_scale, total_scale;
  bool stored;  // the items' pass keeps its sums
  bool wide;    // rows do not fit into a group's registers
  bool cosines;
};

// Positions of a chunk: a power of two, so many that there are enough chunks, and that it has no more than kMostChunk
// rows to read.
ZX_HD unsigned chunk_of(int64_t positions, int64_t rows_each) {
  unsigned chunk = 1;
  while (2 * chunk * rows_each <= kMostChunk && positions >= 2 * kEnoughChunks * chunk) chunk *= 2;
  return chunk;
}

// A side, with the number of its positions.
__device__ __forceinline__ StepSums side_of(const StepArgs& a, bool users) {
  StepSums side = users ? a.by_user : a.by_item;
  if (users || a.ids.lists == nullptr) return side;
  side.size = a.ids.count(0) - a.ids.samples;
  if (side.chunk == 0) side.chunk = chunk_of(side.size, 1);
  return side;
}

// ---- groups of threads ----------------------------------------------------------------------------------------------

// All lanes of a warp take part in what groups say to each other, with or without work of their own: masks of parts of
// a warp differ from lane to lane, and the hardware would take one after the other.
struct Group {
  int width, lane;

  __device__ __forceinline__ explicit Group(int group_width) : width(group_width), lane(threadIdx.x % group_width) {}
  template <class T>
  __device__ __forceinline__ T get(T v, int from) const {
    return __shfl_sync(kFullWarp, v, from, width);
  }
  __device__ __forceinline__ float sum(float v) const { return warp_combine(v, width, Add{}); }
};

// The part of a row that is in a lane's registers: two accesses of N elements, of the piece that begins at column c0.
template <int N>
using Piece = Sums<N, float>;

template <int N>
__device__ __forceinline__ int column(const Group& g, int c0, int q) {
  return c0 + (q * g.width + g.lane) * N;
}
template <int N>
__device__ __forceinline__ int piece_size(const Group& g) {
  return 2 * g.width * N;
}

template <int N>
__device__ __forceinline__ Piece<N> load_piece(const Group& g, int dim, const float* row, int c0 = 0) {
  Piece<N> x;
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int c = column<N>(g, c0, q);
    Pack<float, N> pack = {};
    if (c < dim) pack = load_pack<float, N>(row + c);
#pragma unroll
    for (int n = 0; n < N; ++n) x.v[q][n] = pack.v[n];
  }
  return x;
}
template <int N>
__device__ __forceinline__ void store_piece(const Group& g, int dim, float* row, const Piece<N>& x, int c0 = 0) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int c = column<N>(g, c0, q);
    if (c >= dim) continue;
    Pack<float, N> pack;
#pragma unroll
    for (int n = 0; n < N; ++n) pack.v[n] = x.v[q][n];
    store_pack(row + c, pack);
  }
}
template <int N>
__device__ __forceinline__ float dot_piece(const Piece<N>& x, const Piece<N>& y) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) sum += x.v[e / N][e % N] * y.v[e / N][e % N];
  return sum;
}
template <int N>
__device__ __forceinline__ void add_piece(Piece<N>& to, float factor, const Piece<N>& x) {
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) to.v[e / N][e % N] += factor * x.v[e / N][e % N];
}
template <int N>
__device__ __forceinline__ void scale_piece(Piece<N>& x, float factor) {
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) x.v[e / N][e % N] *= factor;
}

// What a gradient of this squared norm is multiplied by, so that it is no longer than `longest` (if > 0).
__device__ __forceinline__ float clip_factor(float squares, float longest) {
  const float norm = sqrtf(squares);
  return norm > longest ? longest / norm : 1.0f;
}

// An optimizer's step on a piece of a row, whose values are in `p`.
template <Optimizer kKind, int N>
__device__ __forceinline__ void update_piece(const Group& g, int dim, const UpdateRule& rule, const StepTable& table,
                                             unsigned row, const Piece<N>& gradient, Piece<N> p, int c0 = 0) {
  const int64_t at = int64_t{row} * dim;
  constexpr bool kFirst = kKind == Optimizer::kAdam || kKind == Optimizer::kLazyAdam;
  constexpr bool kSecond = kKind != Optimizer::kSgd;
  Piece<N> m = {}, v = {};
  if constexpr (kFirst) m = load_piece<N>(g, dim, table.m + at, c0);
  if constexpr (kSecond) v = load_piece<N>(g, dim, table.v + at, c0);
#pragma unroll
  for (int e = 0; e < 2 * N; ++e)
    update_element<kKind>(rule, gradient.v[e / N][e % N], p.v[e / N][e % N], m.v[e / N][e % N], v.v[e / N][e % N]);
  store_piece<N>(g, dim, table.values + at, p, c0);
  if constexpr (kFirst) store_piece<N>(g, dim, table.m + at, m, c0);
  if constexpr (kSecond) store_piece<N>(g, dim, table.v + at, v, c0);
}

template <Optimizer kKind>
__device__ __forceinline__ void update_bias(const StepArgs& a, unsigned row, float gradient) {
  if (a.longest > 0) gradient = gradient > a.longest ? a.longest : gradient < -a.longest ? -a.longest : gradient;
  float m = 0, v = 0;
  if constexpr (kKind == Optimizer::kAdam || kKind == Optimizer::kLazyAdam) m = a.bias.m[row];
  if constexpr (kKind != Optimizer::kSgd) v = a.bias.v[row];
  update_element<kKind>(a.rules[2], gradient, a.bias.values[row], m, v);
  if constexpr (kKind == Optimizer::kAdam || kKind == Optimizer::kLazyAdam) a.bias.m[row] = m;
  if constexpr (kKind != Optimizer::kSgd) a.bias.v[row] = v;
}

// A chunk of one side, and what its edges cut through. One whose number is too high is empty.
struct Chunk {
  unsigned number, begin, end;  // sorted positions, counted from where the side begins
  const unsigned* keys;         // of the side

  __device__ __forceinline__ Chunk(const StepArgs& a, const StepSums& s, unsigned chunk_number)
      : number(chunk_number), keys(a.keys + s.first) {
    const bool exists = number < s.chunks();
    begin = exists ? number * s.chunk : 0;
    end = !exists ? 0 : s.size - begin < s.chunk ? s.size : begin + s.chunk;
  }
  // Whether the row at the chunk's beginning, or at its end, lies in the neighbouring chunk as well.
  __device__ __forceinline__ bool comes_in() const { return begin > 0 && keys[begin - 1] == keys[begin]; }
  __device__ __forceinline__ bool goes_on(const StepSums& s) const {
    return end > 0 && end < s.size && keys[end - 1] == keys[end];
  }
};

__device__ __forceinline__ unsigned row_of(const StepSums& s, const StepTable& table, unsigned key) {
  const unsigned row = key - s.first_key;
  return row < table.rows ? row : kNone;
}

// Where a row's sum goes, or this chunk's part of it.
__device__ __forceinline__ int64_t slot_of(const StepSums& s, unsigned row, unsigned first) {
  return s.by_row ? row : first;
}
__device__ __forceinline__ int64_t part_of(unsigned chunk, bool came_in) {
  return int64_t{chunk} * 2 + (came_in ? 0 : 1);
}

// ---- the users' pass ------------------------------------------------------------------------------------------------

// Whether rows do not fit into a group's registers: they and their gradients then stay in memory. (Accesses are of
// single elements then, which costs nothing: 32 lanes read a line.)
template <int N>
__device__ __forceinline__ bool is_wide(const StepArgs& a) {
  return N == 1 && a.wide;
}

// What a group knows of the user whose samples it goes through.
template <int N>
struct UserRow {
  unsigned row;  // kNone where there is none: what is computed with it is NaN
  const float* values;
  Piece<N> p, gradient;
  float scale;  // of cosines: p is the row times this
  float* sum;   // where the gradient goes, or null where it is not wanted
  bool fresh;   // nothing is there yet
};

// This lane's part of the user's product with a row of items, which is kept.
template <int N>
__device__ __forceinline__ float dot_part(const StepArgs& a, const Group& g, const UserRow<N>& user, const float* row,
                                          Piece<N>& kept) {
  if (is_wide<N>(a)) {
    float sum = 0;
    for (int c = g.lane; c < a.dim; c += g.width) sum += user.values[c] * row[c];
    return sum;
  }
  kept = load_piece<N>(g, a.dim, row);
  if (a.cosines) scale_piece<N>(kept, inverse_length(g.sum(dot_piece<N>(kept, kept))));
  return dot_piece<N>(user.p, kept);
}

__device__ __forceinline__ const float* item_row(const StepArgs& a, unsigned item) {
  return a.item.values + int64_t{item == kNone ? 0 : item} * a.dim;
}
template <int N>
__device__ __forceinline__ float score_of(const StepArgs& a, const UserRow<N>& user, float product, unsigned item) {
  if (user.row == kNone || item == kNone) return NAN;
  return a.bias.values != nullptr ? product + a.bias.values[item] : product;
}
__device__ __forceinline__ float constant_of(const StepArgs& a, unsigned item) {
  return a.constants != nullptr && item != kNone ? a.constants[item] : 0.0f;
}
__device__ __forceinline__ unsigned item_of(const StepArgs& a, unsigned sample, unsigned j) {
  const unsigned item = BatchKeys::in_range(a.ids.item_id(sample, j), a.item.rows);
  return item < a.item.rows ? item : kNone;
}

// Of a wide row: the sample's part of the user's gradient, from the coefficients that the group has stored.
template <int N>
__device__ __forceinline__ void add_wide(const StepArgs& a, const Group& g, UserRow<N>& user, unsigned sample,
                                         bool live) {
  __syncwarp();
  if (!live || user.sum == nullptr) return;
  const unsigned items = a.ids.items.divisor;
  const float* const factors = a.coefficient + int64_t{sample} * items;
  for (int c = g.lane; c < a.dim; c += g.width) {
    float sum = user.fresh ? 0.0f : user.sum[c];
    for (unsigned j = 0; j < items; ++j) sum += factors[j] * item_row(a, item_of(a, sample, j))[c];
    user.sum[c] = sum;
  }
  user.fresh = false;
}

// A sample of a loss that looks at all its items at once: as many positives as negatives. scale: of the derivatives.
// Returns the loss.
template <class Loss, int N>
__device__ __forceinline__ float one_sample(const StepArgs& a, const Group& g, UserRow<N>& user, unsigned sample,
                                            const unsigned (&items)[Loss::kScores], float scale, bool live) {
  constexpr int kItems = Loss::kScores;
  Piece<N> q[kItems];
  float s[kItems], x[Loss::kAux + 1], d[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) s[j] = dot_part<N>(a, g, user, item_row(a, items[j]), q[j]);
#pragma unroll
  for (int j = 0; j < kItems; ++j) s[j] = score_of(a, user, g.sum(s[j]), items[j]);
#pragma unroll
  for (int j = 0; j < Loss::kAux; ++j) x[j] = constant_of(a, items[j]);
  const float value = Loss::eval(s, x, a.params, d);
  Pack<float, kItems> out;
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    out.v[j] = scale * d[j];
    if (!is_wide<N>(a)) add_piece<N>(user.gradient, out.v[j], q[j]);
  }
  if (live && g.lane == 0) store_pack(a.coefficient + int64_t{sample} * kItems, out);
  if (is_wide<N>(a)) add_wide<N>(a, g, user, sample, live);
  return value;
}

// The running sums over a row's negatives: of exponentials of the logits, of these times the logits' derivatives, and
// of these times the negatives' rows, all relative to the largest logit so far. (With kHardMax: its row alone; with
// kMean: of the logits, of their derivatives, and of these times the rows.)
template <int N>
struct RowSums {
  float top, sum, slopes;
  unsigned hardest;
  Piece<N> rows;
};

// A sample with k negatives, whose rows come kStepColumns at a time; lane m of each kStepColumns looks after number m.
template <class Loss, int N>
__device__ __forceinline__ float many_negatives(const StepArgs& a, const Group& g, UserRow<N>& user, unsigned sample,
                                                unsigned positive, float scale, bool live) {
  constexpr bool kRow = ElementScores<Loss>::value == 0;
  const unsigned k = a.ids.num_negatives;
  const int own = g.lane % kStepColumns;
  float* const scores = a.coefficient + int64_t{sample} * (k + 1) + 1;
  const int64_t* const negatives = a.ids.negatives + int64_t{sample} * k;
  Piece<N> q_positive;
  const float p = score_of(a, user, g.sum(dot_part<N>(a, g, user, item_row(a, positive), q_positive)), positive);
  const float x_p = constant_of(a, positive);
  float d_pos = 0, total = 0;
  RowSums<N> r = {-INFINITY, 0, 0, 0, {}};
  for (unsigned j0 = 0; j0 < k; j0 += g.width) {
    unsigned mine = kNone;
    if (live && j0 + g.lane < k) {
      mine = BatchKeys::in_range(negatives[j0 + g.lane], a.item.rows);
      if (mine >= a.item.rows) mine = kNone;
    }
    const unsigned count = k - j0 < unsigned(g.width) ? k - j0 : g.width;
    for (unsigned i = 0; i < count; i += kStepColumns) {
      Piece<N> q[kStepColumns];
      float s[kStepColumns], score = 0;
#pragma unroll
      for (int m = 0; m < kStepColumns; ++m) s[m] = dot_part<N>(a, g, user, item_row(a, g.get(mine, i + m)), q[m]);
#pragma unroll
      for (int m = 0; m < kStepColumns; ++m) {
        const float product = g.sum(s[m]);
        if (own == m) score = product;
      }
      const unsigned item = g.get(mine, i + own);
      const bool counts = i + own < count;
      score = score_of(a, user, score, item);
      const float x = constant_of(a, item);
      const unsigned at = j0 + i + own;
      float factor;  // of this lane's row in the user's gradient
      if constexpr (!kRow) {
        const float pair[2] = {p, score}, constants[2] = {x_p, x};
        float d[2];
        const float value = Loss::eval(pair, constants, a.params, d);
        factor = counts ? scale * d[1] : 0.0f;
        d_pos += counts ? scale * d[0] : 0.0f;
        if (live && counts && g.lane < kStepColumns) {
          total += value;
          scores[at] = factor;
        }
#pragma unroll
        for (int m = 0; m < kStepColumns; ++m) {
          const float f = g.get(factor, m);
          if (!is_wide<N>(a) && i + m < count) add_piece<N>(user.gradient, f, q[m]);
        }
      } else {
        const Logit<float> l = Loss::logit(p, score, x, a.params);
        if (live && counts && g.lane < kStepColumns) scores[at] = score;
        if constexpr (Loss::kHardMax) {
#pragma unroll
          for (int m = 0; m < kStepColumns; ++m) {
            const float z = g.get(l.z, m);
            if (i + m >= count) continue;
            r.sum += z == z ? 0.0f : z;  // NaN where a logit is
            if (z > r.top || j0 + i + m == 0) {
              r.top = z == z ? z : r.top, r.hardest = j0 + i + m;
              r.rows = q[m];
            }
          }
        } else if constexpr (Loss::kMean) {
          factor = counts ? l.dn : 0.0f;
          r.sum += counts ? l.z : 0.0f, r.slopes += factor;
#pragma unroll
          for (int m = 0; m < kStepColumns; ++m) {
            const float f = g.get(factor, m);
            if (!is_wide<N>(a) && i + m < count) add_piece<N>(r.rows, f, q[m]);
          }
        } else {
          const float z = counts ? l.z : -INFINITY;
          float top = z == z ? z : -INFINITY;
          top = warp_combine(top, kStepColumns, Larger{});
          top = top > r.top ? top : r.top;
          const float shift = top == -INFINITY ? 0.0f : top;  // (a logit of minus infinity masks its item)
          const float before = exp_nonpositive(r.top - shift);
          const float e = counts ? exp_nonpositive(z - shift) : 0.0f;
          factor = e * l.dn;
          r.sum = r.sum * before + e, r.slopes = r.slopes * before + (counts ? factor : 0.0f);
          r.top = top;
          if (!is_wide<N>(a)) scale_piece<N>(r.rows, before);
#pragma unroll
          for (int m = 0; m < kStepColumns; ++m) {
            const float f = g.get(factor, m);
            if (!is_wide<N>(a) && i + m < count) add_piece<N>(r.rows, f, q[m]);
          }
        }
      }
    }
  }
  if constexpr (!kRow) {
    d_pos = warp_combine(d_pos, kStepColumns, Add{});
    total = warp_combine(total, kStepColumns, Add{});
  } else {
    const bool empty = !Loss::kMean && r.top == -INFINITY;
    const float shift = empty ? 0.0f : r.top;
    if constexpr (!Loss::kHardMax) {
      r.sum = warp_combine(r.sum, kStepColumns, Add{});
      r.slopes = warp_combine(r.slopes, kStepColumns, Add{});
    }
    const float share = 1.0f / static_cast<float>(k);
    float combined;
    if constexpr (Loss::kMean)
      combined = r.sum * share;
    else
      combined = r.top + (Loss::kHardMax ? r.sum : (empty ? r.sum - r.sum : log_(r.sum)));
    const RowValue<float> f = Loss::finish(p, x_p, combined, a.log_cols, a.params);
    float factor = scale * f.dl;
    if constexpr (Loss::kMean)
      factor *= share;
    else if constexpr (!Loss::kHardMax)
      factor = empty ? 0.0f : factor / r.sum;
    total = f.value;
    d_pos = scale * f.dp - (Loss::kPositiveInLogit ? factor * r.slopes : 0.0f);
    if (!is_wide<N>(a)) add_piece<N>(user.gradient, factor, r.rows);
    // Scores become coefficients. Other lanes have stored them.
    __syncwarp();
    for (unsigned j = g.lane; live && j < k; j += g.width) {
      if constexpr (Loss::kHardMax) {
        scores[j] = j == r.hardest ? factor : 0.0f;
      } else {
        const Logit<float> l = Loss::logit(p, scores[j], constant_of(a, item_of(a, sample, 1 + j)), a.params);
        scores[j] = Loss::kMean ? factor * l.dn : factor * exp_nonpositive(l.z - shift) * l.dn;
      }
    }
  }
  if (!is_wide<N>(a)) add_piece<N>(user.gradient, d_pos, q_positive);
  if (live && g.lane == 0) scores[-1] = d_pos;
  if (is_wide<N>(a)) add_wide<N>(a, g, user, sample, live);
  return total;
}

// kMany: a positive and k negatives; else as many positives as negatives, which the loss looks at together.
template <class Loss, bool kMany, int N>
__global__ void __launch_bounds__(kStepThreads, kMany || ElementScores<Loss>::value == 4 ? 2 : 3)
    step_users_kernel(const StepArgs a) {
  constexpr int kKept = kMany ? 1 : ElementScores<Loss>::value;
  const Group g(a.width);
  const StepSums& side = a.by_user;
  const Chunk chunk(a, side, blockIdx.x * (kStepThreads / a.width) + threadIdx.x / a.width);
  const bool comes_in = chunk.comes_in(), goes_on = chunk.goes_on(side);
  UserRow<N> user{};
  user.row = kNone, user.values = a.user.values, user.scale = 1;
  unsigned first = chunk.begin;  // of the user in this chunk
  double total = 0;
  for (unsigned o = 0; o < side.chunk; o += g.width) {
    // A lane reads the ids of one sample, for all.
    const unsigned base = chunk.begin + o;
    unsigned key = 0, next = kNone, sample = 0, items[kKept];
    float weight = 1;
#pragma unroll
    for (int j = 0; j < kKept; ++j) items[j] = kNone;
    if (base + g.lane < chunk.end) {
      key = chunk.keys[base + g.lane];
      if (base + g.lane + 1 < chunk.end) next = chunk.keys[base + g.lane + 1];
      sample = a.order[base + g.lane];
      if (a.weight != nullptr) weight = a.weight[sample];
#pragma unroll
      for (int j = 0; j < kKept; ++j) items[j] = item_of(a, sample, j);
    }
    const unsigned count = side.chunk - o < unsigned(g.width) ? side.chunk - o : g.width;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned at = base + i, its_key = g.get(key, i), its_next = g.get(next, i);
      const bool live = at < chunk.end;
      const bool begins = live && at == first, ends = live && its_next != its_key;
      if (begins) {
        user.row = row_of(side, a.user, its_key);
        user.values = a.user.values + int64_t{user.row == kNone ? 0 : user.row} * a.dim;
        const bool in = at == chunk.begin && comes_in, on = goes_on && its_key == chunk.keys[chunk.end - 1];
        user.sum = nullptr;
        if (user.row != kNone && a.user.wanted)
          user.sum = in || on ? side.parts + part_of(chunk.number, in) * a.dim
                              : side.whole + slot_of(side, user.row, at) * a.dim;
        if (user.row != kNone && side.begins != nullptr && !in && g.lane == 0) side.begins[user.row] = at + 1;
        user.fresh = true;
        user.gradient = {};
        if (!is_wide<N>(a)) user.p = load_piece<N>(g, a.dim, user.values);
      }
      if (a.cosines && __any_sync(kFullWarp, begins)) {
        const float scale_now = inverse_length(g.sum(dot_piece<N>(user.p, user.p)));
        if (begins) scale_piece<N>(user.p, scale_now), user.scale = scale_now;
      }
      unsigned its_items[kKept];
#pragma unroll
      for (int j = 0; j < kKept; ++j) its_items[j] = g.get(items[j], i);
      const unsigned its_sample = g.get(sample, i);
      const float its_weight = g.get(weight, i), scale = its_weight * a.scale;
      float value;
      if constexpr (kMany)
        value = many_negatives<Loss, N>(a, g, user, its_sample, its_items[0], scale, live);
      else
        value = one_sample<Loss, N>(a, g, user, its_sample, its_items, scale, live);
      if (live && g.lane == 0) total += static_cast<double>(its_weight * value);
      if (a.cosines) {
        if (live && g.lane == 0) a.user_scale[its_sample] = user.scale;
        if (__any_sync(kFullWarp, ends)) {
          const float product = g.sum(dot_piece<N>(user.gradient, user.p));
          // (The row is p / scale.)
          if (ends) add_piece<N>(user.gradient, -along_row(product / user.scale, user.scale) / user.scale, user.p);
          if (ends) scale_piece<N>(user.gradient, user.scale);
        }
      }
      if (ends) {
        if (user.sum != nullptr) {
          const float decay = a.decay * static_cast<float>(at + 1 - first);
          if (is_wide<N>(a)) {
            if (decay != 0)
              for (int c = g.lane; c < a.dim; c += g.width) user.sum[c] += decay * user.values[c];
          } else {
            if (decay != 0) add_piece<N>(user.gradient, decay / user.scale, user.p);
            store_piece<N>(g, a.dim, user.sum, user.gradient);
          }
        }
        first = at + 1;
      }
    }
  }
  total = block_combine<kStepThreads>(total, Add{});
  if (threadIdx.x == 0) a.partials[blockIdx.x] = total;
}

// ---- the items' pass ------------------------------------------------------------------------------------------------

// What a position adds to its row: a factor times a row, which is a user's or (from num_users on) one that the pass
// over shared negatives has left; to the bias; and how many gathered rows it stands for.
struct StepEntry {
  float factor, bias, count;
  unsigned row;
};

// What the user of a sample adds to an item in whose score the derivative is `slope`.
__device__ __forceinline__ StepEntry entry_of_user(const StepArgs& a, unsigned sample, float slope) {
  const unsigned user = BatchKeys::in_range(a.ids.users[sample], a.user.rows);
  if (user >= a.user.rows) return {NAN, NAN, 1.0f, 0};
  // Of cosines the factor is what the user's row as it is in memory is multiplied by.
  return {a.cosines ? slope * a.user_scale[sample] : slope, slope, 1.0f, user};
}

template <bool kShared>
__device__ __forceinline__ StepEntry entry_of(const StepArgs& a, bool users, unsigned position) {
  const unsigned samples = a.ids.samples;
  if (kShared && users) return {1.0f, 0.0f, 1.0f, a.user.rows + position};
  unsigned at = position - samples;
  if constexpr (!kShared) {
    return entry_of_user(a, a.ids.items.divide(at), a.coefficient[at]);
  } else {
    if (at < samples) return entry_of_user(a, at, a.shared.positive[at]);
    at -= samples;
    const unsigned k = a.ids.num_negatives, row = a.ids.items.divide(at);
    if (row >= a.ids.tiles) {
      const unsigned sample = a.ids.find_alone(row - a.ids.tiles);
      return entry_of_user(a, sample, a.coefficient[sample * k + (at - row * k)]);
    }
    const float bias = a.shared.list_bias != nullptr ? a.shared.list_bias[at] : 0.0f;
    return {1.0f, bias, static_cast<float>(a.ids.uses[at]), a.user.rows + samples + at};
  }
}

template <bool kShared>
__device__ __forceinline__ const float* row_of_entry(const StepArgs& a, unsigned row) {
  if (!kShared || row < a.user.rows) return a.user.values + int64_t{row} * a.dim;
  return a.shared.rows + int64_t{row - a.user.rows} * a.dim;
}

// kStored: sums are kept for the end (of rows in one piece or several), else rows within a chunk are updated.
// kShared: of shared negatives; the first blocks then have users, whose sums are kept.
template <Optimizer kKind, bool kStored, bool kShared, int N>
__global__ void __launch_bounds__(kStepThreads, 2) step_items_kernel(const StepArgs a, unsigned user_blocks) {
  const Group g(a.width);
  const bool users = kShared && blockIdx.x < user_blocks, stored = kStored || users;
  const StepSums side = side_of(a, users);
  const StepTable& table = users ? a.user : a.item;
  const bool biased = a.bias.wanted && !users;
  const unsigned block = kShared && !users ? blockIdx.x - user_blocks : blockIdx.x;
  const Chunk chunk(a, side, block * (kStepThreads / a.width) + threadIdx.x / a.width);
  const bool comes_in = chunk.comes_in(), goes_on = chunk.goes_on(side);
  const unsigned last_key = chunk.end > 0 ? chunk.keys[chunk.end - 1] : 0;
  int c0 = 0;
  do {
    Piece<N> sum = {};
    float factors = 0, counted = 0;
    unsigned first = chunk.begin;
    for (unsigned o = 0; o < side.chunk; o += g.width) {
      // A lane reads what one position adds, for all.
      const unsigned base = chunk.begin + o;
      unsigned key = 0, next = kNone;
      StepEntry entry{};
      if (base + g.lane < chunk.end) {
        const unsigned i = base + g.lane;
        key = chunk.keys[i];
        if (i + 1 < chunk.end) next = chunk.keys[i + 1];
        entry = entry_of<kShared>(a, users, a.order[side.first + i]);
      }
      const unsigned count = side.chunk - o < unsigned(g.width) ? side.chunk - o : g.width;
      for (unsigned i0 = 0; i0 < count; i0 += kStepColumns) {
        Piece<N> p[kStepColumns];
        if (table.wanted) {
#pragma unroll
          for (int m = 0; m < kStepColumns; ++m) {
            const unsigned row = g.get(entry.row, i0 + m);
            p[m] = {};
            if (i0 + m < count && base + i0 + m < chunk.end)
              p[m] = load_piece<N>(g, a.dim, row_of_entry<kShared>(a, row), c0);
          }
        }
#pragma unroll
        for (int m = 0; m < kStepColumns; ++m) {
          if (i0 + m >= count) break;
          const float f = g.get(entry.factor, i0 + m);
          const unsigned its_key = g.get(key, i0 + m), its_next = g.get(next, i0 + m), at = base + i0 + m;
          factors += a.cosines || kShared ? g.get(entry.bias, i0 + m) : f;
          if constexpr (kShared) counted += g.get(entry.count, i0 + m);
          if (table.wanted) add_piece<N>(sum, f, p[m]);
          const bool ends = at < chunk.end && its_next != its_key;
          const unsigned row = ends ? row_of(side, table, its_key) : kNone;
          const bool in = first == chunk.begin && comes_in, on = goes_on && its_key == last_key;
          const bool whole = row != kNone && !in && !on;
          const float decay = a.decay * (kShared ? counted : static_cast<float>(at + 1 - first));
          Piece<N> own = {};
          if (table.wanted && row != kNone && (a.cosines || decay != 0 || (!stored && whole)))
            own = load_piece<N>(g, a.dim, table.values + int64_t{row} * a.dim, c0);
          if (a.cosines && __any_sync(kFullWarp, row != kNone)) {
            const float scale = inverse_length(g.sum(dot_piece<N>(own, own)));
            const float product = g.sum(dot_piece<N>(sum, own));
            if (row != kNone) add_piece<N>(sum, -along_row(product, scale), own);
            if (row != kNone) scale_piece<N>(sum, scale);
          }
          if (row != kNone && decay != 0) add_piece<N>(sum, decay, own);
          if constexpr (!kStored) {
            if (a.longest > 0 && !users) {
              const float clip = clip_factor(g.sum(dot_piece<N>(sum, sum)), a.longest);
              if (whole) scale_piece<N>(sum, clip);
            }
          }
          if (row != kNone) {
            if (side.begins != nullptr && !in && g.lane == 0) side.begins[row] = first + 1;
            if (table.wanted) {
              if (!whole)
                store_piece<N>(g, a.dim, side.parts + part_of(chunk.number, in) * a.dim, sum, c0);
              else if (stored)
                store_piece<N>(g, a.dim, side.whole + slot_of(side, row, first) * a.dim, sum, c0);
              else if constexpr (!kStored)
                update_piece<kKind, N>(g, a.dim, a.rules[1], a.item, row, sum, own);
            }
            if (biased && c0 == 0 && g.lane == 0) {
              if (!whole)
                a.bias_parts[part_of(chunk.number, in)] = factors;
              else if constexpr (kStored)
                a.bias_whole[slot_of(side, row, first)] = factors;
              else
                update_bias<kKind>(a, row, factors);
            }
          }
          if (ends) {
            sum = {}, factors = 0, counted = 0;
            first = at + 1;
          }
        }
      }
    }
    c0 += piece_size<N>(g);
  } while (kStored && table.wanted && c0 < a.dim);
}

// ---- the end --------------------------------------------------------------------------------------------------------

// A row's sum: nothing, in one place, or in parts, the first of which is `place`, the others those of the chunks
// behind.
struct RowSum {
  unsigned row;           // kNone: there is nothing to do
  unsigned chunk, parts;  // where it begins; their number
  int64_t place;
};

// The sum of the row that begins at this place of a side.
__device__ __forceinline__ RowSum find_sum(const StepArgs& a, const StepSums& s, unsigned row, unsigned first) {
  const unsigned* const keys = a.keys + s.first;
  const unsigned key = s.first_key + row, chunk = first / s.chunk, chunks = s.chunks();
  const auto reaches = [&](unsigned c) { return c < chunks && keys[c * s.chunk] == key; };
  if (!reaches(chunk + 1)) return {row, chunk, 1, slot_of(s, row, first)};
  // The last chunk that begins with the row: steps grow until one is too far, then shrink.
  unsigned last = chunk + 1, step = 1;
  for (; reaches(last + step); step *= 2) last += step;
  for (; step > 0; step /= 2)
    if (reaches(last + step)) last += step;
  return {row, chunk, last - chunk + 1, part_of(chunk, false)};
}

// Part number i of it, as a row of [.., size] numbers.
__device__ __forceinline__ const float* part_at(const float* whole, const float* parts, const RowSum& s, unsigned i,
                                                int size) {
  if (s.parts == 1) return whole + s.place * size;
  return parts + (i == 0 ? s.place : part_of(s.chunk + i, true)) * size;
}

// A piece of the sum, the parts `from`, `from + stride`, ...
template <int N>
__device__ __forceinline__ Piece<N> sum_parts(const StepArgs& a, const Group& g, const StepSums& s, const RowSum& sum,
                                              int c0, unsigned from, unsigned stride) {
  Piece<N> out = {};
#pragma unroll 4
  for (unsigned i = from; i < sum.parts; i += stride)
    add_piece<N>(out, 1.0f, load_piece<N>(g, a.dim, part_at(s.whole, s.parts, sum, i, a.dim), c0));
  return out;
}

// The update of a row from `piece(c0)`, its gradient from that column on. All lanes must be here; `mine` says whether
// there is a row for this group.
template <Optimizer kKind, int N, class PieceAt>
__device__ __forceinline__ void finish_row(const StepArgs& a, const Group& g, const StepTable& table,
                                           const UpdateRule& rule, unsigned row, bool mine, const PieceAt& piece) {
  float factor = 1;
  if (a.longest > 0) {
    float squares = 0;
    for (int c0 = 0; c0 < a.dim; c0 += piece_size<N>(g)) {
      const Piece<N> gradient = piece(c0);
      squares += dot_piece<N>(gradient, gradient);
    }
    factor = clip_factor(g.sum(squares), a.longest);
  }
  for (int c0 = 0; c0 < a.dim; c0 += piece_size<N>(g)) {
    Piece<N> gradient = piece(c0);
    if (!mine) continue;
    if (factor != 1.0f) scale_piece<N>(gradient, factor);
    update_piece<kKind, N>(g, a.dim, rule, table, row, gradient,
                           load_piece<N>(g, a.dim, table.values + int64_t{row} * a.dim, c0), c0);
  }
}

// Finishes the rows of the groups of a warp (those without one have row kNone). One whose sum has very many parts is
// left to the block as a whole.
template <Optimizer kKind, int N>
__device__ __forceinline__ void finish_rows(const StepArgs& a, const StepSums& side, const Group& g, bool users,
                                            RowSum sum, RowSum* long_sums) {
  const StepTable& table = users ? a.user : a.item;
  if (sum.row != kNone && sum.parts > kLongParts) {
    if (g.lane == 0) long_sums[threadIdx.x / g.width] = sum;
    sum.row = kNone;
  }
  const bool mine = sum.row != kNone;
  if (!mine) sum.parts = 0;
  if (table.wanted)
    finish_row<kKind, N>(a, g, table, a.rules[users ? 0 : 1], sum.row, mine,
                         [&](int c0) { return sum_parts<N>(a, g, side, sum, c0, 0, 1); });
  if (users || !a.bias.wanted || g.lane != 0 || !mine) return;
  float factors = 0;
  for (unsigned i = 0; i < sum.parts; ++i) factors += *part_at(a.bias_whole, a.bias_parts, sum, i, 1);
  update_bias<kKind>(a, sum.row, factors);
}

// A whole block adds up one row's sum.
template <Optimizer kKind, int N>
__device__ __forceinline__ void finish_long(const StepArgs& a, const StepSums& side, const Group& g, bool users,
                                            const RowSum& sum) {
  const StepTable& table = users ? a.user : a.item;
  const unsigned group = threadIdx.x / g.width, groups = kStepThreads / g.width;
  const RowShape shape{a.dim, g.width, N > 1};
  if (table.wanted)
    finish_row<kKind, N>(a, g, table, a.rules[users ? 0 : 1], sum.row, group == 0, [&](int c0) {
      Piece<N> piece = sum_parts<N>(a, g, side, sum, c0, group, groups);
      combine_groups<kStepThreads, kStepPack>(shape, piece);
      return piece;
    });
  if (users || !a.bias.wanted) return;
  float factors = 0;
  for (unsigned i = threadIdx.x; i < sum.parts; i += kStepThreads)
    factors += *part_at(a.bias_whole, a.bias_parts, sum, i, 1);
  factors = block_combine<kStepThreads>(factors, Add{});
  if (threadIdx.x == 0) update_bias<kKind>(a, sum.row, factors);
}

// Turns that a group takes at the end: dense Adam's groups have one row of the table each, others have a chunk, of
// which one row may be left to finish (items), or all that begin in it.
template <Optimizer kKind>
__device__ __forceinline__ unsigned end_turns(const StepArgs& a, const StepSums& side, bool users) {
  return kKind == Optimizer::kAdam || (!users && !a.stored) ? 1 : side.chunk;
}

// The row that a group finishes in this turn.
template <Optimizer kKind>
__device__ __forceinline__ RowSum row_of_turn(const StepArgs& a, const StepSums& side, bool users, const Chunk& chunk,
                                              unsigned turn) {
  const StepTable& table = users ? a.user : a.item;
  const RowSum none{kNone, 0, 0, 0};
  if constexpr (kKind == Optimizer::kAdam) {
    if (chunk.number >= table.rows) return none;
    const unsigned begins = side.begins[chunk.number];
    // Rows without a gradient move too.
    if (begins == 0) return {chunk.number, 0, 0, 0};
    return find_sum(a, side, chunk.number, begins - 1);
  }
  if (!users && !a.stored) {
    // All others are finished.
    if (!chunk.goes_on(side)) return none;
    const unsigned key = chunk.keys[chunk.end - 1], row = row_of(side, table, key);
    if (row == kNone || (chunk.keys[chunk.begin] == key && chunk.comes_in())) return none;
    return find_sum(a, side, row, chunk.end - 1);
  }
  const unsigned i = chunk.begin + turn;
  if (i >= chunk.end || (i > 0 && chunk.keys[i - 1] == chunk.keys[i])) return none;
  const unsigned row = row_of(side, table, chunk.keys[i]);
  return row == kNone ? none : find_sum(a, side, row, i);
}

// blocks [0, user_blocks): users; then items; the last one adds up the loss.
template <Optimizer kKind, int N>
__global__ void __launch_bounds__(kStepThreads, 2) step_end_kernel(const StepArgs a, unsigned user_blocks) {
  if (blockIdx.x == gridDim.x - 1) {
    double total = 0;
    for (unsigned i = threadIdx.x; i < a.partial_count; i += kStepThreads) total += a.partials[i];
    total = block_combine<kStepThreads>(total, Add{});
    if (threadIdx.x != 0) return;
    *a.value = total * a.value_scale;
    if (a.total != nullptr) *a.total += total * a.value_scale * a.total_scale;
    return;
  }
  GPU_SHARED(RowSum, long_sums, kStepThreads);
  const Group g(a.width);
  const unsigned groups = kStepThreads / a.width;
  const bool users = blockIdx.x < user_blocks;
  if (threadIdx.x < groups) long_sums[threadIdx.x].row = kNone;
  __syncthreads();
  const unsigned block = users ? blockIdx.x : blockIdx.x - user_blocks;
  const StepSums side = side_of(a, users);
  const Chunk chunk(a, side, block * groups + threadIdx.x / a.width);
  const unsigned turns = end_turns<kKind>(a, side, users);
  for (unsigned turn = 0; turn < turns; ++turn) {
    const RowSum sum = row_of_turn<kKind>(a, side, users, chunk, turn);
    if (__any_sync(kFullWarp, sum.row != kNone)) finish_rows<kKind, N>(a, side, g, users, sum, long_sums);
  }
  __syncthreads();
  for (unsigned i = 0; i < groups; ++i) {
    const RowSum sum = long_sums[i];
    if (sum.row != kNone) finish_long<kKind, N>(a, side, g, users, sum);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// What a step works on. numbers.rules, ids.items and the rows in ids are filled in here.
struct StepProblem {
  Loss loss;
  Params<double> params;
  Reduction reduction = Reduction::kMean;
  double l2 = 0, longest = 0;
  StepTable user{}, item{}, bias{};  // bias.values is null where there is none
  int64_t num_users = 0, num_items = 0, dim = 0;
  const float *constants = nullptr, *weight = nullptr;
  const int64_t *users = nullptr, *positives = nullptr, *negatives = nullptr;
  int64_t samples = 0, num_positives = 1, num_negatives = 1;
  // Of samples that share lists of negatives (BlockArgs), `negatives` are those of the samples that share nothing.
  const int64_t *lists = nullptr, *start = nullptr, *alone = nullptr;
  const uint8_t* held = nullptr;
  int64_t num_lists = 0, share = 1;
  StepNumbers numbers{};
  double *value = nullptr, *total = nullptr;
  bool cosines = false;                     // of rows that are not wide (step_plan)
  unsigned user_chunk = 0, item_chunk = 0;  // 0: by the numbers of samples and items

  bool shared() const { return lists != nullptr && samples > 0; }
  int64_t items() const { return num_positives + num_negatives; }
  int64_t tiles_each() const { return (share + kTile - 1) / kTile; }
  int64_t tiles() const { return shared() ? num_lists * tiles_each() : 0; }
  // Positions of items, or as many as there may be.
  int64_t entries() const { return samples * items() + tiles() * num_negatives; }
  int64_t positions() const { return samples + entries(); }
  bool items_wanted() const { return item.wanted || bias.wanted; }
  Optimizer kind() const { return numbers.kind; }
};

// How it is dealt out; sizes alone decide.
struct StepPlan {
  int pack, width;
  bool wide, stored;
  unsigned user_chunk, item_chunk;
  SortPlan sort;
};

inline StepPlan step_plan(const StepProblem& p) {
  StepPlan plan{};
  bool packed = p.dim % kStepPack == 0;
  for (const StepTable* t : {&p.user, &p.item})
    for (const float* data : {t->values, t->m, t->v}) packed &= data == nullptr || aligned16(data);
  plan.pack = packed ? kStepPack : 1;
  const bool many = p.num_positives == 1 && (shape_of(p.loss) == Shape::kRow || p.num_negatives != 1);
  plan.width = many ? kStepColumns : 1;
  while (plan.width < kWarp && 2 * plan.width * plan.pack < p.dim) plan.width *= 2;
  plan.wide = 2 * plan.width * plan.pack < p.dim;
  plan.stored = plan.wide || p.kind() == Optimizer::kAdam;
  plan.user_chunk = p.user_chunk > 0 ? p.user_chunk : chunk_of(p.samples, p.shared() ? 1 : p.items());
  plan.item_chunk = p.item_chunk > 0 || p.shared() ? p.item_chunk : chunk_of(p.entries(), 1);
  plan.sort = sort_plan(p.num_users, p.num_items);
  return plan;
}

// Deals out memory, 16 bytes at least at a time. Without memory it only counts.
class StepMemory {
 public:
  explicit StepMemory(unsigned* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    unsigned* const at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * int64_t{sizeof(T)} + 15) / 16 * 4;
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  unsigned* base_;
  int64_t used_ = 0;
};

// Everything that a step keeps in memory, laid out from `memory` on (or, of null, only counted).
struct StepLayout {
  StepArgs args{};
  unsigned *zeros, *keys[2], *order[2];
  UpdateRule* rules;
  int64_t zero_words, words;
  unsigned user_blocks = 0, item_blocks = 0;
  int64_t item_chunks = 0;  // or as many as there may be
  BlockArgs block{};        // of shared negatives
};

// Chunks of up to so many positions, if `chunk` is 0 those of chunk_of.
inline int64_t most_chunks(int64_t positions, int64_t chunk) {
  if (chunk > 0) return (positions + chunk - 1) / chunk;
  const int64_t longest = (positions + kMostChunk - 1) / kMostChunk, most = 2 * kEnoughChunks;
  return longest > most ? longest : positions < most ? positions : most;
}

inline unsigned step_blocks(int64_t groups, int width) {
  return static_cast<unsigned>((groups * width + kStepThreads - 1) / kStepThreads);
}

inline StepLayout step_layout(const StepProblem& p, const StepPlan& plan, unsigned* memory) {
  StepLayout out;
  StepArgs& a = out.args;
  StepMemory from(memory);
  const bool adam = p.kind() == Optimizer::kAdam;
  const int64_t n = p.positions(), entries = p.entries(), lists = p.tiles() * p.num_negatives;
  out.zeros = from.take<unsigned>(sort_zeros(n, plan.sort));
  a.by_user.begins = adam ? from.take<unsigned>(p.num_users) : nullptr;
  a.by_item.begins = adam ? from.take<unsigned>(p.num_items) : nullptr;
  out.zero_words = from.used();
  const bool small = n <= kSmallSort;
  for (int i = 0; i < 2; ++i) {
    out.keys[i] = from.take<unsigned>(i == 0 && small ? 0 : n);
    out.order[i] = from.take<unsigned>(i == 0 && small ? 0 : n);
  }
  out.rules = from.take<UpdateRule>(3);
  a.coefficient = from.take<float>(p.shared() ? p.samples * p.num_negatives : entries);
  a.user_scale = from.take<float>(p.cosines ? p.samples : 0);
  if (p.shared()) {
    out.block.uses = from.take<unsigned>(lists);
    out.block.list_bias = p.bias.wanted ? from.take<float>(lists) : nullptr;
    out.block.positive = from.take<float>(p.samples);
    out.block.users = from.take<float>((p.samples + lists) * p.dim);
    out.block.items = out.block.users == nullptr ? nullptr : out.block.users + p.samples * p.dim;
  }
  const auto side = [&](StepSums& s, int64_t first, int64_t size, int64_t rows, int64_t first_key, unsigned chunk,
                        bool kept, int64_t dim) {
    s.first = static_cast<unsigned>(first), s.size = static_cast<unsigned>(size), s.chunk = chunk;
    s.first_key = static_cast<unsigned>(first_key), s.by_row = rows <= size;
    s.whole = from.take<float>(kept ? (rows <= size ? rows : size) * dim : 0);
    s.parts = from.take<float>(2 * most_chunks(size, chunk) * dim);
  };
  side(a.by_user, 0, p.samples, p.num_users, 0, plan.user_chunk, p.user.wanted, p.user.wanted ? p.dim : 0);
  side(a.by_item, p.samples, entries, p.num_items, p.num_users + 1, plan.item_chunk, plan.stored,
       p.item.wanted ? p.dim : 0);
  const int64_t biases = p.bias.wanted ? 1 : 0;
  a.bias_whole = from.take<float>(plan.stored ? biases * (p.num_items <= entries ? p.num_items : entries) : 0);
  out.item_chunks = most_chunks(entries, plan.item_chunk);
  a.bias_parts = from.take<float>(biases * 2 * out.item_chunks);
  const int64_t chunks = a.by_user.chunks();
  a.partial_count = p.shared() ? static_cast<unsigned>(p.tiles()) : step_blocks(chunks, plan.width);
  a.partials = from.take<double>(a.partial_count);
  if (p.user.wanted) out.user_blocks = step_blocks(adam ? p.num_users : chunks, plan.width);
  if (p.items_wanted()) out.item_blocks = step_blocks(adam ? p.num_items : out.item_chunks, plan.width);
  out.words = from.used();
  return out;
}

// Words of memory that mf_step wants, at an address that is a multiple of 16 bytes.
inline int64_t step_words(const StepProblem& p) { return step_layout(p, step_plan(p), nullptr).words; }

template <class Loss, int N>
void step_users(const StepArgs& a, bool many, gpuStream stream) {
  constexpr int kScores = ElementScores<Loss>::value;
  if constexpr (kScores != 0)
    if (!many) GPU_LAUNCH((step_users_kernel<Loss, false, N>), a.partial_count, kStepThreads, 0, stream)(a);
  if constexpr (kScores != 4)
    if (many) GPU_LAUNCH((step_users_kernel<Loss, true, N>), a.partial_count, kStepThreads, 0, stream)(a);
}

template <class Loss>
void step_users(const StepArgs& a, const StepPlan& plan, gpuStream stream) {
  const bool many = ElementScores<Loss>::value == 0 || (ElementScores<Loss>::value == 2 && a.ids.num_negatives != 1);
  if (plan.pack == kStepPack && !plan.wide)
    step_users<Loss, kStepPack>(a, many, stream);
  else
    step_users<Loss, 1>(a, many, stream);
}

inline void step_users(Loss loss, const StepArgs& a, const StepPlan& plan, gpuStream stream) {
  switch (loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return step_users<type>(a, plan, stream);
    ZX_ALL_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      return;
  }
}

// Calls f with the optimizer as a constant.
template <class F>
void with_optimizer(Optimizer kind, const F& f) {
  switch (kind) {
    case Optimizer::kSgd:
      return f(std::integral_constant<Optimizer, Optimizer::kSgd>{});
    case Optimizer::kAdagrad:
      return f(std::integral_constant<Optimizer, Optimizer::kAdagrad>{});
    case Optimizer::kAdam:
      return f(std::integral_constant<Optimizer, Optimizer::kAdam>{});
    case Optimizer::kLazyAdam:
      return f(std::integral_constant<Optimizer, Optimizer::kLazyAdam>{});
  }
}

template <bool kShared, int N>
void step_items(Optimizer kind, const StepArgs& a, const StepLayout& layout, gpuStream stream) {
  // Dense Adam's end has a block for rows, not for chunks.
  const unsigned users = kShared && a.user.wanted ? step_blocks(a.by_user.chunks(), a.width) : 0;
  const bool items = a.item.wanted || a.bias.wanted;
  const unsigned blocks = users + (items ? step_blocks(layout.item_chunks, a.width) : 0);
  if (blocks == 0) return;
  if (a.stored) {
    GPU_LAUNCH((step_items_kernel<Optimizer::kSgd, true, kShared, N>), blocks, kStepThreads, 0, stream)(a, users);
    return;
  }
  with_optimizer(kind, [&](auto constant) {
    constexpr Optimizer kKind = decltype(constant)::value;
    if constexpr (kKind != Optimizer::kAdam)
      GPU_LAUNCH((step_items_kernel<kKind, false, kShared, N>), blocks, kStepThreads, 0, stream)(a, users);
  });
}

template <int N>
void step_end(Optimizer kind, const StepArgs& a, const StepLayout& layout, gpuStream stream) {
  with_optimizer(kind, [&](auto constant) {
    constexpr Optimizer kKind = decltype(constant)::value;
    GPU_LAUNCH((step_end_kernel<kKind, N>), layout.user_blocks + layout.item_blocks + 1, kStepThreads, 0, stream)
    (a, layout.user_blocks);
  });
}

// What the pass over shared negatives takes, and what others take from it.
inline void share_negatives(const StepProblem& p, const StepPlan& plan, StepLayout& layout) {
  StepArgs& a = layout.args;
  BlockArgs& b = layout.block;
  a.ids.lists = p.lists, a.ids.alone = p.alone, a.ids.uses = b.uses;
  a.ids.tiles = static_cast<unsigned>(p.tiles()), a.ids.tiles_each = static_cast<unsigned>(p.tiles_each());
  a.shared = {b.positive, b.users, b.list_bias};
  b.loss = p.loss, b.user = p.user.values, b.item = p.item.values, b.bias = p.bias.values;
  b.constants = p.constants, b.weight = p.weight;
  b.ids = a.ids, b.size = static_cast<unsigned>(p.share), b.start = p.start, b.held = p.held;
  b.dim = a.dim, b.packed = plan.pack == kStepPack, b.cosines = p.cosines;
  b.users_wanted = p.user.wanted, b.items_wanted = p.item.wanted;
  b.scores = a.coefficient, b.user_scale = a.user_scale, b.partials = a.partials;
  b.params = a.params, b.scale = a.scale, b.log_cols = a.log_cols;
}

// A step. memory: step_words(p) words.
inline void mf_step(const StepProblem& p, unsigned* memory, gpuStream stream) {
  const StepPlan plan = step_plan(p);
  StepLayout layout = step_layout(p, plan, memory);
  StepArgs& a = layout.args;
  a.user = p.user, a.item = p.item, a.bias = p.bias;
  a.user.rows = static_cast<unsigned>(p.num_users);
  a.item.rows = a.bias.rows = static_cast<unsigned>(p.num_items);
  a.constants = p.constants, a.weight = p.weight;
  // Of an empty table nothing is read.
  a.dim = p.num_users > 0 && p.num_items > 0 ? static_cast<int>(p.dim) : 0;
  a.width = plan.width, a.stored = plan.stored, a.wide = plan.wide;
  a.cosines = p.cosines;
  a.ids.users = p.users, a.ids.positives = p.positives, a.ids.negatives = p.negatives;
  a.ids.samples = static_cast<unsigned>(p.samples);
  a.ids.num_positives = static_cast<unsigned>(p.num_positives);
  a.ids.num_negatives = static_cast<unsigned>(p.num_negatives);
  a.ids.num_users = a.user.rows, a.ids.num_items = a.item.rows;
  a.ids.items = divider_of(static_cast<unsigned>(p.shared() ? p.num_negatives : p.items()));
  a.keys = layout.keys[1], a.order = layout.order[1], a.rules = layout.rules;
  a.value = p.value, a.total = p.total;
  a.params = {static_cast<float>(p.params.a), static_cast<float>(p.params.b), static_cast<float>(p.params.c)};
  const double samples = static_cast<double>(p.samples), k = static_cast<double>(p.num_negatives);
  const bool mean = p.reduction == Reduction::kMean;
  a.value_scale = loss_scale(p.reduction, shape_of(p.loss) == Shape::kPair ? samples * k : samples);
  a.total_scale = mean ? samples : 1;
  a.scale = static_cast<float>(a.value_scale);
  a.decay = static_cast<float>(p.l2 * loss_scale(p.reduction, samples));
  a.longest = static_cast<float>(p.longest);
  a.log_cols = p.num_negatives > 0 ? static_cast<float>(std::log(k)) : 0.0f;
  if (p.shared()) share_negatives(p, plan, layout);
  StepNumbers numbers = p.numbers;
  numbers.rules = layout.rules;
  if (layout.zero_words > 0) GPU_FILL(layout.zeros, 0, layout.zero_words * 4, stream);
  if (p.shared()) step_shared(layout.block, stream);  // (whose uses of items the sort wants to know)
  sort_batch(a.ids, p.positions(), plan.sort, layout.keys, layout.order, layout.zeros, numbers, stream);
  if (p.samples > 0 && !p.shared()) step_users(p.loss, a, plan, stream);
  if (p.samples > 0) {
    if (plan.pack == kStepPack)
      p.shared() ? step_items<true, kStepPack>(p.kind(), a, layout, stream)
                 : step_items<false, kStepPack>(p.kind(), a, layout, stream);
    else
      p.shared() ? step_items<true, 1>(p.kind(), a, layout, stream) : step_items<false, 1>(p.kind(), a, layout, stream);
  }
  if (plan.pack == kStepPack)
    step_end<kStepPack>(p.kind(), a, layout, stream);
  else
    step_end<1>(p.kind(), a, layout, stream);
}

}  // namespace GPU_NS
}  // namespace zx
