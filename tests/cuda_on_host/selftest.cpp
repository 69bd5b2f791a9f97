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

// The sum of a cluster's blocks through the shared memory of the first.
__global__ void cluster_sum(const int* x, int* out, int* ranks) {
  GPU_SHARED(int, sum, 1);
  GPU_SHARED_DYN(int, by_rank);
  const int t = threadIdx.x, rank = int(gpu_cluster_rank());
  if (t == 0) sum[0] = 0;
  gpu_cluster_sync();
  atomicAdd(gpu_cluster_peer(sum, 0), x[blockIdx.x * blockDim.x + t]);
  if (t == 0) gpu_cluster_peer(by_rank, 0)[rank] = int(blockIdx.x);
  gpu_cluster_sync();
  if (rank == 0 && t == 0) out[blockIdx.x / gpu_cluster_size()] = sum[0];
  if (rank == 0 && t < int(gpu_cluster_size())) ranks[blockIdx.x + t] = by_rank[t];
}

// The last block waits for what all others store before they raise their flags.
__global__ void flags_sum(const int* x, int* partial, unsigned* flags, int* out) {
  const int t = threadIdx.x, last = int(gridDim.x) - 1;
  if (int(blockIdx.x) != last) {
    if (t == 0) {
      partial[blockIdx.x] = x[blockIdx.x];
      gpu_store_release(flags + blockIdx.x, 1u);
    }
    return;
  }
  GPU_SHARED(int, total, 1);
  if (t == 0) total[0] = x[last];
  __syncthreads();
  for (int i = t; i < last; i += int(blockDim.x)) {
    while (gpu_load_acquire(flags + i) == 0) {
    }
    atomicAdd(total, partial[i]);
  }
  __syncthreads();
  if (t == 0) out[0] = total[0];
}

// Reads every element twice and writes every second one: known numbers of bytes.
__global__ void twice(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const volatile float* v = x;
  const float sum = v[i] + v[i];
  if (i % 2 == 0) y[i] = sum;
}
__global__ void pairs(const float4* x, float4* y, int n, unsigned* counter) {
  GPU_SHARED(float4, s, 32);
  const int i = blockIdx.x * 32 + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : make_float4(0, 0, 0, 0);
  __syncthreads();
  if (i < n) y[i] = s[31 - threadIdx.x];
  if (threadIdx.x == 0) atomicAdd(counter, 1u);
}
__global__ void intrinsics(const float* x, float* e, float* q, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    e[i] = gpu_exp2(x[i]);
    q[i] = gpu_reciprocal(x[i]);
  }
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
hostcall::Function f6("cluster_sum", [](Tensor x, Tensor out, Tensor ranks, int cluster, int threads) {
  GPU_LAUNCH_CLUSTER((cluster_sum), unsigned(ranks.numel()), unsigned(threads), unsigned(cluster),
                     size_t(cluster) * sizeof(int), nullptr)
  (x.ptr<int>(), out.ptr<int>(), ranks.ptr<int>());
});
hostcall::Function f7("flags_sum", [](Tensor x, Tensor partial, Tensor flags, Tensor out) {
  GPU_FILL(flags.data, 0, size_t(flags.numel()) * 4, nullptr);
  GPU_LAUNCH((flags_sum), unsigned(x.numel()), 32, 0, nullptr)
  (x.ptr<int>(), partial.ptr<int>(), flags.ptr<unsigned>(), out.ptr<int>());
});
hostcall::Function f8("twice", [](Tensor x, Tensor y) {
  GPU_LAUNCH((twice), unsigned((x.numel() + 63) / 64), 64, 0, nullptr)(x.ptr<float>(), y.ptr<float>(), int(x.numel()));
});
hostcall::Function f9("pairs", [](Tensor x, Tensor y, Tensor counter) {
  const int n = int(x.numel() / 4);
  GPU_LAUNCH((pairs), unsigned((n + 31) / 32), 32, 0, nullptr)
  (static_cast<const float4*>(x.data), static_cast<float4*>(y.data), n, counter.ptr<unsigned>());
});
hostcall::Function f10("intrinsics", [](Tensor x, Tensor e, Tensor q) {
  GPU_LAUNCH((intrinsics), 1, 32, 0, nullptr)(x.ptr<float>(), e.ptr<float>(), q.ptr<float>(), int(x.numel()));
});
hostcall::Function f11("device", [](Tensor out) {
  out.ptr<int>()[0] = gpu_multiprocessors();
  out.ptr<int>()[1] = GPU_HAS_CLUSTERS((cluster_sum), 1024, 8);
});

}  // namespace GPU_NS
}  // namespace
