// What ops ask of their tensors: element types, and the tables and ids of matrix factorization.
#pragma once

#include <atomic>
#include <chrono>

#include "checks.h"
#include "cuda/call.h"
#include "cuda/loss_common.cuh"

namespace zx::cuda {

inline ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

// A number that no launch of any process on this machine has had, for the flags of a sum (loss_common.cuh): what lies
// in memory that was just allocated is another, but for one chance in 2^64.
inline unsigned long long new_ticket() {
  static std::atomic<uint64_t> count{
      static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()) ^
      static_cast<uint64_t>(reinterpret_cast<uintptr_t>(&count)) << 20};
  uint64_t x =
      count.fetch_add(0x9e3779b97f4a7c15u, std::memory_order_relaxed);  // the steps and the mixing of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return x != 0 ? x : 1;
}

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      ZX_CHECK(false, "expected a float32, float64, float16 or bfloat16 tensor");
  }
}

inline void check_mf_tensors(const Call& call, const Tensor& user, const Tensor& item, const Tensor& users,
                             const Tensor& positives, const Tensor& negatives) {
  call.require_here(item, "item_embedding");
  call.require_here(users, "users");
  call.require_here(positives, "positives");
  call.require_here(negatives, "negatives");
  zx::check_mf_tensors(user, item, users, positives, negatives);
  ZX_CHECK(users.dim() == 1, "users must be [B]");
}

}  // namespace zx::cuda
