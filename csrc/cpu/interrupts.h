// Ctrl-C in the middle of an op. Python's handler of signals sets a flag, which the interpreter looks at between
// bytecodes: an op that works for a minute would be over before anybody looks. So the thread that called the op asks
// the interpreter now and then, where there is one, and the op stops with an error if a handler raised.
#pragma once

#include <atomic>
#include <chrono>
#include <csignal>

#if defined(__linux__)
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "errors.h"

namespace zx::cpu {

// Whether a signal has come whose handler raised. Handlers run in the main thread alone, so that others need not ask.
inline bool python_was_interrupted() {
#if defined(__linux__)
  // By name, as this library also serves processes without Python.
  struct Python {
    int (*ensure)();
    void (*release)(int);
    int (*check_signals)();
    void (*clear)();
    int (*interrupt_again)(int);
  };
  static const Python python = [] {
    Python p{};
    p.ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
    p.release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
    p.check_signals = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyErr_CheckSignals"));
    p.clear = reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, "PyErr_Clear"));
    p.interrupt_again = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "PyErr_SetInterruptEx"));
    return p;
  }();
  if (!python.ensure || !python.release || !python.check_signals || !python.clear || !python.interrupt_again)
    return false;
  if (syscall(SYS_gettid) != getpid()) return false;
  const int state = python.ensure();
  const bool raised = python.check_signals() != 0;
  if (raised) {
    // The op's own error would cover the handler's. So the signal is made to come again, and the interpreter raises as
    // soon as it goes on.
    python.clear();
    python.interrupt_again(SIGINT);
  }
  python.release(state);
  return raised;
#else
  return false;
#endif
}

// Looked at by all threads of a parallel region between their blocks; the one that made it asks the interpreter.
class Watch {
 public:
  bool stop() {
    if (stopped_.load(std::memory_order_relaxed)) return true;
    if (above_ != nullptr && above_->stopped_.load(std::memory_order_relaxed)) {
      stopped_.store(true, std::memory_order_relaxed);
      return true;
    }
    if (this != owner()) return false;
    const auto now = std::chrono::steady_clock::now();
    if (next_ == std::chrono::steady_clock::time_point{}) next_ = now + kPeriod;
    if (now < next_) return false;
    next_ = now + kPeriod;
    if (python_was_interrupted()) stopped_.store(true, std::memory_order_relaxed);
    return stopped_.load(std::memory_order_relaxed);
  }
  // To be called after the region.
  void raise_if_stopped() const {
    if (stopped_.load(std::memory_order_relaxed)) ::zx::raise("zerosum_ext: interrupted");
  }

  // The one that this thread works under: it made it, or helps in its region. Or null.
  static Watch*& current() {
    static thread_local Watch* watch = nullptr;
    return watch;
  }

  // Of a thread that helps in a region, while it does.
  class Joined {
   public:
    explicit Joined(Watch& watch) : before_(current()) { current() = &watch; }
    ~Joined() { current() = before_; }
    Joined(const Joined&) = delete;
    Joined& operator=(const Joined&) = delete;

   private:
    Watch* before_;
  };

  Watch() : outer_(owner()), above_(current()) { owner() = current() = this; }
  ~Watch() { owner() = outer_, current() = above_; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  static constexpr std::chrono::milliseconds kPeriod{100};
  // The innermost one of this thread.
  static Watch*& owner() {
    static thread_local Watch* watch = nullptr;
    return watch;
  }
  Watch *outer_, *above_;
  std::atomic<bool> stopped_{false};
  std::chrono::steady_clock::time_point next_{};
};

}  // namespace zx::cpu
