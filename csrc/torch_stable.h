// What the sources need of LibTorch's stable ABI (2.11 or newer), and every work-around for it, in one place.
#pragma once

#include "errors.h"  // before torch's headers

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace zx {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The bytes of an element; 0 for dtypes that no op takes.
inline int64_t element_bytes(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Long:
    case ScalarType::Double:
      return 8;
    default:
      return 0;
  }
}

// A tensor's elements must lie in its storage. They do not after storage.resize_(), which sharded training calls.
inline void check_memory(const Tensor& t) {
  const int64_t count = t.numel();
  if (count == 0) return;
  int64_t last = t.storage_offset(), bytes = 0;
  if (t.is_contiguous())
    last += count - 1;
  else
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  ZX_CHECK((last + 1) * element_bytes(t.scalar_type()) <= bytes && t.data_ptr() != nullptr, "a tensor of ", count,
           " elements has a storage of ", bytes, " bytes, which does not hold them");
}

// What every op does before its own checks: looks whether the memory of its tensors is there.
template <class Function, Function* kOp>
struct CheckedOp;
template <class Result, class... Args, Result (*kOp)(Args...)>
struct CheckedOp<Result(Args...), kOp> {
  static Result call(Args... args) {
    (look(args), ...);
    return kOp(std::forward<Args>(args)...);
  }

 private:
  static void look(const Tensor& t) { check_memory(t); }
  static void look(const std::optional<Tensor>& t) {
    if (t) check_memory(*t);
  }
  static void look(const std::vector<Tensor>& list) {
    for (const Tensor& t : list) check_memory(t);
  }
  template <class T>
  static void look(const T&) {}
};
#define ZX_BOX(op) TORCH_BOX((&zx::CheckedOp<std::remove_pointer_t<decltype(op)>, (op)>::call))

// A new uninitialised contiguous tensor on the device of `like`. (The dispatcher's empty costs three times as
// much.)
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  std::array<int64_t, 4> strides{};
  int64_t step = 1;
  for (int i = static_cast<int>(shape.size()) - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape.begin()[i];
  }
  int32_t device_type;
  int32_t device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.begin(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type, device_index, &handle));
  return Tensor(handle);
}

template <class T>
inline T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
inline T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

template <class T>
inline constexpr ScalarType scalar_type_of = ScalarType::Undefined;
template <>
inline constexpr ScalarType scalar_type_of<float> = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type_of<double> = ScalarType::Double;
template <>
inline constexpr ScalarType scalar_type_of<Half> = ScalarType::Half;
template <>
inline constexpr ScalarType scalar_type_of<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType scalar_type_of<int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType scalar_type_of<int64_t> = ScalarType::Long;

// Calls f(T{}) with the element type of a floating-point tensor.
template <class F>
inline auto dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      ZX_CHECK(false, "expected a float32, float64, float16 or bfloat16 tensor");
  }
}

// Calls f(int32_t{}) or f(int64_t{}).
template <class F>
inline auto dispatch_index(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Int:
      return f(int32_t{});
    case ScalarType::Long:
      return f(int64_t{});
    default:
      ZX_CHECK(false, "expected an int32 or int64 tensor");
  }
}

// The type that arithmetic is done in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace zx
