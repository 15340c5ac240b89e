// The label losses row by row. losses.cu launches them.
//
// A part of a row (LossShape) is read by as many threads as have something to do: by 16 for a few classes, by a whole block for
// many. 16 bytes at a time whatever the number of classes: the elements before the first aligned address of a row and those after
// its last are read one by one. (One by one are also all of float64 and of rows with soft labels: too few registers.) kLossAhead
// loads are under way before the first is used, and meanwhile the labels are found.
#pragma once

#include "../include/fusedmix/losses.h"
#include "losses.h"
#include "targets.h"
#include "vector.h"

namespace fusedmix::cuda {

struct LossArgs {
  Loss loss;
  LossShape shape;
  Divisor parts;
  bool smooth;
  double share;   // smoothing over the number of classes
  LossOut out;    // forwards, where a row is one part
  void* partial;  // and where it is several
  LossGrad grad;
  void* gradient;
  LaunchPlan plan;
};
static_assert(sizeof(LossArgs) <= 4096, "kernel arguments");

// What a thread of a block works on: as one of `lanes`, a part of row i. It is not active beyond the last row.
struct LossPlace {
  int64_t i;
  int32_t part, lane, lanes;
  bool active;

  FUSEDMIX_DEVICE LossPlace(const LossArgs& args, int32_t threads) {
    const uint32_t thread = device::thread(), block = device::block(), rows = divide(block, args.parts);
    lanes = 1 << args.shape.log_lanes;
    lane = static_cast<int32_t>(thread) & (lanes - 1);
    part = static_cast<int32_t>(block - rows * args.parts.number);
    i = static_cast<int64_t>(rows) * (threads >> args.shape.log_lanes) + (thread >> args.shape.log_lanes);
    active = i < args.loss.batch;
  }
};

// Goes through what a lane has of a part of a row: its vectors, kLossAhead at a time, and, with V > 1, an element at an end of
// the row that is in no vector. Loads as soon as it is made.
template <class T, int V>
struct LossReader {
  const T *row, *here;     // the row, and the vector that the lane is at
  int64_t step, stride;    // elements between classes, and between vectors of a lane
  int32_t begin, stop;     // the classes of the part
  int32_t first, length;   // the first that is in a vector, and how many vectors there are
  int32_t at, lanes;       // which of these the lane is at
  int32_t end_class = -1;  // of the element at an end, or none
  T end{};
  Vec<T, V> vectors[kLossAhead];

  FUSEDMIX_DEVICE LossReader(const LossArgs& args, const LossPlace& place)
      : row(static_cast<const T*>(args.loss.logits) + place.i * args.loss.row_stride),
        step(args.loss.step),
        stride(V > 1 ? place.lanes * V : place.lanes * step),
        at(place.lane),
        lanes(place.lanes) {
    const auto classes = static_cast<int32_t>(args.loss.num_classes);
    int32_t head = 0, body = classes;
    if constexpr (V > 1) {
      const auto apart = static_cast<int32_t>(-static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row)) % 16 / sizeof(T));
      head = apart < classes ? apart : classes;
      body = (classes - head) / V;
    }
    const int32_t before = place.part * args.shape.length, left = body - before;
    first = head + before * V;
    length = left < args.shape.length ? left : args.shape.length;
    const bool is_first = place.part == 0, is_last = place.part == static_cast<int32_t>(args.parts.number) - 1;
    begin = is_first ? 0 : first;
    stop = is_last ? classes : first + length * V;
    if constexpr (V > 1) {
      // The last lanes have those that are in no vector: they have fewer vectors than others, if any has fewer.
      const int32_t heads = is_first ? head : 0, tail = head + body * V, element = place.lanes - 1 - place.lane;
      if (element < heads) end_class = element;
      if (is_last && element >= heads && element - heads < classes - tail) end_class = tail + element - heads;
    }
    here = row + (V > 1 ? class_of(0) : class_of(0) * step);
    length = left < args.shape.length ? left : args.shape.length;
    if (!place.active) {
      length = 0;
      end_class = -1;
    }
    if (end_class >= 0) end = device::load(row + end_class);
    load();
  }

  FUSEDMIX_DEVICE bool has(int u) const { return at + u * lanes < length; }
  FUSEDMIX_DEVICE int32_t class_of(int u) const { return first + (at + u * lanes) * V; }
  // Whether there are vectors to go through.
  FUSEDMIX_DEVICE bool any() const { return has(0); }
  FUSEDMIX_DEVICE void next() {
    at += kLossAhead * lanes;
    here += kLossAhead * stride;
    load();
  }
  // f(u) for each of those that have been loaded.
  template <class F>
  FUSEDMIX_DEVICE void each(const F& f) const {
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLossAhead; ++u) {
      if (has(u)) f(u);
    }
  }
  // f(u, vector) for each of these. Of single elements one after the other: the code of f once, for what is long.
  template <class F>
  FUSEDMIX_DEVICE void each_in_turn(const F& f) const {
    if constexpr (V > 1) {
      each([&](int u) { f(u, vectors[u]); });
    } else {
      FUSEDMIX_NO_UNROLL
      for (int u = 0; u < kLossAhead; ++u) {
        Vec<T, V> one = vectors[0];
        FUSEDMIX_UNROLL
        for (int k = 1; k < kLossAhead; ++k) one = k == u ? vectors[k] : one;
        if (has(u)) f(u, one);
      }
    }
  }
  // Which vector of the part holds a class. Where none does it is a number beyond them all.
  FUSEDMIX_DEVICE uint32_t vector_of(int64_t k) const { return (static_cast<uint32_t>(k) - static_cast<uint32_t>(first)) / V; }
  FUSEDMIX_DEVICE Compute<T> logit(int64_t k) const { return to_compute(device::load(row + k * step)); }

 private:
  FUSEDMIX_DEVICE void load() {
    FUSEDMIX_UNROLL
    for (int u = 0; u < kLossAhead; ++u) {
      if (has(u)) vectors[u] = load_vector<T, V>(here + u * stride);
    }
  }
};

// What is mixed in a row.
struct LossRow {
  int64_t i = 0, partner = 0;
  double weight = 0;
  int64_t own = 0, lent = 0;  // unless labels are soft, the two classes

  LossRow() = default;
  FUSEDMIX_DEVICE LossRow(const LossArgs& args, int64_t row) : i(row) {
    const PlanView plan = view_of(args.plan);
    partner = partner_of(plan.pairing, plan.partner, i, args.loss.batch);
    weight = device::load(weights_of(args.plan) + (args.plan.weight_shared ? 0 : i));
    if (args.loss.labels.soft) return;
    const auto* labels = static_cast<const int64_t*>(args.loss.labels.data);
    own = device::load(labels + i * args.loss.labels.row_stride);
    lent = device::load(labels + partner * args.loss.labels.row_stride);
  }
};

template <class C>
FUSEDMIX_DEVICE C weight_of(const void* weights, int64_t k) {
  return weights == nullptr || k < 0 ? C(1) : device::load(static_cast<const C*>(weights) + k);
}

template <class C>
FUSEDMIX_DEVICE MixedClasses<C> mixed_classes(const LossArgs& args, const LossRow& row) {
  return {row.own, row.lent, row.weight, args.loss.num_classes, args.loss.ignore, args.loss.smoothing, args.share};
}

// A soft label of any type.
template <class C>
FUSEDMIX_DEVICE C load_soft(const Labels& labels, int64_t at) {
  return of_label(labels.type, [&](auto label) {
    return label_as<C>(device::load(static_cast<const decltype(label)*>(labels.data) + at));
  });
}

// The targets of binary cross entropy of a row.
template <class C, bool kSoft>
struct BinaryRow {
  BinaryTarget<C> target;
  std::conditional_t<kSoft, int64_t, int32_t> own = 0, lent = 0;  // classes, or where soft labels begin
  C none = 0, of_own = 0, of_lent = 0;

  FUSEDMIX_DEVICE BinaryRow(const LossArgs& args, const LossRow& row)
      : target{Smoothing<C>(args.loss.smoothing, args.share), LabelWeights<C>(row.weight),
               static_cast<C>(args.loss.threshold), args.loss.thresholded} {
    if (kSoft && args.loss.labels.soft) {
      own = row.i * args.loss.labels.row_stride;
      lent = row.partner * args.loss.labels.row_stride;
      return;
    }
    own = static_cast<decltype(own)>(row.own);
    lent = static_cast<decltype(lent)>(row.lent);
    const int64_t classes = args.loss.num_classes;
    const bool valid = row.own >= 0 && row.own < classes && row.lent >= 0 && row.lent < classes;
    none = valid ? target(C(0), C(0)) : C(NAN);
    of_own = valid ? target(C(1), own == lent ? C(1) : C(0)) : C(NAN);
    of_lent = valid ? target(C(0), C(1)) : C(NAN);
  }

  FUSEDMIX_DEVICE C at(const Labels& labels, int32_t k) const {
    if (!kSoft || !labels.soft) return k == own ? of_own : (k == lent ? of_lent : none);
    return target(load_soft<C>(labels, own + k * labels.step), load_soft<C>(labels, lent + k * labels.step));
  }
};

// Which vectors of a part have other targets than most: those of two classes, or, with soft labels, all.
struct Labelled {
  uint32_t own, lent;
  bool all;

  template <class Reader>
  FUSEDMIX_DEVICE Labelled(const Reader& reader, int64_t own_class, int64_t lent_class, bool soft = false)
      : own(reader.vector_of(own_class)), lent(reader.vector_of(lent_class)), all(soft) {}
  template <class Reader>
  FUSEDMIX_DEVICE bool operator()(const Reader& reader, int u) const {
    const auto vector = static_cast<uint32_t>(reader.at + u * reader.lanes);
    return all || vector == own || vector == lent;
  }
};

// f(l, z[l]), one after the other: the code of f once, for what is long and seldom. (An index that the compiler does not know
// would put z into local memory.)
template <class C, int N, class F>
FUSEDMIX_DEVICE void in_turn(const C (&z)[N], const F& f) {
  FUSEDMIX_NO_UNROLL
  for (int l = 0; l < N; ++l) {
    C one = z[0];
    FUSEDMIX_UNROLL
    for (int k = 1; k < N; ++k) one = k == l ? z[k] : one;
    f(l, one);
  }
}

template <class T, int V>
FUSEDMIX_DEVICE void to_numbers(const Vec<T, V>& vector, Compute<T> (&z)[V]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) z[l] = to_compute(vector.get(l));
}

// ---- forwards ----

// Calls merge(other) so that the first thread of each part takes in what the others have left in shared memory.
template <class Merge>
FUSEDMIX_DEVICE void over_lanes(int32_t lane, int32_t lanes, const Merge& merge) {
  for (int32_t half = lanes / 2; half > 0; half /= 2) {
    device::sync();
    if (lane < half) merge(static_cast<int32_t>(device::thread()) + half);
  }
}

// Sums as parts of a row leave them.
template <class C>
FUSEDMIX_DEVICE void store_sums(C* to, const RowSums<C>& sums) {
  device::store(to, sums.max);
  device::store(to + 1, sums.exponentials);
  device::store(to + 2, sums.linear);
  device::store(to + 3, sums.total);
}
template <class C>
FUSEDMIX_DEVICE RowSums<C> load_sums(const C* from) {
  return {device::load(from), device::load(from + 1), device::load(from + 2), device::load(from + 3)};
}

// Stores what the sums of a whole row say. Returns its loss.
template <class C>
FUSEDMIX_DEVICE C store_row(const LossOut& out, int64_t i, const RowSums<C>& sums) {
  const C loss = sums.loss();
  device::store(static_cast<C*>(out.rows) + i, loss);
  device::store(static_cast<C*>(out.statistics) + 2 * i, sums.max);
  device::store(static_cast<C*>(out.statistics) + 2 * i + 1, sums.rate());
  return loss;
}

// Adds logits z of N classes, none of which is larger than the largest of the sums: their exponentials, and, where they are to be
// and all weigh 1, the logits.
template <class C, int N>
FUSEDMIX_DEVICE void add_logits(RowSums<C>& sums, C base, bool linear, const C (&z)[N]) {
  C x[N], more = 0;
  FUSEDMIX_UNROLL
  for (int l = 0; l < N; ++l) {
    x[l] = z[l] - base;
    more += exp_nonpositive(x[l]);
  }
  sums.exponentials += more;
  if (!linear) return;
  more = 0;
  FUSEDMIX_UNROLL
  for (int l = 0; l < N; ++l) more += x[l];
  sums.linear += more;
  sums.total += C(N);
}
// The logits, weighted.
template <class C, int N>
FUSEDMIX_DEVICE void add_weighted(RowSums<C>& sums, C base, const C* weights, const C (&z)[N]) {
  FUSEDMIX_UNROLL
  for (int l = 0; l < N; ++l) {
    const C c = device::load(weights + l);
    sums.linear += term(c, z[l] - base);
    sums.total += c;
  }
}

// Adds to the sums of the first thread of a part those of its other threads.
template <class C>
FUSEDMIX_DEVICE void add_over_lanes(RowSums<C>& sums, const LossPlace& place) {
  FUSEDMIX_SHARED(C, tops, kLossThreads);
  FUSEDMIX_SHARED(C, exponentials, kLossThreads);
  FUSEDMIX_SHARED(C, linears, kLossThreads);
  FUSEDMIX_SHARED(C, totals, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  const auto leave = [&] {
    tops[thread] = sums.max;
    exponentials[thread] = sums.exponentials;
    linears[thread] = sums.linear;
    totals[thread] = sums.total;
  };
  leave();
  over_lanes(place.lane, place.lanes, [&](int32_t other) {
    const RowSums<C> more{tops[other], exponentials[other], linears[other], totals[other]};
    sums.add(more);
    leave();
  });
}

template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kLossThreads, 4) cross_entropy_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  const LossPlace place(args, kLossThreads);
  LossReader<T, V> reader(args, place);
  const bool leads = place.active && place.lane == 0;
  const LossRow row = leads ? LossRow(args, place.i) : LossRow();
  const C* weights = args.smooth ? static_cast<const C*>(args.loss.class_weight) : nullptr;
  const bool linear = args.smooth && weights == nullptr;
  RowSums<C> sums;
  for (; reader.any(); reader.next()) {
    C top = -C(INFINITY), z[V];
    reader.each([&](int u) {
      to_numbers(reader.vectors[u], z);
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) top = std::fmax(top, z[l]);
    });
    sums.raise(top);
    const C base = sums.base();
    reader.each([&](int u) {
      to_numbers(reader.vectors[u], z);
      add_logits(sums, base, linear, z);
    });
    reader.each([&](int u) {
      if (weights == nullptr) return;
      to_numbers(reader.vectors[u], z);
      add_weighted(sums, base, weights + reader.class_of(u), z);
    });
  }
  if (reader.end_class >= 0) {
    const C z[1] = {to_compute(reader.end)};
    sums.raise(z[0]);
    add_logits(sums, sums.base(), linear, z);
    if (weights != nullptr) add_weighted(sums, sums.base(), weights + reader.end_class, z);
  }
  add_over_lanes(sums, place);
  if (!leads) return;
  MixedClasses<C> label = mixed_classes<C>(args, row);
  label.keep(reader.begin, reader.stop);
  const auto logit = [&](int64_t k) { return k < 0 ? C(0) : reader.logit(k); };
  const C own = weight_of<C>(args.loss.class_weight, label.own), lent = weight_of<C>(args.loss.class_weight, label.lent);
  // Where both labels are ignored: a loss and statistics of 0, whatever the logits.
  sums = label.ignored ? RowSums<C>{C(0), C(1), C(0), C(0)} : label.sums(sums, logit(label.own), logit(label.lent), own, lent);
  if (args.partial == nullptr) {
    store_row(args.out, place.i, sums);
  } else {
    store_sums(static_cast<C*>(args.partial) + 4 * (place.i * args.shape.parts + place.part), sums);
  }
}

// Blocks that are to fit a multiprocessor: with four, float64 would have a stack.
template <class T>
constexpr int kBinaryBlocks = sizeof(T) == 8 ? 3 : 4;

template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kLossThreads, kBinaryBlocks<T>) binary_cross_entropy_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  FUSEDMIX_SHARED(C, found, kLossThreads);
  const int32_t thread = static_cast<int32_t>(device::thread());
  const LossPlace place(args, kLossThreads);
  LossReader<T, V> reader(args, place);
  const BinaryRow<C, V == 1> label(args, LossRow(args, place.active ? place.i : 0));
  const Labelled labelled(reader, label.own, label.lent, args.loss.labels.soft);
  const void *weights = args.loss.class_weight, *positive = args.loss.pos_weight;
  const bool weighted = weights != nullptr || positive != nullptr;
  C sum = 0;
  const auto add_any = [&](int32_t k, C z) {
    sum += binary_loss<C>(z, label.at(args.loss.labels, k), weight_of<C>(weights, k), weight_of<C>(positive, k));
  };
  for (; reader.any(); reader.next()) {
    BinaryLosses<C> losses;
    reader.each_in_turn([&](int u, const Vec<T, V>& vector) {
      const int32_t k = reader.class_of(u);
      C z[V];
      to_numbers(vector, z);
      if (weighted || labelled(reader, u)) {
        in_turn(z, [&](int l, C one) { add_any(k + l, one); });
      } else if (label.none == C(0)) {
        FUSEDMIX_UNROLL
        for (int l = 0; l < V; ++l) losses.add(z[l]);
      } else {
        FUSEDMIX_UNROLL
        for (int l = 0; l < V; ++l) losses.add(z[l], label.none);
      }
    });
    sum += losses.sum();
  }
  if (reader.end_class >= 0) add_any(reader.end_class, to_compute(reader.end));
  found[thread] = sum;
  over_lanes(place.lane, place.lanes, [&](int32_t other) { found[thread] = sum = sum + found[other]; });
  if (!place.active || place.lane != 0) return;
  if (args.partial == nullptr) {
    device::store(static_cast<C*>(args.out.rows) + place.i, sum);
  } else {
    device::store(static_cast<C*>(args.partial) + place.i * args.shape.parts + place.part, sum);
  }
}

// ---- backwards ----

// Stores what f(k, labelled, z, made) makes of the logits z of some classes from k on. A lane has no more vectors than are under
// way at a time.
template <class T, int V, class F>
FUSEDMIX_DEVICE void write_gradient(const LossArgs& args, const LossPlace& place, const LossReader<T, V>& reader,
                                    const Labelled& labelled, const F& f) {
  using C = Compute<T>;
  T* out = static_cast<T*>(args.gradient) + place.i * args.loss.num_classes;
  reader.each_in_turn([&](int u, const Vec<T, V>& vector) {
    const int32_t k = reader.class_of(u);
    C z[V], made[V];
    to_numbers(vector, z);
    f(k, labelled(reader, u), z, made);
    device::store_whole(reinterpret_cast<RawVec<T, V>*>(out + k), to_raw(Vec<T, V>::of(made)));
  });
  if (reader.end_class < 0) return;
  const C z[1] = {to_compute(reader.end)};
  C made[1];
  f(reader.end_class, true, z, made);
  device::store(out + reader.end_class, from_compute<T>(made[0]));
}

template <class C>
FUSEDMIX_DEVICE C gradient_of(const LossGrad& grad, int64_t i) {
  const C given = device::load(static_cast<const C*>(grad.grad) + i * grad.step) * static_cast<C>(grad.factor);
  return grad.scale == nullptr ? given : given * device::load(static_cast<const C*>(grad.scale));
}

template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kThreads, 8) cross_entropy_gradient_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  const LossPlace place(args, kThreads);
  if (!place.active) return;
  const LossReader<T, V> reader(args, place);
  const C* statistics = static_cast<const C*>(args.grad.statistics) + 2 * place.i;
  const C top = device::load(statistics), g = gradient_of<C>(args.grad, place.i), rate = g * device::load(statistics + 1);
  const MixedClasses<C> label = mixed_classes<C>(args, LossRow(args, place.i));
  const C flat = g * label.flat;
  const void* weights = args.loss.class_weight;
  const Labelled labelled(reader, label.own, label.lent, label.ignored);
  write_gradient(args, place, reader, labelled, [&](int32_t k, bool other, const auto& z, auto& made) {
    constexpr int kCount = sizeof(z) / sizeof(C);
    if (!other && weights == nullptr) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) made[l] = mad(rate, exp_nonpositive(z[l] - top), -flat);
    } else {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) {
        const C target = weight_of<C>(weights, k + l) * (g * label.target(k + l));
        made[l] = label.ignored ? C(0) : mad(rate, exp_nonpositive(z[l] - top), -target);
      }
    }
  });
}

template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kThreads, 8) binary_gradient_kernel(FUSEDMIX_ARGS(LossArgs, args)) {
  using C = Compute<T>;
  const LossPlace place(args, kThreads);
  if (!place.active) return;
  const LossReader<T, V> reader(args, place);
  const C g = gradient_of<C>(args.grad, place.i);
  const BinaryRow<C, V == 1> label(args, LossRow(args, place.i));
  const C up = g * (C(1) - label.none), down = g * label.none;
  const void *weights = args.loss.class_weight, *positive = args.loss.pos_weight;
  const Labelled labelled(reader, label.own, label.lent, args.loss.labels.soft);
  write_gradient(args, place, reader, labelled, [&](int32_t k, bool other, const auto& z, auto& made) {
    constexpr int kCount = sizeof(z) / sizeof(C);
    if (!other && weights == nullptr && positive == nullptr) {
      FUSEDMIX_UNROLL
      for (int l = 0; l < kCount; ++l) made[l] = binary_slope(z[l], up, down);
    } else {
      in_turn(z, [&](int l, C one) {
        const C t = label.at(args.loss.labels, k + l), c = weight_of<C>(weights, k + l), p = weight_of<C>(positive, k + l);
        const C slope = g * binary_gradient<C>(one, t, c, p);
        FUSEDMIX_UNROLL
        for (int j = 0; j < kCount; ++j) made[j] = j == l ? slope : made[j];
      });
    }
  });
}

template <class T, int V>
int launch_loss_as(const LossArgs& args, bool backwards, void* stream) {
  const bool binary = args.loss.binary;
  const int64_t blocks = args.shape.blocks;
  if (backwards && binary) return device::launch(binary_gradient_kernel<T, V>, blocks, kThreads, stream, args);
  if (backwards) return device::launch(cross_entropy_gradient_kernel<T, V>, blocks, kThreads, stream, args);
  if (binary) return device::launch(binary_cross_entropy_kernel<T, V>, blocks, kLossThreads, stream, args);
  return device::launch(cross_entropy_kernel<T, V>, blocks, kLossThreads, stream, args);
}

template <class T>
int launch_loss(const LossArgs& args, bool backwards, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.shape.wide) return launch_loss_as<T, 16 / sizeof(T)>(args, backwards, stream);
  }
  return launch_loss_as<T, 1>(args, backwards, stream);
}

}  // namespace fusedmix::cuda
