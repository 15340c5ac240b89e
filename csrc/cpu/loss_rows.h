// The loops of losses.h for one instruction set: included by kernels.cpp alone.
//
// A sum of floating-point numbers is not vectorised, since its order would change. So it is written as sums of every 32nd
// element. Row by row in chunks that stay in the first-level cache: memory is read once, however often a chunk is.
#pragma once

#include "convert.h"
#include "losses.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kLossChunk = 1024;
constexpr int64_t kLanes = 32;

template <class C>
inline C largest(const C* x, int64_t n) {
  C lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = -C(INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] = lanes[l + half] > lanes[l] ? lanes[l + half] : lanes[l];
  }
  return lanes[0];
}

template <class C>
inline double sum(const C* x, int64_t n) {
  C lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
  }
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += x[i + l];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// n logits in the compute type: where they are, or in the buffer.
template <class T>
inline const Compute<T>* compute_row(Compute<T>* buffer, const T* z, int64_t step, int64_t n) {
  if (step != 1) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = to_compute(z[i * step]);
    return buffer;
  }
  if constexpr (__is_same(T, Compute<T>)) {
    return z;
  } else {
    widen(buffer, z, n);
    return buffer;
  }
}

// A function for each compute type, not for each element type: these loops are most of what there is to compile.
#define FUSEDMIX_ONCE __attribute__((noinline))

// Adds a chunk to the sums of its row.
template <class C>
FUSEDMIX_ONCE void add_chunk(RowSums<double>& all, const C* x, const C* weights, bool linear, int64_t n) {
  C terms[kLossChunk];
  all.raise(static_cast<double>(largest(x, n)));
  const C base = static_cast<C>(all.base());
  for (int64_t k = 0; k < n; ++k) terms[k] = exp_nonpositive(x[k] - base);
  all.exponentials += sum(terms, n);
  if (!linear) return;
  if (weights == nullptr) {
    for (int64_t k = 0; k < n; ++k) terms[k] = x[k] - base;
    all.total += static_cast<double>(n);
  } else {
    for (int64_t k = 0; k < n; ++k) terms[k] = term(weights[k], x[k] - base);
    all.total += sum(weights, n);
  }
  all.linear += sum(terms, n);
}

template <class T>
RowSums<double> row_sums(const void* from, int64_t step, const void* class_weight, bool linear, int64_t n) {
  using C = Compute<T>;
  const T* z = static_cast<const T*>(from);
  const C* weights = static_cast<const C*>(class_weight);
  C buffer[kLossChunk];
  RowSums<double> all;
  for (int64_t i = 0; i < n; i += kLossChunk) {
    const int64_t m = n - i < kLossChunk ? n - i : kLossChunk;
    add_chunk(all, compute_row(buffer, z + i * step, step, m), weights == nullptr ? nullptr : weights + i, linear, m);
  }
  return all;
}

// f(out, z, i, n) for every chunk of n classes from i on, its results rounded once.
template <class T, class F>
inline void write_row(void* to, const void* from, int64_t step, int64_t n, const F& f) {
  using C = Compute<T>;
  const T* z = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  C buffer[kLossChunk], results[kLossChunk];
  for (int64_t i = 0; i < n; i += kLossChunk) {
    const int64_t m = n - i < kLossChunk ? n - i : kLossChunk;
    const C* x = compute_row(buffer, z + i * step, step, m);
    if constexpr (__is_same(T, C)) {
      f(out + i, x, i, m);
    } else {
      f(results, x, i, m);
      narrow<T>(out + i, results, m);
    }
  }
}

template <class C>
FUSEDMIX_ONCE void gradient_chunk(C* __restrict out, const C* x, const C* weights, int64_t n, C max, C rate, C flat) {
  if (weights == nullptr || flat == C(0)) {
    for (int64_t k = 0; k < n; ++k) out[k] = rate * exp_nonpositive(x[k] - max) - flat;
  } else {
    for (int64_t k = 0; k < n; ++k) out[k] = rate * exp_nonpositive(x[k] - max) - flat * weights[k];
  }
}

template <class T>
void row_gradient(void* to, const void* from, int64_t step, const void* class_weight, int64_t n, double max, double rate,
                  double flat) {
  using C = Compute<T>;
  const C* weights = static_cast<const C*>(class_weight);
  write_row<T>(to, from, step, n, [=](C* out, const C* x, int64_t i, int64_t m) {
    gradient_chunk(out, x, weights == nullptr ? nullptr : weights + i, m, static_cast<C>(max), static_cast<C>(rate),
                   static_cast<C>(flat));
  });
}

// ---- binary cross entropy ----

template <class C>
FUSEDMIX_ONCE void read_labels(C* out, LabelType type, const void* labels, int64_t at, int64_t step, int64_t n) {
  of_label(type, [=](auto as) {
    const auto* y = static_cast<const decltype(as)*>(labels) + at * step;
    for (int64_t k = 0; k < n; ++k) out[k] = label_as<C>(y[k * step]);
  });
}

// What the classes of a chunk have beside their logits.
template <class C>
struct BinaryChunk {
  C targets[kLossChunk], lent[kLossChunk], ones[kLossChunk];
  const C *class_weight, *pos_weight;

  // Reads what n classes from `begin` on have.
  FUSEDMIX_ONCE void read(const BinaryRow& row, int64_t begin, int64_t n) {
    if (row.class_weight == nullptr || row.pos_weight == nullptr) {
      for (int64_t k = 0; k < n; ++k) ones[k] = C(1);
    }
    class_weight = row.class_weight == nullptr ? ones : static_cast<const C*>(row.class_weight) + begin;
    pos_weight = row.pos_weight == nullptr ? ones : static_cast<const C*>(row.pos_weight) + begin;
    if (row.own == nullptr) {
      for (int64_t k = 0; k < n; ++k) targets[k] = static_cast<C>(row.target);
      return;
    }
    read_labels(targets, row.type, row.own, begin, row.label_step, n);
    read_labels(lent, row.type, row.lent, begin, row.label_step, n);
    const BinaryTarget<C> target{Smoothing<C>(row.smoothing, row.num_classes), LabelWeights<C>(row.weight),
                                 static_cast<C>(row.threshold), row.thresholded};
    for (int64_t k = 0; k < n; ++k) targets[k] = target(targets[k], lent[k]);
  }

  FUSEDMIX_ONCE double loss(const C* x, int64_t n) const {
    C terms[kLossChunk];
    for (int64_t k = 0; k < n; ++k) terms[k] = binary_loss<C>(x[k], targets[k], class_weight[k], pos_weight[k]);
    return sum(terms, n);
  }
  FUSEDMIX_ONCE void gradient(C* __restrict out, const C* x, int64_t n, C grad) const {
    for (int64_t k = 0; k < n; ++k) out[k] = grad * binary_gradient<C>(x[k], targets[k], class_weight[k], pos_weight[k]);
  }
};

template <class T>
double row_binary_loss(const void* from, int64_t step, const BinaryRow& row, int64_t begin, int64_t n) {
  using C = Compute<T>;
  const T* z = static_cast<const T*>(from);
  C buffer[kLossChunk];
  BinaryChunk<C> chunk;
  double all = 0;
  for (int64_t i = 0; i < n; i += kLossChunk) {
    const int64_t m = n - i < kLossChunk ? n - i : kLossChunk;
    chunk.read(row, begin + i, m);
    all += chunk.loss(compute_row(buffer, z + i * step, step, m), m);
  }
  return all;
}

template <class T>
void row_binary_gradient(void* to, const void* from, int64_t step, const BinaryRow& row, int64_t begin, int64_t n,
                         double grad) {
  using C = Compute<T>;
  BinaryChunk<C> chunk;
  write_row<T>(to, from, step, n, [&](C* out, const C* x, int64_t i, int64_t m) {
    chunk.read(row, begin + i, m);
    chunk.gradient(out, x, m, static_cast<C>(grad));
  });
}

template <class T>
constexpr LossRows loss_rows() {
  return {row_sums<T>, row_gradient<T>, row_binary_loss<T>, row_binary_gradient<T>};
}

}  // namespace
}  // namespace fusedmix::cpu
