// Work in pieces, on several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace fusedmix {

// Runs body(begin, end) over pieces of [0, n), on several threads if it likes: torch's pool, or a loop. Bodies that it runs
// throw nothing: what one of them threw is thrown when all are done.
struct Parallel {
  void (*run)(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int threads;

  template <class F>
  void operator()(int64_t n, int64_t grain, const F& f) const {
    if (n <= 0) return;
    if (threads == 1 || n <= grain) return f(int64_t{0}, n);
    struct Context {
      const F& f;
      std::atomic_flag thrown = ATOMIC_FLAG_INIT;
      std::exception_ptr error;
    } context{f};
    const auto body = [](int64_t begin, int64_t end, void* c) {
      auto& all = *static_cast<Context*>(c);
      try {
        all.f(begin, end);
      } catch (...) {
        if (!all.thrown.test_and_set()) all.error = std::current_exception();
      }
    };
    run(n, grain, body, &context);
    if (context.error) std::rethrow_exception(context.error);
  }
};

}  // namespace fusedmix
