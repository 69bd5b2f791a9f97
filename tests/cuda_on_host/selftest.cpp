// Small kernels whose results are known, one for each thing that the emulator stands in for.
#include "host_call.h"

namespace {
inline namespace GPU_NS {

constexpr unsigned kFull = 0xffffffffu;

template <class Half>
__global__ void round_trip(const float* x, Half* h, float* back, int n);
template <>
__global__ void round_trip(const float* x, __half* h, float* back, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) back[i] = __half2float(h[i] = __float2half_rn(x[i]));
}
template <>
__global__ void round_trip(const float* x, __nv_bfloat16* h, float* back, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) back[i] = __bfloat162float(h[i] = __float2bfloat16_rn(x[i]));
}

// Row r of out is one warp operation's result in each lane.
__global__ void warp_operations(const int* x, int* out) {
  const int lane = threadIdx.x, v = x[lane];
  int r = 0;
  auto put = [&](int value) { out[r++ * 32 + lane] = value; };
  put(__shfl_sync(kFull, v, 5));
  put(__shfl_sync(kFull, v, lane + 3, 8));
  put(__shfl_up_sync(kFull, v, 2, 16));
  put(__shfl_down_sync(kFull, v, 3, 4));
  put(__shfl_xor_sync(kFull, v, 9));
  put(int(__ballot_sync(kFull, v & 1)));
  put(__any_sync(kFull, v > 1000));
  put(__all_sync(kFull, v < 1000));
  put(int(__match_any_sync(kFull, v % 3)));
  put(int(__reduce_add_sync(kFull, unsigned(v))));
  put(lane < 16 ? __shfl_xor_sync(0xffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2));
  put(__syncthreads_count(v & 1));
  put(__syncthreads_or(v == 0));
}

// The sum by the last block to finish, with the fence that the planted bug lacks.
__global__ void last_block_sum(const double* x, int64_t n, double* partial, unsigned* counter, double* out) {
  GPU_SHARED(bool, last, 1);
  GPU_SHARED_DYN(double, s);
  const int t = threadIdx.x;
  double a = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + t; i < n; i += int64_t(gridDim.x) * blockDim.x) a += x[i];
  s[t] = a;
  __syncthreads();
  for (int half = blockDim.x / 2; half; half /= 2) {
    if (t < half) s[t] += s[t + half];
    __syncthreads();
  }
  if (t == 0) {
    atomicExch(partial + blockIdx.x, s[0]);
    __threadfence();
    last[0] = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && t == 0) {
    a = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) a += atomicAdd(partial + i, 0.0);
    *out = a;
  }
}

__global__ void scatter_add(const int* index, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(out + index[i], 1.f);
}

hostcall::Function f1("half_round_trip", [](Tensor x, Tensor h, Tensor back) {
  GPU_LAUNCH((round_trip<__half>), 1, 32, 0, nullptr)
  (x.ptr<float>(), h.ptr<__half>(), back.ptr<float>(), int(x.numel()));
});
hostcall::Function f2("bfloat16_round_trip", [](Tensor x, Tensor h, Tensor back) {
  GPU_LAUNCH((round_trip<__nv_bfloat16>), 1, 32, 0, nullptr)
  (x.ptr<float>(), h.ptr<__nv_bfloat16>(), back.ptr<float>(), int(x.numel()));
});
hostcall::Function f3("warp_operations", [](Tensor x, Tensor out) {
  GPU_LAUNCH((warp_operations), 1, 32, 0, nullptr)(x.ptr<int>(), out.ptr<int>());
});
hostcall::Function f4("last_block_sum", [](Tensor x, Tensor partial, Tensor counter, Tensor out) {
  GPU_LAUNCH((last_block_sum), unsigned(partial.numel()), 64, 64 * sizeof(double), nullptr)
  (x.ptr<double>(), x.numel(), partial.ptr<double>(), counter.ptr<unsigned>(), out.ptr<double>());
});
hostcall::Function f5("scatter_add", [](Tensor index, Tensor out) {
  GPU_LAUNCH((scatter_add), unsigned((index.numel() + 63) / 64), 64, 0, nullptr)
  (index.ptr<int>(), out.ptr<float>(), int(index.numel()));
});

}  // namespace GPU_NS
}  // namespace
