// What the CPU backend does, free of torch. The binding (csrc/binding/cpu.cpp) and the tests call these.
#pragma once

#include <atomic>
#include <exception>

#include "../include/fusedmix/element.h"
#include "../include/fusedmix/layout.h"
#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/plan.h"

namespace fusedmix::cpu {

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

struct MixArgs {
  ElementType type;
  const void* src;
  void* dst;  // src itself: in place
  Layout layout;
  PlanView plan;
  bool adjoint;  // out of place only
};

void mix(const MixArgs& args, const Parallel& parallel);

struct LabelArgs {
  ElementType type;         // of soft labels and targets; kFloat32 for classes
  const int64_t* classes;   // (B,), each in [0, num_classes), or null
  const void* soft;         // (B, K), rows `soft_stride` elements apart, or null
  int64_t soft_stride, soft_step;
  const int64_t* partner;
  const double* weight;
  int64_t batch, num_classes;
  double smoothing;
  void* targets;  // (B, K)
};

void mix_labels(const LabelArgs& args, const Parallel& parallel);

// A request of fusedmix/draws.py.
struct SampleArgs {
  const MethodRow* rows;
  int32_t methods;
  int64_t batch;
  Extent extent;
  int32_t pairing, per;
  double p;
  const float* lam;  // given, or null
  bool lam_each;     // (B,) of them, or one
  const int64_t* classes;
  uint64_t seed;
  // Drawn elsewhere (the host's generator): kDrawnWidth for each draw; and the partners,
  // where they are not a formula. Null: drawn here from the seed.
  const double* drawn;
  const int64_t* partner;
};

void sample(const SampleArgs& args, const PlanOut& out, const Parallel& parallel = {nullptr, 1});

// The Fourier masks of a plan of `batch` samples (fusedmix/fourier.py, masks): into `bits`, or `levels` if they are soft.
struct FourierArgs {
  const MethodRow* rows;  // what may have been drawn
  int32_t methods;
  Extent extent;
  int64_t batch;
  int32_t per, draws;  // Per: which mask is whose, and which noise is whose
  uint64_t seed;
  const Record* masks;
  uint32_t* bits;
  uint16_t* levels;
};

void fourier(const FourierArgs& args, const Parallel& parallel);

// (n, D, H, W) float32 masks.
void masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, const Parallel& parallel);

}  // namespace fusedmix::cpu
