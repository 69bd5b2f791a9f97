// Runs calls recorded by cuda_on_host.Kernels: `replay FILE`. Buffers are allocated at their exact size and
// at the misalignment they had. Exits with 0, or 3 with a message when a kernel failed; a sanitizer has a
// status of its own.
//
// The file, little-endian: for each call
//   i32 length, name; i32 buffers, each { i64 bytes, i64 misalignment, data };
//   i32 arguments, each { i32 kind, then TENSOR: i32 buffer or -1, i64 byte offset, i32 dtype, i32 dims,
//   sizes, strides
//                                   INTEGER: i64   REAL: f64 }
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "host_call.h"

namespace {

template <class T>
T read(std::ifstream& in) {
  T v;
  in.read(reinterpret_cast<char*>(&v), sizeof v);
  if (!in) throw std::runtime_error("replay: the file ends early");
  return v;
}

constexpr int64_t kAlign = 64;

struct Buffer {
  char* base = nullptr;
  char* data = nullptr;
};

void one_call(std::ifstream& in, int length) {
  std::string name(size_t(length), '\0');
  in.read(&name[0], length);
  std::vector<Buffer> buffers(size_t(read<int32_t>(in)));
  for (Buffer& b : buffers) {
    const int64_t bytes = read<int64_t>(in), misalignment = read<int64_t>(in);
    void* p = nullptr;
    if (posix_memalign(&p, kAlign, size_t(std::max<int64_t>(bytes + misalignment, 1)))) abort();
    b.base = static_cast<char*>(p);
    b.data = b.base + misalignment;
    in.read(b.data, bytes);
  }
  hostcall::Arguments arguments(size_t(read<int32_t>(in)));
  for (hostcall::Value& v : arguments) {
    v.kind = hostcall::Value::Kind(read<int32_t>(in));
    if (v.kind == hostcall::Value::INTEGER) v.integer = read<int64_t>(in);
    if (v.kind == hostcall::Value::REAL) v.real = read<double>(in);
    if (v.kind != hostcall::Value::TENSOR) continue;
    const int32_t buffer = read<int32_t>(in);
    const int64_t offset = read<int64_t>(in);
    v.tensor.dtype = hostcall::DType(read<int32_t>(in));
    const int32_t dims = read<int32_t>(in);
    for (int32_t i = 0; i < dims; ++i) v.tensor.sizes.push_back(read<int64_t>(in));
    for (int32_t i = 0; i < dims; ++i) v.tensor.strides.push_back(read<int64_t>(in));
    if (buffer >= 0) v.tensor.data = buffers.at(size_t(buffer)).data + offset;
  }
  printf("%s\n", name.c_str());
  fflush(stdout);
  hostcall::call(name, arguments);
  for (Buffer& b : buffers) free(b.base);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ifstream in(argv[1], std::ios::binary);
  int calls = 0;
  try {
    for (int32_t length; in.read(reinterpret_cast<char*>(&length), sizeof length); ++calls) one_call(in, length);
  } catch (const std::exception& e) {
    printf("%s\n", e.what());
    return 3;
  }
  printf("%d calls, %lld threads\n", calls, static_cast<long long>(cuemu::threads_run()));
  return calls ? 0 : 2;
}
