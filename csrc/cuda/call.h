// What every op on CUDA tensors begins and ends with: the tensors' device, its current stream, and the error of a
// launch. Nothing here waits for the GPU, so that every op can be captured in a CUDA graph.
//
// nvcc compiles a .cu file once for the host and once for each architecture. To read torch's headers takes two seconds
// each time, so the ops' half of a file is left out of the latter. What it launches must be known all the same: the
// launchers that are templates are instantiated before it. (tools/cuda_check.py finds kernels that were forgotten.)
#pragma once

#include "torch_stable.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/gpu.h"

namespace zx::cuda {

class Call {
 public:
  // A tensor on the CPU comes here too, where another one is on a GPU.
  explicit Call(const Tensor& on) : device_(device_of(on)), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<gpuStream>(stream);
  }

  gpuStream stream() const { return stream_; }

  void require_here(const Tensor& t, const char* name) const {
    ZX_CHECK(t.is_cuda() && t.get_device_index() == device_, name, " must be on the CUDA device ", device_,
             " as the other tensors are");
  }
  void require_here(const std::optional<Tensor>& t, const char* name) const {
    if (t) require_here(*t, name);
  }

  // To be called after the last launch. (An error of the kernel itself shows up at a later call, as always in CUDA.)
  static void check() { check(cudaGetLastError(), "launch"); }

  // What another function of the runtime returned. The runtime remembers an error until it is asked for: it is here, or
  // the next op would take it for its own.
  static void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    ZX_CHECK(false, "CUDA: ", what, ": ", cudaGetErrorString(error));
  }

  void fill(void* memory, int byte, int64_t bytes) const {
    if (bytes > 0) check(cudaMemsetAsync(memory, byte, bytes, stream_), "memset");
  }

 private:
  static int32_t device_of(const Tensor& on) {
    ZX_CHECK(on.is_cuda(), "the first tensor must be on a CUDA device, where others are");
    return on.get_device_index();
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  gpuStream stream_ = nullptr;
};

}  // namespace zx::cuda
