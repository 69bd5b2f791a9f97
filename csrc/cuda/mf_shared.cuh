// The pass over samples whose negatives are shared, for a training step on the GPU (mf_step.cuh); the structure is that
// of csrc/cpu/mf_shared.h, which also says what samples share.
//
// A block of threads takes up to kTile samples of one list of negatives. Their scores are a product of small matrices
// from shared memory, users by items; the loss is evaluated over them; and the derivatives in users and in the list's
// items are two more products. So each row is read once a block, whatever K is. What is left in memory are the
// derivatives in each sample's user and in each item of the list (of the sample's own rows if scores are cosines: in
// their directions), which the next pass sums by row; and the derivative in each positive's score.
//
// Rows and lists are cut into pieces of kTile columns and items. One piece of both stays in shared memory from the
// scores to the derivatives. Else scores wait in memory, and rows are read a second time. Products are sums in one
// order, in float32: no tensor cores.
//
// A user who has an item of the list takes the next one around that the user does not have. The slot has a copy of its
// score for the loss, and its derivative is added to that item's. Users who have all of them are "alone": a warp goes
// through the negatives that they have instead, which are not shared.
#pragma once

#include "common/cosines.h"
#include "common/shared_negatives.h"
#include "cuda/batch_sort.cuh"
#include "cuda/loss_common.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kTile = 64;         // samples, items and columns
constexpr int kTileRow = 68;      // numbers from row to row: those of 8 threads lie in different banks
constexpr int kTileSide = 4;      // a thread has 4 x 4 numbers of a product
constexpr int kTileThreads = 16;  // along each side of a product
constexpr int kRowThreads = kLossThreads / kTile;
constexpr unsigned kLossLanes = 8;  // of a sample's loss: more would spend their time on adding up what they have
constexpr int kBlockWarps = kLossThreads / kWarp;
static_assert(kTileThreads * kTileThreads == kLossThreads && kTileThreads * kTileSide == kTile);
constexpr int kTilesBytes = 3 * kTile * kTileRow * int(sizeof(float));

struct BlockArgs {
  Loss loss;
  const float *user, *item, *bias, *constants, *weight;  // the last three: or null
  BatchKeys ids;
  unsigned size;         // samples that share a list
  const int64_t* start;  // how many of those of the first list come before the batch
  const uint8_t* held;   // [samples, k]: whether the user has the list's item
  int dim;
  bool packed;  // rows begin at multiples of 16 bytes
  bool cosines, users_wanted, items_wanted;
  float* scores;         // [samples, k]: scores, then derivatives; if all is one piece, those of the alone
  float* positive;       // [samples], the derivative in the positive's score
  float* user_scale;     // [samples], of cosines: what the user's row is multiplied by
  float *users, *items;  // [samples, dim], [tiles, k, dim]: derivatives in rows
  float* list_bias;      // [tiles, k]: derivatives in scores, summed; or null
  unsigned* uses;        // [tiles, k]: slots that have the item
  double* partials;      // [tiles]
  Params<float> params;
  float scale, log_cols;
};

// What the threads of a block know of its samples.
struct BlockSamples {
  unsigned user[kTile], positive[kTile], item[kTile];  // rows, or kNone; items: of the piece at hand
  float user_scale[kTile], positive_scale[kTile], item_scale[kTile];
  float score[kTile], slope[kTile];  // of the positive: its score, and the derivative in it
  bool alone[kTile];
};

// Calls f(column, pack of kSide numbers) for what thread `part` of kRowThreads has of a row.
template <class F>
__device__ __forceinline__ void for_row(const BlockArgs& a, int part, const F& f) {
  for (int c = part * kTileSide; c < a.dim; c += kRowThreads * kTileSide) f(c);
}
// Four numbers of a row from column c on, zeros behind its end.
__device__ __forceinline__ Pack<float, kTileSide> load_four(const BlockArgs& a, const float* row, int c) {
  if (a.packed && c < a.dim) return load_pack<float, kTileSide>(row + c);
  Pack<float, kTileSide> x = {};
#pragma unroll
  for (int e = 0; e < kTileSide; ++e)
    if (c + e < a.dim) x.v[e] = row[c + e];
  return x;
}
__device__ __forceinline__ void store_four(const BlockArgs& a, float* row, int c, const Pack<float, kTileSide>& x) {
  if (a.packed && c < a.dim) return store_pack(row + c, x);
#pragma unroll
  for (int e = 0; e < kTileSide; ++e)
    if (c + e < a.dim) row[c + e] = x.v[e];
}
__device__ __forceinline__ const float* block_row(const BlockArgs& a, const float* table, unsigned row) {
  return table + int64_t{row == kNone ? 0 : row} * a.dim;
}
__device__ __forceinline__ unsigned row_or_none(int64_t id, unsigned rows) {
  const unsigned row = BatchKeys::in_range(id, rows);
  return row < rows ? row : kNone;
}

// The product of two rows, by kRowThreads neighbouring threads; each has it. All threads must be here.
__device__ __forceinline__ float product_of(const BlockArgs& a, const float* x, const float* y) {
  float sum = 0;
  for_row(a, threadIdx.x % kRowThreads, [&](int c) {
    const Pack<float, kTileSide> p = load_four(a, x, c), q = load_four(a, y, c);
#pragma unroll
    for (int e = 0; e < kTileSide; ++e) sum += p.v[e] * q.v[e];
  });
  return warp_combine(sum, kRowThreads, Add{});
}
__device__ __forceinline__ float scale_of(const BlockArgs& a, const float* row) {
  return a.cosines ? inverse_length(product_of(a, row, row)) : 1.0f;
}

// A piece of kTile rows from column c0 on: zeros where there is no row, and behind their ends.
__device__ __forceinline__ void load_tile(const BlockArgs& a, const float* table, const unsigned* rows,
                                          const float* scales, int c0, float* tile) {
#pragma unroll
  for (int turn = 0; turn < kTile / kTileThreads; ++turn) {
    const int r = turn * kTileThreads + threadIdx.x / kTileThreads, c = threadIdx.x % kTileThreads * kTileSide;
    Pack<float, kTileSide> x = {};
    if (rows[r] != kNone) {
      x = load_four(a, block_row(a, table, rows[r]), c0 + c);
#pragma unroll
      for (int e = 0; e < kTileSide; ++e) x.v[e] *= scales[r];
    }
    store_pack(tile + r * kTileRow + c, x);
  }
}

// sums[r][c] += what the products of x's rows and y's columns make over the first `depth` numbers (a multiple of 4).
// Of a tile that lies along, the numbers of a row of the product are a row of the tile, and a thread has every
// kTileThreads-th row; else they are a column, and it has four neighbours.
template <bool kAlongX, bool kAlongY>
__device__ __forceinline__ void multiply(const float* x, const float* y, int depth,
                                         float (&sums)[kTileSide][kTileSide]) {
  const int row = threadIdx.x / kTileThreads, column = threadIdx.x % kTileThreads;
  for (int k = 0; k < depth; k += kTileSide) {
    float p[kTileSide][kTileSide], q[kTileSide][kTileSide];
#pragma unroll
    for (int m = 0; m < kTileSide; ++m) {
      const auto from = [&](bool along, const float* tile, int at) {
        return load_pack<float, kTileSide>(along ? tile + (at + m * kTileThreads) * kTileRow + k
                                                 : tile + (k + m) * kTileRow + at * kTileSide);
      };
      const Pack<float, kTileSide> own = from(kAlongX, x, row), other = from(kAlongY, y, column);
#pragma unroll
      for (int e = 0; e < kTileSide; ++e) {
        (kAlongX ? p[e][m] : p[m][e]) = own.v[e];
        (kAlongY ? q[e][m] : q[m][e]) = other.v[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kTileSide; ++e)
#pragma unroll
      for (int r = 0; r < kTileSide; ++r)
#pragma unroll
        for (int c = 0; c < kTileSide; ++c) sums[r][c] += p[e][r] * q[e][c];
  }
}
__device__ __forceinline__ int tile_depth(int64_t left) {
  return left < kTile ? (static_cast<int>(left) + kTileSide - 1) / kTileSide * kTileSide : kTile;
}

// Calls f(slot) for the other slots that have this place (place_of), which is not held.
template <class F>
__device__ __forceinline__ void for_replaced(const uint8_t* held, unsigned k, unsigned place, const F& f) {
  for (unsigned slot = place == 0 ? k - 1 : place - 1; slot != place && held[slot]; slot = slot == 0 ? k - 1 : slot - 1)
    f(slot);
}

// A block's part of the batch, and where its numbers are.
struct Block {
  unsigned tile, list, first, count;  // samples [first, first + count)
  bool kept;                          // all scores are in shared memory
  float *users, *items, *scores;      // tiles
};

__device__ __forceinline__ Block block_of(const BlockArgs& a, float* memory) {
  Block b;
  b.tile = blockIdx.x, b.list = b.tile / a.ids.tiles_each;
  const int64_t given = *a.start, start = static_cast<uint64_t>(given) < a.size ? given : 0;
  int64_t begin = int64_t{b.list} * a.size - start, end = begin + a.size;
  begin += int64_t{b.tile % a.ids.tiles_each} * kTile;
  if (end > begin + kTile) end = begin + kTile;
  if (begin < 0) begin = 0;
  if (end > a.ids.samples) end = a.ids.samples;
  b.first = static_cast<unsigned>(begin), b.count = end > begin ? static_cast<unsigned>(end - begin) : 0;
  b.kept = a.ids.num_negatives <= kTile;
  b.users = memory, b.items = b.users + kTile * kTileRow, b.scores = b.items + kTile * kTileRow;
  return b;
}

// Ids, lengths and positives' scores of a block's samples.
__device__ __forceinline__ void read_samples(const BlockArgs& a, const Block& b, BlockSamples& s) {
  const unsigned i = threadIdx.x / kRowThreads, sample = b.first + (i < b.count ? i : 0);
  unsigned user = kNone, positive = kNone;
  bool alone = false;
  if (i < b.count) {
    user = row_or_none(a.ids.users[sample], a.ids.num_users);
    positive = row_or_none(a.ids.positives[sample], a.ids.num_items);
    alone = a.ids.is_alone(sample);
  }
  const float *u = block_row(a, a.user, user), *q = block_row(a, a.item, positive);
  const float of_user = scale_of(a, u), of_positive = scale_of(a, q), product = product_of(a, u, q);
  if (threadIdx.x % kRowThreads != 0) return;
  float score = product * (of_user * of_positive);
  if (a.bias != nullptr && positive != kNone) score += a.bias[positive];
  s.user[i] = user, s.positive[i] = positive, s.alone[i] = alone;
  s.user_scale[i] = of_user, s.positive_scale[i] = of_positive;
  s.score[i] = user == kNone || positive == kNone ? NAN : score;
  s.slope[i] = 0;
  if (a.cosines && i < b.count) a.user_scale[sample] = of_user;
}

// Rows of the list's items from place k0 on, and their lengths.
__device__ __forceinline__ void read_items(const BlockArgs& a, const Block& b, unsigned k0, BlockSamples& s) {
  const unsigned j = threadIdx.x / kRowThreads, k = a.ids.num_negatives;
  unsigned item = kNone;
  if (k0 + j < k) item = row_or_none(a.ids.lists[b.list * k + k0 + j], a.ids.num_items);
  const float scale = scale_of(a, block_row(a, a.item, item));
  if (threadIdx.x % kRowThreads != 0) return;
  s.item[j] = item, s.item_scale[j] = scale;
}

// Scores of all samples with all items of the list.
__device__ __forceinline__ void score_block(const BlockArgs& a, const Block& b, BlockSamples& s) {
  const unsigned k = a.ids.num_negatives;
  const int row = threadIdx.x / kTileThreads, column = threadIdx.x % kTileThreads;
  for (unsigned k0 = 0; k0 < k; k0 += kTile) {
    float sums[kTileSide][kTileSide] = {};
    __syncthreads();  // the piece before may still be read
    read_items(a, b, k0, s);
    for (int c0 = 0; c0 < a.dim; c0 += kTile) {
      __syncthreads();
      load_tile(a, a.user, s.user, s.user_scale, c0, b.users);
      load_tile(a, a.item, s.item, s.item_scale, c0, b.items);
      __syncthreads();
      multiply<true, true>(b.users, b.items, tile_depth(a.dim - c0), sums);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kTileSide; ++r)
#pragma unroll
      for (int c = 0; c < kTileSide; ++c) {
        const unsigned i = row + r * kTileThreads, j = column + c * kTileThreads;
        const bool there = i < b.count && k0 + j < k;
        const unsigned item = s.item[j];
        float score = sums[r][c];
        if (item == kNone || s.user[i] == kNone)
          score = NAN;
        else if (a.bias != nullptr)
          score += a.bias[item];
        if (b.kept)
          b.scores[i * kTileRow + j] = there && !s.alone[i] ? score : 0.0f;
        else if (there && !s.alone[i])
          a.scores[int64_t{b.first + i} * k + k0 + j] = score;
      }
  }
}

// Calls f(sample in the block) for those that share nothing, a warp each.
template <class F>
__device__ __forceinline__ void for_alone(const Block& b, const BlockSamples& s, const F& f) {
  for (unsigned i = threadIdx.x / kWarp; i < b.count; i += kBlockWarps)
    if (s.alone[i]) f(i);
}
__device__ __forceinline__ unsigned own_item(const BlockArgs& a, unsigned sample, unsigned j) {
  return row_or_none(a.ids.negatives[int64_t{sample} * a.ids.num_negatives + j], a.ids.num_items);
}
// The warp's product of two rows.
__device__ __forceinline__ float warp_product(const BlockArgs& a, const float* x, const float* y) {
  float sum = 0;
  for (int c = threadIdx.x % kWarp; c < a.dim; c += kWarp) sum += x[c] * y[c];
  return warp_combine(sum, kWarp, Add{});
}
__device__ __forceinline__ float warp_scale(const BlockArgs& a, const float* row) {
  return a.cosines ? inverse_length(warp_product(a, row, row)) : 1.0f;
}

__device__ __forceinline__ void score_alone(const BlockArgs& a, const Block& b, const BlockSamples& s) {
  for_alone(b, s, [&](unsigned i) {
    const unsigned sample = b.first + i, k = a.ids.num_negatives;
    for (unsigned j = 0; j < k; ++j) {
      const unsigned item = own_item(a, sample, j);
      const float *u = block_row(a, a.user, s.user[i]), *q = block_row(a, a.item, item);
      float score = warp_product(a, u, q) * (s.user_scale[i] * warp_scale(a, q));
      if (item == kNone || s.user[i] == kNone)
        score = NAN;
      else if (a.bias != nullptr)
        score += a.bias[item];
      if (threadIdx.x % kWarp == 0) a.scores[int64_t{sample} * k + j] = score;
    }
  });
}

// The loss of a block's samples; scores become derivatives. Returns this thread's part of the sum.
template <class Loss>
__device__ __forceinline__ double block_loss(const BlockArgs& a, const Block& b, BlockSamples& s) {
  constexpr bool kRow = ElementScores<Loss>::value == 0;
  const unsigned k = a.ids.num_negatives;
  unsigned width = kLossLanes;
  while (width > 1 && width / 2 >= k) width /= 2;
  const unsigned lane = threadIdx.x % width, groups = kLossThreads / width;
  double total = 0;
  // All threads take every turn: the shuffles need them.
  for (unsigned i0 = 0; i0 < b.count; i0 += groups) {
    const unsigned i = i0 + threadIdx.x / width, at = i < b.count ? i : 0, sample = b.first + at;
    const bool live = i < b.count, shares = live && !s.alone[at];
    float* const row = b.kept && shares ? b.scores + at * kTileRow : a.scores + int64_t{sample} * k;
    const uint8_t* const held = a.held + int64_t{sample} * k;
    const unsigned cols = live ? k : 0;
    for (unsigned j = lane; shares && j < k; j += width)
      if (held[j]) row[j] = row[place_of(held, k, j)];
    __syncwarp(kFullWarp);  // before a score becomes a derivative
    const auto constant = [&](unsigned j) {
      if (a.constants == nullptr) return 0.0f;
      const unsigned item = shares ? row_or_none(a.ids.lists[b.list * k + place_of(held, k, j)], a.ids.num_items)
                                   : own_item(a, sample, j);
      return item == kNone ? 0.0f : a.constants[item];
    };
    const float p = s.score[at];
    const float x_p = a.constants != nullptr && s.positive[at] != kNone ? a.constants[s.positive[at]] : 0.0f;
    const float weight = live && a.weight != nullptr ? a.weight[sample] : 1.0f, scale = weight * a.scale;
    float slope = 0;
    if constexpr (kRow) {
      const RowResult<float> f = evaluate_row<Loss>(
          int64_t{cols}, static_cast<int>(lane), static_cast<int>(width),
          [&](int64_t j) { return Loss::logit(p, row[j], constant(static_cast<unsigned>(j)), a.params); }, p, x_p,
          scale, a.log_cols, a.params, true, [&](int64_t j, float g) { row[j] = g; });
      slope = f.grad_pos;
      if (live && lane == 0) total += static_cast<double>(weight * f.value);
    } else {
      for (unsigned j = lane; j < cols; j += width) {
        const float pair[2] = {p, row[j]}, x[2] = {x_p, constant(j)};
        float d[2];
        total += static_cast<double>(weight * Loss::eval(pair, x, a.params, d));
        slope += scale * d[0];
        row[j] = scale * d[1];
      }
      slope = warp_combine(slope, static_cast<int>(width), Add{});
    }
    __syncwarp();  // other lanes have the slots that were replaced
    for (unsigned j = lane; shares && j < k; j += width)
      if (!held[j]) for_replaced(held, k, j, [&](unsigned slot) { row[j] += row[slot], row[slot] = 0.0f; });
    if (live && lane == 0) s.slope[at] = slope, a.positive[sample] = slope;
  }
  return total;
}

// What the derivatives in a piece of the list's scores are summed to, and how many slots there are.
__device__ __forceinline__ void sum_list(const BlockArgs& a, const Block& b, unsigned k0, const BlockSamples& s) {
  const unsigned k = a.ids.num_negatives, j = threadIdx.x / kRowThreads;
  float sum = 0;
  unsigned uses = 0;
  for (unsigned i = threadIdx.x % kRowThreads; i < b.count && k0 + j < k; i += kRowThreads) {
    const uint8_t* const held = a.held + int64_t{b.first + i} * k;
    sum += b.scores[i * kTileRow + j];
    if (s.alone[i] || held[k0 + j]) continue;
    ++uses;
    for_replaced(held, k, k0 + j, [&](unsigned) { uses += 1; });
  }
  sum = warp_combine(sum, kRowThreads, Add{});
  uses = warp_combine(uses, kRowThreads, Add{});
  if (threadIdx.x % kRowThreads != 0 || k0 + j >= k) return;
  a.uses[b.tile * k + k0 + j] = uses;
  if (a.list_bias != nullptr) a.list_bias[b.tile * k + k0 + j] = sum;
}

// Derivatives in users and in the list's items.
__device__ __forceinline__ void block_gradients(const BlockArgs& a, const Block& b, BlockSamples& s) {
  const unsigned k = a.ids.num_negatives;
  const int row = threadIdx.x / kTileThreads, column = threadIdx.x % kTileThreads;
  const bool resident = b.kept && a.dim <= kTile;
  for (int c0 = 0; c0 == 0 || c0 < a.dim; c0 += kTile) {
    float of_users[kTileSide][kTileSide] = {};
    for (unsigned k0 = 0; k0 < k; k0 += kTile) {
      __syncthreads();
      if (!resident) {
        read_items(a, b, k0, s);
        for (unsigned e = threadIdx.x; !b.kept && e < kTile * kTile; e += kLossThreads) {
          const unsigned i = e / kTile, j = e % kTile;
          const bool there = i < b.count && k0 + j < k && !s.alone[i];
          b.scores[i * kTileRow + j] = there ? a.scores[int64_t{b.first + i} * k + k0 + j] : 0.0f;
        }
        __syncthreads();
        load_tile(a, a.user, s.user, s.user_scale, c0, b.users);
        load_tile(a, a.item, s.item, s.item_scale, c0, b.items);
        __syncthreads();
      }
      if (c0 == 0) sum_list(a, b, k0, s);
      multiply<true, false>(b.scores, b.items, tile_depth(int64_t{k} - k0), of_users);
      if (!a.items_wanted) continue;
      float of_items[kTileSide][kTileSide] = {};
      multiply<false, false>(b.scores, b.users, tile_depth(b.count), of_items);
#pragma unroll
      for (int r = 0; r < kTileSide; ++r) {
        const unsigned j = k0 + row * kTileSide + r;
        Pack<float, kTileSide> out;
#pragma unroll
        for (int e = 0; e < kTileSide; ++e) out.v[e] = of_items[r][e];
        if (j < k) store_four(a, a.items + (int64_t{b.tile} * k + j) * a.dim, c0 + column * kTileSide, out);
      }
    }
    if (!a.users_wanted) continue;
#pragma unroll
    for (int r = 0; r < kTileSide; ++r) {
      const unsigned i = row + r * kTileThreads;
      if (i >= b.count) continue;
      const int c = c0 + column * kTileSide;
      Pack<float, kTileSide> out = load_four(a, block_row(a, a.item, s.positive[i]), c);
      const float factor = s.slope[i] * s.positive_scale[i];
#pragma unroll
      for (int e = 0; e < kTileSide; ++e) out.v[e] = of_users[r][e] + factor * out.v[e];
      store_four(a, a.users + int64_t{b.first + i} * a.dim, c, out);
    }
  }
  if (!a.users_wanted) return;
  __syncthreads();
  for_alone(b, s, [&](unsigned i) {
    const int64_t sample = b.first + i;
    for (unsigned j = 0; j < k; ++j) {
      const float* const q = block_row(a, a.item, own_item(a, b.first + i, j));
      const float factor = a.scores[sample * k + j] * warp_scale(a, q);
      for (int c = threadIdx.x % kWarp; c < a.dim; c += kWarp) a.users[sample * a.dim + c] += factor * q[c];
    }
  });
}

// One kernel for all losses: which one it is, is looked up once a block.
__device__ __forceinline__ double block_loss(const BlockArgs& a, const Block& b, BlockSamples& s) {
  switch (a.loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return block_loss<type>(a, b, s);
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_ROW_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      return 0;
  }
}

__global__ void __launch_bounds__(kLossThreads, 2) step_block_kernel(const BlockArgs a) {
  GPU_SHARED_DYN(float, memory);
  GPU_SHARED(BlockSamples, samples, 1);
  BlockSamples& s = samples[0];
  const Block b = block_of(a, memory);
  if (b.count == 0) {
    for (unsigned j = threadIdx.x; j < a.ids.num_negatives; j += kLossThreads)
      a.uses[b.tile * a.ids.num_negatives + j] = 0;
    if (threadIdx.x == 0) a.partials[b.tile] = 0;
    return;
  }
  read_samples(a, b, s);
  __syncthreads();
  score_block(a, b, s);
  score_alone(a, b, s);
  __syncthreads();
  const double total = block_combine<kLossThreads>(block_loss(a, b, s), Add{});
  if (threadIdx.x == 0) a.partials[b.tile] = total;
  block_gradients(a, b, s);
}

inline void step_shared(const BlockArgs& a, gpuStream stream) {
  GPU_ALLOW_SHARED((step_block_kernel), kTilesBytes);
  GPU_LAUNCH((step_block_kernel), a.ids.tiles, kLossThreads, kTilesBytes, stream)(a);
}

}  // namespace GPU_NS
}  // namespace zx
