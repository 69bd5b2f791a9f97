// The table of host_call.h as a Python module. Linked with the emulator and one file of functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/losses.h"
#include "host_call.h"

#ifdef CUEMU_COUNT
#include "counting.h"
#endif

namespace py = pybind11;

namespace {

// A tensor arrives as (address, dtype code, sizes, strides).
hostcall::Value convert(const py::handle& h) {
  hostcall::Value v;
  if (h.is_none()) {
    v.kind = hostcall::Value::TENSOR;
  } else if (py::isinstance<py::tuple>(h)) {
    const py::tuple t = py::reinterpret_borrow<py::tuple>(h);
    v.kind = hostcall::Value::TENSOR;
    v.tensor.data = reinterpret_cast<void*>(t[0].cast<uintptr_t>());
    v.tensor.dtype = hostcall::DType(t[1].cast<int>());
    v.tensor.sizes = t[2].cast<std::vector<int64_t>>();
    v.tensor.strides = t[3].cast<std::vector<int64_t>>();
  } else if (py::isinstance<py::float_>(h)) {
    v.kind = hostcall::Value::REAL;
    v.real = h.cast<double>();
  } else {
    v.integer = h.cast<int64_t>();
  }
  return v;
}

#ifdef CUEMU_COUNT
size_t element_size(hostcall::DType dtype) {
  switch (dtype) {
    case hostcall::DType::f64:
    case hostcall::DType::i64:
      return 8;
    case hostcall::DType::f32:
    case hostcall::DType::i32:
      return 4;
    case hostcall::DType::f16:
    case hostcall::DType::bf16:
    case hostcall::DType::i16:
      return 2;
    default:
      return 1;
  }
}

// The tensors of a call are the device's memory.
void watch(const hostcall::Arguments& arguments) {
  std::vector<std::pair<const void*, size_t>> memory;
  for (const hostcall::Value& v : arguments) {
    if (v.kind != hostcall::Value::TENSOR || !v.tensor || v.tensor.numel() == 0) continue;
    int64_t last = 0;
    for (size_t i = 0; i < v.tensor.sizes.size(); ++i) last += (v.tensor.sizes[i] - 1) * v.tensor.strides[i];
    memory.push_back({v.tensor.data, size_t(last + 1) * element_size(v.tensor.dtype)});
  }
  counting::watch(memory);
}
#endif

py::tuple size_of(const dim3& d) { return py::make_tuple(d.x, d.y, d.z); }

}  // namespace

PYBIND11_MODULE(host_kernels, m) {
  m.def("call", [](const std::string& name, const py::args& args) {
    hostcall::Arguments a;
    for (const py::handle& h : args) a.push_back(convert(h));
#ifdef CUEMU_COUNT
    watch(a);
#endif
    hostcall::call(name, a);
  });
  // The losses in the order of their numbers.
  m.def("loss_names", [] {
    std::vector<std::string> names;
#define ZX_NAME(kind, name, type) names.push_back(name);
    ZX_ALL_LOSSES(ZX_NAME)
#undef ZX_NAME
    return names;
  });
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& f : hostcall::table()) names.push_back(f.first);
    return names;
  });
  // (kernel, grid, block, blocks of a cluster, bytes of dynamic shared memory) of each launch and memset.
  m.def("nodes", [] {
    const cuemu::Nodes nodes = cuemu::nodes();
    if (nodes.count > int64_t(cuemu::kNodesKept)) throw std::runtime_error("more launches than are kept");
    py::list list;
    for (int64_t i = 0; i < nodes.count; ++i) {
      const cuemu::Node& n = nodes.first[i];
      list.append(py::make_tuple(n.kernel, size_of(n.grid), size_of(n.block), n.cluster, n.shared));
    }
    return list;
  });
  m.def("forget", [] {
    cuemu::forget_nodes();
#ifdef CUEMU_COUNT
    counting::forget();
#endif
  });
  // Loaded, stored, 32-byte sectors of both, and loads by threads and warps; None where nothing is counted.
  m.def("bytes", []() -> py::object {
#ifdef CUEMU_COUNT
    const counting::Bytes b = counting::bytes();
    return py::make_tuple(b.loaded, b.stored, b.sectors_loaded, b.sectors_stored, b.loads, b.warp_loads);
#else
    return py::none();
#endif
  });
  m.def("threads_run", [] { return cuemu::threads_run(); });
}
