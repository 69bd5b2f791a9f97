// The scheduler of cuda_emulator.h. Compiled WITHOUT -fsanitize, but with -DCUEMU_ASAN or -DCUEMU_TSAN where
// the kernels are compiled with -fsanitize=address or -fsanitize=thread: it tells the sanitizer which fiber
// runs. -DCUEMU_COUNT goes with the kernels that counting.cpp counts the bytes of.
//
// Environment, read at each launch:
//   CUEMU_ORDER     0 threads and blocks in order, 1 in reverse, 2 at random
//   CUEMU_SEED      of the random order
//   CUEMU_YIELD     n: at an atomic, another thread runs with probability 1/n (default: 4 at random, else never)
//   CUEMU_RESIDENT  blocks in flight at once (default 1; a cluster always is as a whole)
//   CUEMU_SMS       multiprocessors of the device, as kernels' launchers are told (default 4)
//   CUEMU_CLUSTERS  0: a device without thread-block clusters, before sm_90 (default 1)
//   CUEMU_ULP       how gpu_exp2 and gpu_reciprocal err: see cuda_emulator.h (default 0)
#include "cuda_emulator.h"

#include <sys/mman.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef CUEMU_COUNT
#include "counting.h"
#define COUNT(x) x
#else
#define COUNT(x)
#endif

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef CUEMU_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}
#define ASAN(x) x
#else
#define ASAN(x)
#endif

#ifdef CUEMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateBenignRaceSized(const char*, int, void*, size_t, const char*);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define TSAN(x) x
#else
#define TSAN(x)
#endif

namespace cuemu {

thread_local Self* self = nullptr;

namespace {

// ------------------------------------------------------------------------------------------------ fibers

constexpr size_t kGuard = 4096;
#ifdef CUEMU_ASAN
constexpr size_t kStack = 256 * 1024;  // red zones make frames large
#else
constexpr size_t kStack = 64 * 1024;
#endif

#ifdef __x86_64__
struct Context {
  void* sp = nullptr;
};
// Saves the callee-saved registers on this stack, goes to the other, restores its own. A tenth of
// swapcontext's cost, which calls the kernel for the signal mask.
__attribute__((naked, noinline)) void swap_stack(void** /*save*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
void swap(Context& from, Context& to) { swap_stack(&from.sp, to.sp); }
void prepare(Context& c, char* stack, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t(15));
  *--sp = nullptr;  // the return address that entry would see: it never returns
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  c.sp = sp;
}
#else
struct Context {
  ucontext_t u;
};
void swap(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
void prepare(Context& c, char* stack, void (*entry)()) {
  getcontext(&c.u);
  c.u.uc_stack.ss_sp = stack + kGuard;
  c.u.uc_stack.ss_size = kStack - kGuard;
  c.u.uc_link = nullptr;
  makecontext(&c.u, entry, 0);
}
#endif

// Fiber stacks, kept between launches: a page that is never touched costs nothing.
class Stacks {
 public:
  char* get(size_t i) {
    while (i / kArena >= arenas_.size()) {
      void* a = mmap(nullptr, kArena * kStack, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (a == MAP_FAILED) throw std::bad_alloc();
      char* base = static_cast<char*>(a);
      for (size_t k = 0; k < kArena; ++k) mprotect(base + k * kStack, kGuard, PROT_NONE);
      // What an earlier fiber did on a stack is no race with the one that has it now.
      TSAN(AnnotateBenignRaceSized(__FILE__, __LINE__, a, kArena * kStack, "fiber stacks"));
      arenas_.push_back(base);
    }
    return arenas_[i / kArena] + i % kArena * kStack;
  }
  ~Stacks() {
    for (char* a : arenas_) munmap(a, kArena * kStack);
  }

 private:
  static constexpr size_t kArena = 1024;
  std::vector<char*> arenas_;
};
thread_local Stacks stacks;

// ------------------------------------------------------------------------------------------------ state

enum State : uint8_t { NEW, READY, AT_BARRIER, AT_WARP, AT_CLUSTER, DONE };

struct Block;
struct Cluster;
struct Lane {  // one CUDA thread
  Self pub;
  Context context;
  Block* block;
  char* stack;
  State state;
  int linear;
  bool fenced, spinning;
  const void* waits_for;
  // the pending warp operation
  Op op;
  unsigned mask;
  uint64_t value;
  int arg, width;
  Site site;
  uint64_t result;
  // the pending barrier
  int predicate, barrier_result;
  ASAN(void* fake = nullptr;)
  TSAN(void* fiber = nullptr; uint64_t* arrive = nullptr; uint64_t* depart = nullptr;)
};

struct Block {
  static constexpr int kMaxShared = 64;
  struct SharedArray {
    const void* key;
    void* p;
    size_t bytes;
  };
  Lane* lanes;
  Cluster* cluster;
  int n, alive, arrived;
  unsigned generation;
  Site barrier_site;
  BarrierOp barrier_op;
  SharedArray shared[kMaxShared];
  int n_shared;
  void* dynamic;
  TSAN(uint64_t* sync = nullptr;)  // [0..1] the barrier, by parity; then each lane's two
};

// The blocks that see each other's shared memory: one, where the launch asks for no clusters.
struct Cluster {
  Block* blocks;
  int n, alive, arrived;  // blocks; threads of all of them
  unsigned generation;
  Site site;
  TSAN(uint64_t* sync = nullptr;)
};

struct Scheduler {
  Context main;
  void (*fn)(void*);
  void* arg;
  char error[768];
  bool failed = false;
  Lane** ready = nullptr;  // a ring: a lane is in it at most once
  size_t capacity = 0, head = 0, tail = 0;
  int order = 0;
  uint64_t rng = 1;
  int yield_one_in = 0;
  size_t dynamic_bytes = 0;
  int64_t idle = 0;  // turns in a row in which a thread did nothing but look whether it can go on
  ASAN(const void* main_bottom = nullptr; size_t main_size = 0; void* main_fake = nullptr;)
  TSAN(void* main_fiber = nullptr; char end_sync;)
  uint64_t next() {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * 0x2545F4914F6CDD1Dull >> 11;
  }
};

thread_local Scheduler* sched = nullptr;
thread_local Lane* current = nullptr;
thread_local int64_t threads_total = 0;
thread_local int64_t node_count = 0;
thread_local std::vector<Node> node_list;

void note(const Node& node) {
  if (node_list.size() < kNodesKept) node_list.push_back(node);
  ++node_count;
}

std::map<std::string, size_t>& shared_allowance() {
  static std::map<std::string, size_t> allowance;
  return allowance;
}

// ------------------------------------------------------------------------------------------------ switching

void switch_to_main(bool dying) {
  Lane* me = current;
  ASAN(__sanitizer_start_switch_fiber(dying ? nullptr : &me->fake, sched->main_bottom, sched->main_size);)
  TSAN(__tsan_switch_to_fiber(sched->main_fiber, 1);)
  swap(me->context, sched->main);
  ASAN(__sanitizer_finish_switch_fiber(me->fake, &sched->main_bottom, &sched->main_size);)(void) dying;
}

void make_ready(Lane* l) {
  l->state = READY;
  sched->ready[sched->tail++ & (sched->capacity - 1)] = l;
}

// Messages are formatted into fixed buffers: a fiber that is given up runs no destructors.
struct Text {
  char b[256];
  explicit Text(const Lane* l) {
    const Self& p = l->pub;
    snprintf(b, sizeof b, "block (%u,%u,%u) thread (%u,%u,%u)", p.bid.x, p.bid.y, p.bid.z, p.tid.x, p.tid.y, p.tid.z);
  }
  explicit Text(Site s) { snprintf(b, sizeof b, "%s:%d", s.file ? s.file : "?", s.line); }
};

// Ends the launch: records the message and leaves the fiber for good.
template <class... A>
[[noreturn]] void die(const char* format, A... a) {
  TSAN(__tsan_switch_to_fiber(sched->main_fiber,
                              1);)  // the formatting is the scheduler's doing, to TSan's eyes
  if (!sched->failed) {
    sched->failed = true;
    snprintf(sched->error, sizeof sched->error, format, a...);
  }
  switch_to_main(false);
  abort();
}
template <class... A>
[[noreturn]] void fail_with(Site where, const char* format, A... a) {
  TSAN(__tsan_switch_to_fiber(sched->main_fiber, 1);)
  char message[384];
  snprintf(message, sizeof message, format, a...);
  fail(message, where);
}

bool same_site(Site a, Site b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

void release_barrier(Block* b) {
  int count = 0;
  for (int i = 0; i < b->n; ++i)
    if (b->lanes[i].state == AT_BARRIER) count += b->lanes[i].predicate;
  const int result = b->barrier_op == BAR_COUNT ? count : b->barrier_op == BAR_AND ? count == b->arrived : count > 0;
  b->arrived = 0;
  b->generation++;
  for (int i = 0; i < b->n; ++i)
    if (b->lanes[i].state == AT_BARRIER) {
      b->lanes[i].barrier_result = result;
      make_ready(&b->lanes[i]);
    }
}

// A thread that ends while others of its warp or block still wait for it is an error in the kernel: hardware
// may hang, or go on with values that nobody promised.
void lane_exit() {
  Lane* me = current;
  Block* b = me->block;
  me->state = DONE;
  b->alive--;
  b->cluster->alive--;
  const int warp = me->linear & ~31;
  for (int j = warp; j < std::min(warp + 32, b->n); ++j) {
    Lane& other = b->lanes[j];
    if (other.state == AT_WARP && (other.mask >> me->pub.lane & 1))
      die("%s waits at %s for lane %d, which exited", Text(&other).b, Text(other.site).b, me->pub.lane);
  }
  if (b->arrived > 0) die("__syncthreads at %s not reached by %s, which exited", Text(b->barrier_site).b, Text(me).b);
  if (b->cluster->arrived > 0)
    die("the cluster's barrier at %s not reached by %s, which exited", Text(b->cluster->site).b, Text(me).b);
}

void entry() {
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &sched->main_bottom, &sched->main_size);)
  sched->fn(sched->arg);
  lane_exit();
  TSAN(__tsan_release(&sched->end_sync);)
  switch_to_main(true);
  abort();
}

void resume(Lane* l) {
  if (l->state == NEW) {
    prepare(l->context, l->stack, entry);
    TSAN(l->fiber = __tsan_create_fiber(0);)
  }
  l->state = READY;
  current = l;
  self = &l->pub;
  ASAN(__sanitizer_start_switch_fiber(&sched->main_fake, l->stack + kGuard, kStack - kGuard);)
  TSAN(__tsan_switch_to_fiber(l->fiber, 1);)
  swap(sched->main, l->context);
  ASAN(__sanitizer_finish_switch_fiber(sched->main_fake, nullptr, nullptr);)
  self = nullptr;
  current = nullptr;
}

#ifdef CUEMU_TSAN
// A destroyed fiber's id is soon given to a new one, and TSan takes the two for one thread and reports no
// race between them. So finished fibers are kept, up to what TSan's 8192 ids allow.
void retire(void* fiber) {
  static void* ring[4096];
  static size_t n = 0;
  void*& slot = ring[n++ % 4096];
  if (slot) __tsan_destroy_fiber(slot);
  slot = fiber;
}
#endif

// While one lives, TSan ignores writes of the emulator itself (its own allocations and frees).
struct Unwatched {
#ifdef CUEMU_TSAN
  Unwatched() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unwatched() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  Unwatched() {}
#endif
  Unwatched(const Unwatched&) = delete;
};

// Exact in size, so that ASan's red zone starts right behind it; filled with NaN bits, so that reading what
// nobody wrote shows in the result.
void* fresh(size_t bytes) {
  Unwatched quiet;
  void* p = nullptr;
  if (posix_memalign(&p, 16, bytes ? bytes : 1)) abort();
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(p)[i] = 0xff;
  return p;
}

// What another block of the cluster reads from here on shows in its result, or to ASan.
void give_up(void* p, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(p)[i] = 0xff;
  free(p);
}

void free_shared(Block& b) {
  Unwatched quiet;
  for (int i = 0; i < b.n_shared; ++i) give_up(b.shared[i].p, b.shared[i].bytes);
  b.n_shared = 0;
  if (b.dynamic) give_up(b.dynamic, sched->dynamic_bytes);
  b.dynamic = nullptr;
  TSAN(free(b.sync); b.sync = nullptr;)
}

#ifdef CUEMU_TSAN
void free_sync(Cluster& c) {
  Unwatched quiet;
  free(c.sync);
  c.sync = nullptr;
}
#endif

long env(const char* name, long otherwise) {
  const char* v = getenv(name);
  return v && *v ? atol(v) : otherwise;
}

size_t gcd(size_t a, size_t b) {
  while (b) a = std::exchange(b, a % b);
  return a;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ what
// kernels call

void fail(const char* what, Site where) { die("%s: %s at %s", Text(current).b, what, Text(where).b); }

bool maybe_yield() {
  if (sched->yield_one_in && sched->next() % uint64_t(sched->yield_one_in) == 0) {
    make_ready(current);
    switch_to_main(false);
  }
  return current->fenced;
}

void fence() {
  current->fenced = true;
  maybe_yield();
}

// Another thread may have stored meanwhile what this one waits for. Where nothing else happens in so many turns, nobody
// will: the block that should is not in flight, or waits as well.
void spin(const void* address, Site where) {
  constexpr int64_t kTurns = 200;
  if (address != current->waits_for) sched->idle = 0;  // it has got what it waited for
  current->waits_for = address;
  if (++sched->idle > kTurns * int64_t(sched->tail - sched->head + 1)) fail("waits for ever", where);
  current->spinning = true;
  make_ready(current);
  switch_to_main(false);
}

int64_t threads_run() { return threads_total; }

Nodes nodes() { return {node_count, node_list.data()}; }
void forget_nodes() {
  node_count = 0;
  node_list.clear();
}
void fill(void* memory, int byte, size_t bytes) {
  note({"memset", dim3(), dim3(), 1, bytes});
  COUNT(counting::filled(memory, bytes);)
  memset(memory, byte, bytes);
}

int multiprocessors() { return int(std::max(1l, env("CUEMU_SMS", 4))); }
bool has_clusters() { return env("CUEMU_CLUSTERS", 1) != 0; }

float perturbed(float exact, double largest_ulp, float argument) {
  const long how = env("CUEMU_ULP", 0);
  if (how == 0 || !std::isfinite(exact)) return exact;
  double share = how > 0 ? 1 : -1;
  if (how == 2) {
    uint64_t h = bits(argument) * 0x9E3779B97F4A7C15ull;
    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9ull;
    share = double(int64_t(h ^ h >> 32)) * 0x1p-63;
  }
  int exponent;
  std::frexp(exact, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
  return float(double(exact) + share * largest_ulp * ulp);
}

void cluster_barrier(Site where) {
  Lane* me = current;
  Cluster* c = me->block->cluster;
  if (c->arrived == 0) {
    c->site = where;
  } else if (!same_site(where, c->site)) {
    fail_with(where, "divergence at the cluster's barrier: other threads wait at %s", Text(c->site).b);
  }
  if (c->alive != c->n * me->block->n) fail("the cluster's barrier after some of its threads exited", where);
  me->site = where;
  TSAN(const unsigned parity = c->generation & 1; __tsan_release(&c->sync[parity]);)
  me->state = AT_CLUSTER;
  if (++c->arrived == c->alive) {
    c->arrived = 0;
    c->generation++;
    for (int b = 0; b < c->n; ++b)
      for (int i = 0; i < c->blocks[b].n; ++i)
        if (c->blocks[b].lanes[i].state == AT_CLUSTER) make_ready(&c->blocks[b].lanes[i]);
  }
  switch_to_main(false);
  TSAN(__tsan_acquire(&c->sync[parity]);)
}

void* cluster_peer(void* p, unsigned rank, Site where) {
  Block* mine = current->block;
  Cluster* c = mine->cluster;
  if (rank >= unsigned(c->n)) fail("the cluster has no block of that rank", where);
  // Until the first barrier the other block may not have begun, and then it has no shared memory.
  if (c->generation == 0) fail("shared memory of another block before the cluster's first barrier", where);
  Block* peer = &c->blocks[rank];
  if (peer->alive == 0) fail("shared memory of a block that has exited", where);
  const char* at = static_cast<const char*>(p);
  const char* dynamic = static_cast<const char*>(mine->dynamic);
  if (dynamic && at >= dynamic && at < dynamic + sched->dynamic_bytes)
    return static_cast<char*>(peer->dynamic) + (at - dynamic);
  for (int i = 0; i < mine->n_shared; ++i) {
    const Block::SharedArray& array = mine->shared[i];
    const char* begin = static_cast<const char*>(array.p);
    if (at < begin || at >= begin + array.bytes) continue;
    for (int k = 0; k < peer->n_shared; ++k)
      if (peer->shared[k].key == array.key) return static_cast<char*>(peer->shared[k].p) + (at - begin);
    fail("shared memory that the other block has not declared yet", where);
  }
  fail("gpu_cluster_peer of an address outside of the block's shared memory", where);
}

int barrier(BarrierOp op, int predicate, Site where) {
  Lane* me = current;
  Block* b = me->block;
  if (b->arrived == 0) {
    b->barrier_site = where;
    b->barrier_op = op;
  } else if (!same_site(where, b->barrier_site)) {
    fail_with(where, "barrier divergence: other threads wait at %s", Text(b->barrier_site).b);
  }
  if (b->alive != b->n) fail("__syncthreads after some threads of the block exited", where);
  me->predicate = predicate != 0;
  me->site = where;
  TSAN(const unsigned parity = b->generation & 1; __tsan_release(&b->sync[parity]);)
  me->state = AT_BARRIER;
  if (++b->arrived == b->alive) release_barrier(b);
  switch_to_main(false);
  TSAN(__tsan_acquire(&b->sync[parity]);)
  return me->barrier_result;
}

uint64_t collective(Op op, unsigned mask, uint64_t value, int arg, int width, Site where) {
  Lane* me = current;
  Block* b = me->block;
  const int base = me->linear & ~31, mine = me->pub.lane;
  if (!(mask >> mine & 1)) fail("warp operation whose mask leaves out the calling lane", where);
  if (width <= 0 || width > 32 || (width & (width - 1))) fail("shuffle width is no power of two up to 32", where);
  const int present = std::min(32, b->n - base);
  if (present < 32 && mask == 0xffffffffu) mask = (1u << present) - 1;  // a partial last warp
  me->op = op;
  me->mask = mask;
  me->value = value;
  me->arg = arg;
  me->width = width;
  me->site = where;
  me->state = AT_WARP;
  TSAN(if (op == SYNCWARP) __tsan_release(me->arrive);)
  bool all_here = true;
  for (unsigned m = mask; m; m &= m - 1) {
    const int j = __builtin_ctz(m);
    if (j >= present) fail("warp operation's mask names a lane that does not exist", where);
    const Lane& other = b->lanes[base + j];
    if (other.state == DONE) fail_with(where, "warp operation's mask names lane %d, which exited", j);
    if (other.state != AT_WARP || !(other.mask >> mine & 1)) {  // on its way, or busy in another group
      all_here = false;
      continue;
    }
    if (other.mask != mask || other.op != op || !same_site(other.site, where))
      fail_with(where, "warp operations do not match: lane %d is at %s", j, Text(other.site).b);
  }
  if (!all_here) {
    switch_to_main(false);
    TSAN(if (op == SYNCWARP) __tsan_acquire(me->depart);)
    return me->result;
  }

  // The last lane to arrive works out everyone's result.
  Lane* lanes = b->lanes + base;
  uint64_t acc = op == RED_AND || op == RED_MIN ? 0xffffffffu : op == ALL ? 1 : 0;
  if (op >= BALLOT)
    for (unsigned m = mask; m; m &= m - 1) {
      const int j = __builtin_ctz(m);
      const uint64_t v = lanes[j].value;
      switch (op) {
        case BALLOT:
          acc |= v << j;
          break;
        case ANY:
        case RED_OR:
          acc |= v;
          break;
        case ALL:
        case RED_AND:
          acc &= v;
          break;
        case RED_XOR:
          acc ^= v;
          break;
        case RED_ADD:
          acc = uint32_t(acc + v);
          break;
        case RED_MIN:
          acc = std::min(acc, v);
          break;
        case RED_MAX:
          acc = std::max(acc, v);
          break;
        default:
          break;
      }
    }
  for (unsigned m = mask; m; m &= m - 1) {
    const int j = __builtin_ctz(m);
    Lane& l = lanes[j];
    const int segment = j & ~(l.width - 1);
    int source = j;
    switch (op) {
      case SHFL_IDX:
        source = segment + (l.arg & (l.width - 1));
        break;
      case SHFL_UP:
        source = j - l.arg < segment ? j : j - l.arg;
        break;
      case SHFL_DOWN:
        source = j + l.arg >= segment + l.width ? j : j + l.arg;
        break;
      case SHFL_XOR:
        source = (j ^ l.arg) >= segment + l.width ? j : (j ^ l.arg);
        break;
      case MATCH_ANY:
        acc = 0;
        for (unsigned k = mask; k; k &= k - 1) {
          const int q = __builtin_ctz(k);
          if (lanes[q].value == l.value) acc |= 1ull << q;
        }
        break;
      default:
        break;
    }
    if (op <= SHFL_XOR) {
      if (!(mask >> source & 1)) fail_with(where, "shuffle reads lane %d, which is not in the mask", source);
      l.result = lanes[source].value;
    } else {
      l.result = acc;
    }
    TSAN(if (op == SYNCWARP) __tsan_acquire(l.arrive);)
  }
  for (unsigned m = mask; m; m &= m - 1) {
    Lane& l = lanes[__builtin_ctz(m)];
    TSAN(if (op == SYNCWARP) __tsan_release(l.depart);)
    if (&l != me) make_ready(&l);
  }
  me->state = READY;
  return me->result;
}

void* shared_static(const void* key, size_t bytes) {
  Block* b = current->block;
  for (int i = 0; i < b->n_shared; ++i)
    if (b->shared[i].key == key) return b->shared[i].p;
  if (b->n_shared == Block::kMaxShared) fail("too many shared arrays for the emulator", {});
  void* p = fresh(bytes);
  b->shared[b->n_shared++] = {key, p, bytes};
  return p;
}

void* shared_dynamic() { return current->block->dynamic; }

// ------------------------------------------------------------------------------------------------ launches

void allow_shared(const char* kernel, size_t bytes) {
  if (bytes > 227 * 1024)
    throw std::runtime_error(std::string("cuemu: no device has that much shared memory: ") + kernel);
  shared_allowance()[kernel] = bytes;
}

void launch_impl(dim3 grid, dim3 block, unsigned cluster, size_t smem, void (*fn)(void*), void* arg,
                 const char* kernel) {
  if (sched) throw std::runtime_error("cuemu: a launch inside a kernel");
  const size_t n = size_t(block.x) * block.y * block.z;
  const size_t n_blocks = size_t(grid.x) * grid.y * grid.z;
  if (!n || n > 1024 || block.z > 64 || !n_blocks || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error(std::string("cuemu: invalid launch configuration of ") + kernel);
  const auto allowed = shared_allowance().find(kernel);
  if (smem > 48 * 1024 && (allowed == shared_allowance().end() || smem > allowed->second))
    throw std::runtime_error(std::string("cuemu: more than 48 KiB of shared memory, not asked for: ") + kernel);
  if (cluster < 1 || cluster > 8 || grid.x % cluster)  // 8 is what every device with clusters allows
    throw std::runtime_error(std::string("cuemu: invalid cluster size of ") + kernel);
  if (cluster > 1 && !has_clusters())
    throw std::runtime_error(std::string("cuemu: the device has no clusters: ") + kernel);
  threads_total += int64_t(n * n_blocks);
  note({kernel, grid, block, cluster, smem});

  std::unique_ptr<Scheduler> hold(new Scheduler);
  sched = hold.get();
  struct Reset {
    ~Reset() {
      sched = nullptr;
      self = nullptr;
      current = nullptr;
    }
  } reset;
  sched->fn = fn;
  sched->arg = arg;
  sched->order = int(env("CUEMU_ORDER", 0));
  sched->rng = uint64_t(env("CUEMU_SEED", 1)) * 0x9E3779B97F4A7C15ull | 1;
  sched->yield_one_in = int(env("CUEMU_YIELD", sched->order == 2 ? 4 : 0));
  sched->dynamic_bytes = smem;
  // Everything below is in clusters: those in flight, and the number of all.
  const size_t n_clusters = n_blocks / cluster;
  const size_t in_flight =
      std::min<size_t>(n_clusters, (size_t(std::max(1l, env("CUEMU_RESIDENT", 1))) + cluster - 1) / cluster);
  const size_t resident = in_flight * cluster;
  TSAN(sched->main_fiber = __tsan_get_current_fiber();)

  std::unique_ptr<Unwatched> quiet;  // outlives the vectors: fibers that were given up never let go of them
  std::vector<Block> blocks(resident);
  std::vector<Cluster> clusters(in_flight);
  std::vector<Lane> lanes(resident * n);
  for (size_t i = 0; i < lanes.size(); ++i) lanes[i].stack = stacks.get(i);
  size_t capacity = 1;
  while (capacity < lanes.size()) capacity *= 2;
  std::vector<Lane*> ring(capacity);
  sched->ready = ring.data();
  sched->capacity = capacity;

  size_t next_cluster = 0, stride = 1;
  if (sched->order == 2) {  // a stride coprime with the number of clusters visits each of them once
    stride = sched->next() % n_clusters | 1;
    while (gcd(stride, n_clusters) != 1) stride += 2;
  }
  auto start_block = [&](size_t slot, size_t id, Cluster* c) {
    Block& b = blocks[slot];
    b.cluster = c;
    b.lanes = &lanes[slot * n];
    b.n = b.alive = int(n);
    b.arrived = 0;
    b.generation = 0;
    b.n_shared = 0;
    b.dynamic = smem ? fresh(smem) : nullptr;
    TSAN(b.sync = static_cast<uint64_t*>(fresh((2 + 2 * n) * sizeof(uint64_t)));)  // fresh: blocks share none
    const uint3 bid{unsigned(id % grid.x), unsigned(id / grid.x % grid.y), unsigned(id / (size_t(grid.x) * grid.y))};
    for (size_t t = 0; t < n; ++t) {
      Lane& l = b.lanes[t];
      const uint3 tid{unsigned(t % block.x), unsigned(t / block.x % block.y),
                      unsigned(t / (size_t(block.x) * block.y))};
      l.pub = Self{tid, bid, block, grid, int(t & 31), unsigned(slot % cluster), cluster};
      l.block = &b;
      l.linear = int(t);
      l.state = NEW;
      l.fenced = l.spinning = false;
      l.waits_for = &l;
      TSAN(l.arrive = b.sync + 2 + 2 * t; l.depart = l.arrive + 1;)
    }
    for (size_t t = 0; t < n; ++t)
      sched->ready[sched->tail++ & (capacity - 1)] = &b.lanes[sched->order == 1 ? n - 1 - t : t];
  };
  auto start = [&](size_t slot) {
    const size_t k = next_cluster++;
    const size_t id = sched->order == 1   ? n_clusters - 1 - k
                      : sched->order == 2 ? size_t((unsigned __int128)(k)*stride % n_clusters)
                                          : k;
    Cluster& c = clusters[slot];
    c.blocks = &blocks[slot * cluster];
    c.n = int(cluster);
    c.alive = int(cluster * n);
    c.arrived = 0;
    c.generation = 0;
    TSAN(c.sync = static_cast<uint64_t*>(fresh(2 * sizeof(uint64_t)));)
    for (size_t i = 0; i < cluster; ++i) {
      const size_t at = sched->order == 1 ? cluster - 1 - i : i;
      start_block(slot * cluster + at, id * cluster + at, &c);
    }
  };
  for (size_t i = 0; i < in_flight; ++i) start(i);

  size_t left = n_clusters;
  while (left) {
    if (sched->head == sched->tail) {
      sched->failed = true;
      snprintf(sched->error, sizeof sched->error, "deadlock");
      for (const Lane& l : lanes)
        if (l.state == AT_BARRIER || l.state == AT_WARP || l.state == AT_CLUSTER) {
          snprintf(sched->error, sizeof sched->error, "deadlock: %s waits at %s", Text(&l).b, Text(l.site).b);
          break;
        }
    } else {
      const size_t i = sched->head++ & (capacity - 1);
      if (sched->order == 2)
        std::swap(ring[i], ring[(i + sched->next() % (sched->tail - sched->head + 1)) & (capacity - 1)]);
      Lane* l = ring[i];
      const bool looked = l->spinning;
      l->spinning = false;
      resume(l);
      if (!l->spinning || !looked) sched->idle = 0;
      if (!sched->failed && l->state == DONE) {
        TSAN(retire(l->fiber); l->fiber = nullptr;)
        Block* b = l->block;
        Cluster* c = b->cluster;
        if (b->alive == 0) free_shared(*b);
        if (c->alive == 0) {
          TSAN(free_sync(*c);)
          --left;
          if (next_cluster < n_clusters) start(size_t(c - clusters.data()));
        }
      }
    }
    if (sched->failed) {
      for (Block& b : blocks) free_shared(b);
      TSAN(for (Cluster& c : clusters) free_sync(c);)
      TSAN(for (Lane& l : lanes) if (l.fiber) retire(l.fiber);)
      quiet.reset(new Unwatched);
      throw std::runtime_error("cuemu: " + std::string(kernel) + ": " + sched->error);
    }
  }
  TSAN(__tsan_acquire(&sched->end_sync);)
}

}  // namespace cuemu
