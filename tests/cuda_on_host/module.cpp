// The table of host_call.h as a Python module. Linked with the emulator and one file of functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host_call.h"

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

}  // namespace

PYBIND11_MODULE(host_kernels, m) {
  m.def("call", [](const std::string& name, const py::args& args) {
    hostcall::Arguments a;
    for (const py::handle& h : args) a.push_back(convert(h));
    hostcall::call(name, a);
  });
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& f : hostcall::table()) names.push_back(f.first);
    return names;
  });
  m.def("threads_run", [] { return cuemu::threads_run(); });
}
