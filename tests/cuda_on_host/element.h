// The element types of csrc/cuda, from a tensor's dtype.
#pragma once

#include "cuda/loss_common.cuh"
#include "host_call.h"

inline zx::Element element_of(const Tensor& t) {
  switch (t.dtype) {
    case hostcall::DType::f64:
      return zx::Element::kDouble;
    case hostcall::DType::f16:
      return zx::Element::kHalf;
    case hostcall::DType::bf16:
      return zx::Element::kBFloat16;
    default:
      return zx::Element::kFloat;
  }
}
