// How tests reach a launcher: a table of functions by name, whose arguments are tensors and numbers.
//
//   static hostcall::Function f("pair_loss", [](Tensor pos, Tensor out, int64_t n, double a) { launch(...);
//   });
//
// module.cpp makes the table a Python module; replay.cpp runs calls that a test recorded to a file, for
// ThreadSanitizer, which cannot be loaded into Python.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/gpu.h"

namespace hostcall {

// The codes are those of DTYPES in __init__.py.
enum class DType : int32_t { f32, f64, f16, bf16, u8, i16, i32, i64, boolean };

template <class T>
constexpr bool holds(DType d) {
  if constexpr (std::is_same_v<T, float>) return d == DType::f32;
  if constexpr (std::is_same_v<T, double>) return d == DType::f64;
  if constexpr (std::is_same_v<T, __half>) return d == DType::f16;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return d == DType::bf16;
  if constexpr (std::is_integral_v<T>)
    return sizeof(T) == 1   ? d == DType::u8 || d == DType::boolean
           : sizeof(T) == 2 ? d == DType::i16
           : sizeof(T) == 4 ? d == DType::i32
                            : d == DType::i64;
  return false;
}

struct Tensor {
  void* data = nullptr;  // null where Python passed None
  DType dtype = DType::f32;
  std::vector<int64_t> sizes, strides;  // strides in elements

  explicit operator bool() const { return data != nullptr; }
  int64_t size(size_t i) const { return sizes.at(i); }
  int64_t stride(size_t i) const { return strides.at(i); }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : sizes) n *= s;
    return n;
  }
  // The elements as T, signed or not alike; null for None.
  template <class T>
  T* ptr() const {
    if (data && !holds<std::remove_const_t<T>>(dtype)) throw std::runtime_error("host_call: tensor of another dtype");
    return static_cast<T*>(data);
  }
};

struct Value {
  enum Kind : uint8_t { TENSOR, INTEGER, REAL } kind = INTEGER;
  Tensor tensor;
  int64_t integer = 0;
  double real = 0;

  template <class T>
  T as() const {
    if constexpr (std::is_same_v<T, Tensor>) {
      if (kind != TENSOR) throw std::runtime_error("host_call: expected a tensor or None");
      return tensor;
    } else if constexpr (std::is_integral_v<T>) {
      if (kind != INTEGER) throw std::runtime_error("host_call: expected an integer");
      return T(integer);
    } else {
      if (kind == TENSOR) throw std::runtime_error("host_call: expected a number");
      return T(kind == INTEGER ? double(integer) : real);
    }
  }
};

using Arguments = std::vector<Value>;
using Table = std::map<std::string, std::function<void(const Arguments&)>>;

inline Table& table() {
  static Table t;
  return t;
}

inline void call(const std::string& name, const Arguments& arguments) {
  const auto f = table().find(name);
  if (f == table().end()) throw std::runtime_error("host_call: no function " + name);
  f->second(arguments);
}

struct Function {
  template <class F>
  Function(const char* name, F f) : Function(name, f, &F::operator()) {}

 private:
  template <class F, class... A>
  Function(const char* name, F f, void (F::*)(A...) const) {
    table()[name] = [f](const Arguments& a) { apply<A...>(f, a, std::index_sequence_for<A...>()); };
  }
  template <class... A, class F, size_t... I>
  static void apply(F f, const Arguments& a, std::index_sequence<I...>) {
    if (a.size() != sizeof...(A)) throw std::runtime_error("host_call: expected another number of arguments");
    f(a[I].template as<std::decay_t<A>>()...);
  }
};

}  // namespace hostcall

using hostcall::Tensor;
