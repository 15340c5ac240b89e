// The label losses row by row. losses_<type>.cu compiles these for a type, losses.cu launches them.
//
// A row is read by `lanes` threads, as many as have something to do: a whole block for many classes, one thread for two.
// 16 bytes at a time whatever the number of classes: the elements before the first aligned address of a row and those
// after its last are read one by one. (One by one are also all of float64 and of rows with soft labels: too few registers.) kLossAhead loads are under way before the first is used.
#pragma once

#include "../include/fusedmix/losses.h"
#include "losses.h"
#include "targets.h"
#include "vector.h"

namespace fusedmix::cuda {

constexpr int kLossAhead = 4;

struct LossArgs {
  Loss loss;
  int32_t lanes;
  int64_t parts;  // of a row, backwards: blocks of its own
  void *losses, *statistics;
  const void *grad, *scale;
  int64_t grad_step;
  double factor;
  void* out;
  LaunchPlan plan;
};
static_assert(sizeof(LossArgs) <= 4096, "kernel arguments");

// A row of the batch as a thread sees it.
struct LossRow {
  int64_t i, partner;
  double weight;

  FUSEDMIX_DEVICE LossRow(const LossArgs& args, int64_t row) : i(row) {
    const PlanView plan = view_of(args.plan);
    partner = partner_of(plan.pairing, plan.partner, i, args.loss.batch);
    weight = device::load(weights_of(args.plan) + (args.plan.weight_shared ? 0 : i));
  }

  FUSEDMIX_DEVICE int64_t label(const LossArgs& args, int64_t of) const {
    return device::load(static_cast<const int64_t*>(args.loss.labels) + of * args.loss.label_stride);
  }
};

// Where the vectors of a row lie. Not vectors of one element: these are found by their step.
template <class T, int V>
struct Spread {
  int64_t head, body;  // elements before the first vector, and vectors

  FUSEDMIX_DEVICE Spread(const T* z, int64_t classes) : head(0), body(classes) {
    if constexpr (V > 1) {
      const int64_t ahead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(z) % 16 / sizeof(T));
      head = ahead < classes ? ahead : classes;
      body = (classes - head) / V;
    }
  }
  FUSEDMIX_DEVICE int64_t class_of(int64_t vector) const { return head + vector * V; }
};

template <class T, int V>
FUSEDMIX_DEVICE Vec<T, V> load_logits(const T* z, int64_t step, int64_t k) {
  return load_vector<T, V>(V > 1 ? z + k : z + k * step);
}

// Calls f(class, the logits of V classes from there on) for what a lane has of a row's part: its vectors, and with V = 1,
// through g(class, logit), the elements that are in none.
template <class T, int V, class F, class G>
FUSEDMIX_DEVICE void for_row(const T* z, int64_t step, int64_t classes, int32_t lane, int32_t lanes, int64_t part, int64_t parts,
                             const F& f, const G& g) {
  const Spread<T, V> spread(z, classes);
  const int64_t stride = lanes * parts;
  for (int64_t v = part * lanes + lane; v < spread.body; v += kLossAhead * stride) {
    Vec<T, V> loaded[kLossAhead];
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLossAhead; ++u) {
      if (v + u * stride < spread.body) loaded[u] = load_logits<T, V>(z, step, spread.class_of(v + u * stride));
    }
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLossAhead; ++u) {
      if (v + u * stride < spread.body) f(spread.class_of(v + u * stride), loaded[u]);
    }
  }
  if constexpr (V > 1) {
    if (part > 0) return;
    for (int64_t k = lane; k < spread.head; k += lanes) g(k, device::load(z + k));
    for (int64_t k = spread.class_of(spread.body) + lane; k < classes; k += lanes) g(k, device::load(z + k));
  }
}

template <class C>
FUSEDMIX_DEVICE C weight_of(const void* weights, int64_t k) {
  return weights == nullptr || k < 0 ? C(1) : device::load(static_cast<const C*>(weights) + k);
}

template <class T>
FUSEDMIX_DEVICE MixedClasses<Compute<T>> mixed_classes(const LossArgs& args, const LossRow& row) {
  return {row.label(args, row.i), row.label(args, row.partner), row.weight, args.loss.num_classes, args.loss.ignore,
          args.loss.smoothing};
}

// A soft label of any type.
template <class C>
FUSEDMIX_DEVICE C load_soft(const Loss& loss, int64_t at) {
  return of_label(loss.label_type, [&](auto label) {
    return label_as<C>(device::load(static_cast<const decltype(label)*>(loss.labels) + at));
  });
}

// The targets of binary cross entropy of a row.
template <class C, bool kSoft>
struct BinaryRow {
  BinaryTarget<C> target;
  int64_t own = 0, lent = 0;
  C none = 0, of_own = 0, of_lent = 0;

  FUSEDMIX_DEVICE BinaryRow(const LossArgs& args, const LossRow& row)
      : target{Smoothing<C>(args.loss.smoothing, args.loss.num_classes), LabelWeights<C>(row.weight),
               static_cast<C>(args.loss.threshold), args.loss.thresholded} {
    if (kSoft && args.loss.soft) {
      own = row.i * args.loss.label_stride;
      lent = row.partner * args.loss.label_stride;
      return;
    }
    own = row.label(args, row.i);
    lent = row.label(args, row.partner);
    const int64_t classes = args.loss.num_classes;
    const bool valid = own >= 0 && own < classes && lent >= 0 && lent < classes;
    none = valid ? target(C(0), C(0)) : C(NAN);
    of_own = valid ? target(C(1), own == lent ? C(1) : C(0)) : C(NAN);
    of_lent = valid ? target(C(0), C(1)) : C(NAN);
  }

  FUSEDMIX_DEVICE C at(const Loss& loss, int64_t k) const {
    if (!kSoft || !loss.soft) return k == own ? of_own : (k == lent ? of_lent : none);
    return target(load_soft<C>(loss, own + k * loss.label_step), load_soft<C>(loss, lent + k * loss.label_step));
  }
};

// ---- forwards ----

// Calls merge(other) so that the first thread of each row takes in what the others have left in shared memory.
template <class Merge>
FUSEDMIX_DEVICE void over_lanes(int32_t lane, int32_t lanes, const Merge& merge) {
  for (int32_t half = lanes / 2; half > 0; half /= 2) {
    device::sync();
    if (lane < half) merge(static_cast<int32_t>(device::thread()) + half);
  }
}

template <class T, int V>
FUSEDMIX_KERNEL(kLossThreads) cross_entropy_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  FUSEDMIX_SHARED(C, tops, kLossThreads);
  FUSEDMIX_SHARED(C, exponentials, kLossThreads);
  FUSEDMIX_SHARED(C, linears, kLossThreads);
  FUSEDMIX_SHARED(C, totals, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread()), lane = thread % args.lanes;
  const int64_t i = static_cast<int64_t>(device::block()) * (kLossThreads / args.lanes) + thread / args.lanes;
  const bool active = i < args.loss.batch;
  const LossRow row(args, active ? i : 0);
  const MixedClasses<C> label = mixed_classes<T>(args, row);
  const T* z = static_cast<const T*>(args.loss.logits) + row.i * args.loss.row_stride;
  const bool linear = args.loss.smoothing != 0.0;
  RowSums<C> sums;
  if (active && !label.ignored) {
    const auto add = [&](int64_t k, C x) {
      sums.exponentials += exp_nonpositive(x - sums.base());
      if (!linear) return;
      const C c = weight_of<C>(args.loss.class_weight, k);
      sums.linear += term(c, x - sums.base());
      sums.total += c;
    };
    for_row<T, V>(
        z, args.loss.step, args.loss.num_classes, lane, args.lanes, 0, 1,
        [&](int64_t k, const Vec<T, V>& loaded) {
          C top = -C(INFINITY);
          FUSEDMIX_UNROLL
          for (int l = 0; l < V; ++l) top = to_compute(loaded.get(l)) > top ? to_compute(loaded.get(l)) : top;
          sums.raise(top);
          FUSEDMIX_UNROLL
          for (int l = 0; l < V; ++l) add(k + l, to_compute(loaded.get(l)));
        },
        [&](int64_t k, T loaded) {
          sums.raise(to_compute(loaded));
          add(k, to_compute(loaded));
        });
  }
  tops[thread] = sums.max;
  exponentials[thread] = sums.exponentials;
  linears[thread] = sums.linear;
  totals[thread] = sums.total;
  over_lanes(lane, args.lanes, [&](int32_t other) {
    RowSums<C> more;
    more.max = tops[other];
    more.exponentials = exponentials[other];
    more.linear = linears[other];
    more.total = totals[other];
    sums.add(more);
    tops[thread] = sums.max;
    exponentials[thread] = sums.exponentials;
    linears[thread] = sums.linear;
    totals[thread] = sums.total;
  });
  if (!active || lane != 0) return;
  const auto logit = [&](int64_t k) { return k < 0 ? C(0) : C(to_compute(device::load(z + k * args.loss.step))); };
  const C own = weight_of<C>(args.loss.class_weight, label.own), lent = weight_of<C>(args.loss.class_weight, label.lent);
  C *loss = static_cast<C*>(args.losses) + i, *statistics = static_cast<C*>(args.statistics) + 2 * i;
  device::store(loss, label.ignored ? C(0) : label.loss(sums, logit(label.own), logit(label.lent), own, lent));
  device::store(statistics, label.ignored ? C(0) : sums.max);
  device::store(statistics + 1, label.ignored ? C(0) : label.mass(sums, own, lent) / sums.exponentials);
}

template <class T, int V>
FUSEDMIX_KERNEL(kLossThreads) binary_cross_entropy_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  FUSEDMIX_SHARED(C, found, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread()), lane = thread % args.lanes;
  const int64_t i = static_cast<int64_t>(device::block()) * (kLossThreads / args.lanes) + thread / args.lanes;
  const bool active = i < args.loss.batch;
  C sum = 0;
  if (active) {
    const LossRow row(args, i);
    const BinaryRow<C, V == 1> label(args, row);
    const auto add = [&](int64_t k, C x) {
      sum += binary_loss<C>(x, label.at(args.loss, k), weight_of<C>(args.loss.class_weight, k),
                            weight_of<C>(args.loss.pos_weight, k));
    };
    for_row<T, V>(
        static_cast<const T*>(args.loss.logits) + i * args.loss.row_stride, args.loss.step, args.loss.num_classes, lane,
        args.lanes, 0, 1,
        [&](int64_t k, const Vec<T, V>& loaded) {
          FUSEDMIX_UNROLL
          for (int l = 0; l < V; ++l) add(k + l, to_compute(loaded.get(l)));
        },
        [&](int64_t k, T loaded) { add(k, to_compute(loaded)); });
  }
  found[thread] = sum;
  over_lanes(lane, args.lanes, [&](int32_t other) { found[thread] = sum = sum + found[other]; });
  if (active && lane == 0) device::store(static_cast<C*>(args.losses) + i, sum);
}

// ---- backwards ----

// Calls f(k, z, made) for the logits z of some classes from k on, and stores what it has made of them: one access, so f
// decides nothing for each of them that it can decide for all.
template <class T, int V, class F>
FUSEDMIX_DEVICE void write_row(const LossArgs& args, int64_t i, int32_t lane, int64_t part, const F& f) {
  using C = Compute<T>;
  T* out = static_cast<T*>(args.out) + i * args.loss.num_classes;
  for_row<T, V>(
      static_cast<const T*>(args.loss.logits) + i * args.loss.row_stride, args.loss.step, args.loss.num_classes, lane,
      args.lanes, part, args.parts,
      [&](int64_t k, const Vec<T, V>& loaded) {
        C z[V], made[V];
        FUSEDMIX_UNROLL
        for (int l = 0; l < V; ++l) z[l] = to_compute(loaded.get(l));
        f(k, z, made);
        Vec<T, V> vector{};
        FUSEDMIX_UNROLL
        for (int l = 0; l < V; ++l) vector.set(l, from_compute<T>(made[l]));
        using Raw = typename device::RawOf<sizeof(T) * V>::type;
        Raw raw;
        memcpy(&raw, &vector, sizeof(raw));
        device::store_whole(reinterpret_cast<Raw*>(out + k), raw);
      },
      [&](int64_t k, T loaded) {
        C z[1] = {to_compute(loaded)}, made[1];
        f(k, z, made);
        device::store(out + k, from_compute<T>(made[0]));
      });
}

// The weights of n classes from k on.
template <class C, int N>
FUSEDMIX_DEVICE void weights_of(const void* weights, int64_t k, C (&c)[N]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < N; ++l) c[l] = C(1);
  if (weights == nullptr) return;
  FUSEDMIX_UNROLL
  for (int l = 0; l < N; ++l) c[l] = device::load(static_cast<const C*>(weights) + k + l);
}

template <int N>
FUSEDMIX_DEVICE bool among(int64_t label, int64_t k) {
  return label >= k && label < k + N;
}

template <class C>
FUSEDMIX_DEVICE C gradient_of(const LossArgs& args, int64_t i) {
  const C given = device::load(static_cast<const C*>(args.grad) + i * args.grad_step) * static_cast<C>(args.factor);
  return args.scale == nullptr ? given : given * device::load(static_cast<const C*>(args.scale));
}

// Which row and which part of it a thread works on.
struct Part {
  int64_t i, part;
  int32_t lane;

  FUSEDMIX_DEVICE explicit Part(const LossArgs& args) {
    const int32_t thread = static_cast<int32_t>(device::thread());
    const int64_t block = device::block();
    part = block % args.parts;
    i = block / args.parts * (kThreads / args.lanes) + thread / args.lanes;
    lane = thread % args.lanes;
  }
};

template <class T, int V>
FUSEDMIX_KERNEL(kThreads) cross_entropy_gradient_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  const Part place(args);
  if (place.i >= args.loss.batch) return;
  const LossRow row(args, place.i);
  const MixedClasses<C> label = mixed_classes<T>(args, row);
  const C g = gradient_of<C>(args, place.i);
  const C* statistics = static_cast<const C*>(args.statistics) + 2 * place.i;
  const C top = device::load(statistics), rate = device::load(statistics + 1);
  write_row<T, V>(args, place.i, place.lane, place.part, [&](int64_t k, const auto& z, auto& made) {
    constexpr int kCount = sizeof(z) / sizeof(C);
    C c[kCount];
    weights_of(args.loss.class_weight, k, c);
    FUSEDMIX_UNROLL
    for (int l = 0; l < kCount; ++l) made[l] = g * (rate * exp_nonpositive(z[l] - top) - c[l] * label.flat);
    if (among<kCount>(label.own, k) || among<kCount>(label.lent, k)) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) made[l] = g * (rate * exp_nonpositive(z[l] - top) - c[l] * label.target(k + l));
    }
    if (label.ignored) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) made[l] = C(0);
    }
  });
}

template <class T, int V>
FUSEDMIX_KERNEL(kThreads) binary_gradient_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  const Part place(args);
  if (place.i >= args.loss.batch) return;
  const LossRow row(args, place.i);
  const BinaryRow<C, V == 1> label(args, row);
  const C g = gradient_of<C>(args, place.i);
  write_row<T, V>(args, place.i, place.lane, place.part, [&](int64_t k, const auto& z, auto& made) {
    constexpr int kCount = sizeof(z) / sizeof(C);
    C c[kCount], p[kCount], t[kCount];
    weights_of(args.loss.class_weight, k, c);
    weights_of(args.loss.pos_weight, k, p);
    FUSEDMIX_UNROLL
    for (int l = 0; l < kCount; ++l) t[l] = label.none;
    if ((V == 1 && args.loss.soft) || among<kCount>(label.own, k) || among<kCount>(label.lent, k)) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) t[l] = label.at(args.loss, k + l);
    }
    FUSEDMIX_UNROLL
    for (int l = 0; l < kCount; ++l) made[l] = g * binary_gradient<C>(z[l], t[l], c[l], p[l]);
  });
}

// Defined by losses_<type>.cu. `wide`: 16 bytes at a time.
template <class T>
int launch_loss(const LossArgs& args, bool wide, bool backwards, int64_t blocks, void* stream);

template <class T, int V>
int launch_loss_as(const LossArgs& args, bool backwards, int64_t blocks, void* stream) {
  const bool binary = args.loss.binary;
  if (backwards && binary) return device::launch(binary_gradient_kernel<T, V>, blocks, kThreads, stream, args);
  if (backwards) return device::launch(cross_entropy_gradient_kernel<T, V>, blocks, kThreads, stream, args);
  if (binary) return device::launch(binary_cross_entropy_kernel<T, V>, blocks, kLossThreads, stream, args);
  return device::launch(cross_entropy_kernel<T, V>, blocks, kLossThreads, stream, args);
}

}  // namespace fusedmix::cuda
