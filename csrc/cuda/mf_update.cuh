// An optimizer's step on a table on the GPU (csrc/common/optimizers.h), from the sparse gradient of mf_gradient.cuh:
// ascending distinct rows and their values. Rows numbered beyond the table are padding and skipped.
//
// A thread takes four neighbouring elements where rows allow that. Dense Adam sweeps over the whole table; a row's
// place in the gradient is looked up in a map, [table] integers, so that the gradient of the rows that no sample
// touched is never stored.
//
// The learning rate and the number of the step may lie in memory: then a captured graph goes on with what it finds
// there.
#pragma once

#include "common/number.h"
#include "common/optimizers.h"
#include "cuda/types.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kUpdateThreads = 256;
constexpr int64_t kUpdateBlocks = 1 << 14;  // at most: more work is walked in strides
constexpr int kUpdatePack = 4;

struct UpdateArgs {
  Number lr, step;
  double x, y, eps;     // as make_rule takes them
  UpdateRule rule;      // where both numbers are known
  bool ruled;           // whether they are
  const int64_t* rows;  // [count]
  int64_t count;
  const float* values;   // [count, dim]
  float *table, *m, *v;  // [size, dim]; m and v are null where the optimizer has no such state
  int64_t size, dim;
  int* places;  // [size], for dense Adam: -1 beforehand
};

// The rule of this step, for all threads of the block.
template <Optimizer kKind>
__device__ __forceinline__ UpdateRule rule_of(const UpdateArgs& a) {
  if (a.ruled) return a.rule;
  GPU_SHARED(UpdateRule, rule, 1);
  if (threadIdx.x == 0) rule[0] = make_rule(kKind, a.lr.read(), a.x, a.y, a.eps, a.step.read());
  __syncthreads();
  return rule[0];
}

template <Optimizer kKind, int N>
__device__ __forceinline__ void update_pack(const UpdateArgs& a, const UpdateRule& rule, int64_t at,
                                            const Pack<float, N>& g) {
  Pack<float, N> p = load_pack<float, N>(a.table + at), m, v;
  constexpr bool kFirst = kKind == Optimizer::kAdam || kKind == Optimizer::kLazyAdam;
  constexpr bool kSecond = kKind != Optimizer::kSgd;
  if constexpr (kFirst) m = load_pack<float, N>(a.m + at);
  if constexpr (kSecond) v = load_pack<float, N>(a.v + at);
#pragma unroll
  for (int n = 0; n < N; ++n) update_element<kKind>(rule, g.v[n], p.v[n], m.v[n], v.v[n]);
  store_pack(a.table + at, p);
  if constexpr (kFirst) store_pack(a.m + at, m);
  if constexpr (kSecond) store_pack(a.v + at, v);
}

// The rows of the gradient alone.
template <Optimizer kKind, int N>
__global__ void __launch_bounds__(kUpdateThreads, 4) update_rows_kernel(const UpdateArgs a) {
  const UpdateRule rule = rule_of<kKind>(a);
  const int64_t packs = a.dim / N, threads = gridDim.x * int64_t(kUpdateThreads);
  for (int64_t i = blockIdx.x * int64_t(kUpdateThreads) + threadIdx.x; i < a.count * packs; i += threads) {
    const int64_t s = i / packs, row = a.rows[s];
    if (static_cast<uint64_t>(row) >= static_cast<uint64_t>(a.size)) continue;
    update_pack<kKind, N>(a, rule, row * a.dim + (i - s * packs) * N, load_pack<float, N>(a.values + i * N));
  }
}

__global__ void __launch_bounds__(kUpdateThreads)
    row_places_kernel(const int64_t* rows, int64_t count, int64_t size, int* places) {
  const int64_t threads = gridDim.x * int64_t(kUpdateThreads);
  for (int64_t s = blockIdx.x * int64_t(kUpdateThreads) + threadIdx.x; s < count; s += threads)
    if (static_cast<uint64_t>(rows[s]) < static_cast<uint64_t>(size)) places[rows[s]] = static_cast<int>(s);
}

// All rows; those that are not in the gradient have gradient 0.
template <Optimizer kKind, int N>
__global__ void __launch_bounds__(kUpdateThreads, 4) update_table_kernel(const UpdateArgs a) {
  const UpdateRule rule = rule_of<kKind>(a);
  const int64_t packs = a.dim / N, threads = gridDim.x * int64_t(kUpdateThreads);
  for (int64_t i = blockIdx.x * int64_t(kUpdateThreads) + threadIdx.x; i < a.size * packs; i += threads) {
    const int64_t row = i / packs, place = a.places[row];
    Pack<float, N> g = {};
    if (place >= 0) g = load_pack<float, N>(a.values + place * a.dim + (i - row * packs) * N);
    update_pack<kKind, N>(a, rule, i * N, g);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

inline unsigned update_blocks(int64_t work) {
  const int64_t blocks = (work + kUpdateThreads - 1) / kUpdateThreads;
  return static_cast<unsigned>(blocks < kUpdateBlocks ? blocks : kUpdateBlocks);
}

template <int N>
void run_update(Optimizer kind, const UpdateArgs& a, gpuStream stream) {
  const unsigned blocks = update_blocks((kind == Optimizer::kAdam ? a.size : a.count) * (a.dim / N));
  if (blocks == 0) return;
  switch (kind) {
    case Optimizer::kSgd:
      GPU_LAUNCH((update_rows_kernel<Optimizer::kSgd, N>), blocks, kUpdateThreads, 0, stream)(a);
      return;
    case Optimizer::kAdagrad:
      GPU_LAUNCH((update_rows_kernel<Optimizer::kAdagrad, N>), blocks, kUpdateThreads, 0, stream)(a);
      return;
    case Optimizer::kLazyAdam:
      GPU_LAUNCH((update_rows_kernel<Optimizer::kLazyAdam, N>), blocks, kUpdateThreads, 0, stream)(a);
      return;
    case Optimizer::kAdam:
      if (a.count > 0) GPU_LAUNCH((row_places_kernel), update_blocks(a.count), kUpdateThreads, 0, stream)
      (a.rows, a.count, a.size, a.places);
      GPU_LAUNCH((update_table_kernel<Optimizer::kAdam, N>), blocks, kUpdateThreads, 0, stream)(a);
      return;
  }
}

inline void mf_update(Optimizer kind, UpdateArgs a, gpuStream stream) {
  a.ruled = a.lr.known() && a.step.known();
  if (a.ruled) a.rule = make_rule(kind, a.lr.value, a.x, a.y, a.eps, a.step.value);
  bool packed = a.dim % kUpdatePack == 0;
  for (const float* p :
       {a.values, static_cast<const float*>(a.table), static_cast<const float*>(a.m), static_cast<const float*>(a.v)})
    packed &= p == nullptr || aligned16(p);
  if (packed)
    run_update<kUpdatePack>(kind, a, stream);
  else
    run_update<1>(kind, a, stream);
}

}  // namespace GPU_NS
}  // namespace zx
