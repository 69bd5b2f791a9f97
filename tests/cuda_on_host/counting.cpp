// Counts the bytes that kernels load and store: what the compiler calls at every access under -fsanitize=thread is
// defined here, instead of in ThreadSanitizer's library. Counted is what lies in the tensors that the launcher was
// given, the device's memory; shared memory and a thread's own variables are not. Linked into the build "count" alone.
//
// Two numbers each, of loads and of stores: the bytes that the kernel's instructions ask for, and the 32-byte sectors
// that a launch touches at least once, which is what the device's memory moves where the caches hold the rest. Beside
// these, how many loads the threads make, and those of the busiest thread of each warp, for which the others wait.
#include "counting.h"

#include "cuda_emulator.h"

#include <algorithm>
#include <cstring>

namespace counting {
namespace {

constexpr uintptr_t kSector = 32;

struct Range {
  uintptr_t begin, end;
  std::vector<bool> loaded, stored;  // sectors
};

thread_local std::vector<Range> ranges;
thread_local Bytes total;
thread_local std::vector<int64_t> loads_of;  // by each thread of the launch

void note_load() {
  const cuemu::Self* s = cuemu::self;
  if (s == nullptr) return;
  const size_t threads = size_t(s->bdim.x) * s->bdim.y * s->bdim.z, warps = (threads + 31) / 32;
  const size_t block = s->bid.x + size_t(s->gdim.x) * (s->bid.y + size_t(s->gdim.y) * s->bid.z);
  const size_t thread = s->tid.x + size_t(s->bdim.x) * (s->tid.y + size_t(s->bdim.y) * s->tid.z);
  const size_t at = block * warps * 32 + thread;
  if (at >= loads_of.size()) loads_of.resize(std::max(at + 1, 2 * loads_of.size()));
  ++loads_of[at];
  ++total.loads;
}

void end_launch() {
  for (size_t warp = 0; warp < loads_of.size(); warp += 32)
    total.warp_loads +=
        *std::max_element(loads_of.begin() + warp, loads_of.begin() + std::min(warp + 32, loads_of.size()));
  loads_of.clear();
}

Range* range_of(uintptr_t at) {
  for (Range& r : ranges)
    if (at >= r.begin && at < r.end) return &r;
  return nullptr;
}

inline void access(const void* address, size_t bytes, bool load, bool store) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  Range* r = range_of(at);
  if (r == nullptr) return;
  if (load) total.loaded += int64_t(bytes), note_load();
  if (store) total.stored += int64_t(bytes);
  const uintptr_t base = r->begin / kSector;
  for (uintptr_t s = at / kSector; s <= (at + bytes - 1) / kSector; ++s) {
    const size_t i = size_t(s - base);
    if (i >= r->loaded.size()) break;
    if (load && !r->loaded[i]) r->loaded[i] = true, total.sectors_loaded++;
    if (store && !r->stored[i]) r->stored[i] = true, total.sectors_stored++;
  }
}

}  // namespace

void watch(const std::vector<std::pair<const void*, size_t>>& memory) {
  ranges.clear();
  for (const auto& m : memory) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(m.first), end = begin + m.second;
    if (m.second == 0) continue;
    bool joined = false;
    for (Range& r : ranges)
      if (begin <= r.end && end >= r.begin)
        r.begin = std::min(r.begin, begin), r.end = std::max(r.end, end), joined = true;
    if (!joined) ranges.push_back({begin, end, {}, {}});
  }
  new_launch();
}

// Each launch has its own sectors: between two of them memory may have been elsewhere.
void new_launch() {
  end_launch();
  for (Range& r : ranges) {
    const size_t sectors = size_t(r.end / kSector - r.begin / kSector + 1);
    r.loaded.assign(sectors, false);
    r.stored.assign(sectors, false);
  }
}

void filled(const void* p, size_t bytes) {
  if (bytes > 0) access(p, bytes, false, true);
}

Bytes bytes() {
  end_launch();
  return total;
}
void forget() {
  loads_of.clear();
  total = {};
}

}  // namespace counting

// ---- what -fsanitize=thread calls

using counting::access;

#define ZX_ACCESS(N)                                                             \
  void __tsan_read##N(void* p) { access(p, N, true, false); }                    \
  void __tsan_write##N(void* p) { access(p, N, false, true); }                   \
  void __tsan_unaligned_read##N(void* p) { access(p, N, true, false); }          \
  void __tsan_unaligned_write##N(void* p) { access(p, N, false, true); }         \
  void __tsan_read_write##N(void* p) { access(p, N, true, true); }               \
  void __tsan_unaligned_read_write##N(void* p) { access(p, N, true, true); }     \
  void __tsan_volatile_read##N(void* p) { access(p, N, true, false); }           \
  void __tsan_volatile_write##N(void* p) { access(p, N, false, true); }          \
  void __tsan_unaligned_volatile_read##N(void* p) { access(p, N, true, false); } \
  void __tsan_unaligned_volatile_write##N(void* p) { access(p, N, false, true); }

// An atomic counts as a load, a store or both; a compare-exchange as a store, for the emulator loads before it. The
// order is the strictest: there is one thread.
#define ZX_ATOMIC(BITS)                                                                                              \
  using Word##BITS = uint##BITS##_t;                                                                                 \
  Word##BITS __tsan_atomic##BITS##_load(const volatile Word##BITS* p, int) {                                         \
    access(const_cast<const Word##BITS*>(p), BITS / 8, true, false);                                                 \
    return *p;                                                                                                       \
  }                                                                                                                  \
  void __tsan_atomic##BITS##_store(volatile Word##BITS* p, Word##BITS v, int) {                                      \
    access(const_cast<const Word##BITS*>(p), BITS / 8, false, true);                                                 \
    *p = v;                                                                                                          \
  }                                                                                                                  \
  Word##BITS __tsan_atomic##BITS##_exchange(volatile Word##BITS* p, Word##BITS v, int) {                             \
    access(const_cast<const Word##BITS*>(p), BITS / 8, true, true);                                                  \
    const Word##BITS old = *p;                                                                                       \
    *p = v;                                                                                                          \
    return old;                                                                                                      \
  }                                                                                                                  \
  Word##BITS __tsan_atomic##BITS##_fetch_add(volatile Word##BITS* p, Word##BITS v, int) {                            \
    access(const_cast<const Word##BITS*>(p), BITS / 8, true, true);                                                  \
    const Word##BITS old = *p;                                                                                       \
    *p = Word##BITS(old + v);                                                                                        \
    return old;                                                                                                      \
  }                                                                                                                  \
  int __tsan_atomic##BITS##_compare_exchange_strong(volatile Word##BITS* p, Word##BITS* expected, Word##BITS v, int, \
                                                    int) {                                                           \
    access(const_cast<const Word##BITS*>(p), BITS / 8, false, true);                                                 \
    const Word##BITS old = *p;                                                                                       \
    if (old == *expected) {                                                                                          \
      *p = v;                                                                                                        \
      return 1;                                                                                                      \
    }                                                                                                                \
    *expected = old;                                                                                                 \
    return 0;                                                                                                        \
  }                                                                                                                  \
  int __tsan_atomic##BITS##_compare_exchange_weak(volatile Word##BITS* p, Word##BITS* expected, Word##BITS v, int a, \
                                                  int b) {                                                           \
    return __tsan_atomic##BITS##_compare_exchange_strong(p, expected, v, a, b);                                      \
  }

extern "C" {
ZX_ACCESS(1)
ZX_ACCESS(2)
ZX_ACCESS(4)
ZX_ACCESS(8)
ZX_ACCESS(16)
ZX_ATOMIC(8)
ZX_ATOMIC(16)
ZX_ATOMIC(32)
ZX_ATOMIC(64)
void __tsan_read_range(void* p, size_t n) { access(p, n, true, false); }
void __tsan_write_range(void* p, size_t n) { access(p, n, false, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}
}
