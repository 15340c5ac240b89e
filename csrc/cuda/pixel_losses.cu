// The cross entropy of mixed label maps: at each pixel M·ℓ(z, y) + (1-M)·ℓ(z, y'), and its gradient. The meaning is
// fusedmix/backends/pixel_losses.py.
//
// A thread has kPixels pixels, whose classes it goes through once, kPlanes at a time: loads of all of these are under way before the
// first is used, and the largest logit so far is raised once for them. Where memory allows, its pixels are neighbours, and an access
// is of them all; else those of neighbouring threads are. What depends on the pixel alone, its mask and its two labels, comes once,
// behind the classes or before them, so that it costs K logits little.
//
// One kernel is for all types of logits that are computed with in float32: which of these it is, and how wide an access is, are
// asked once for kPlanes·kPixels logits, alike for all threads. A kernel for each would have the code of all masks in each.
#include <algorithm>
#include <stdexcept>

#include "pixel_access.h"

namespace fusedmix::cuda {
namespace {

// The logits of a thread's pixels, of some classes from k on: -infinity where there is no such class. `first`: the element of the
// first pixel, of class 0.
template <class C>
FUSEDMIX_DEVICE void load_planes(const PixelLossArgs& args, const PixelPlace<C>& place, int64_t first, int32_t k,
                                 C (&z)[kPlanes<C>][kPixels<C>]) {
  constexpr int V = kPixels<C>, U = kPlanes<C>;
  const auto left = static_cast<int32_t>(args.loss.classes) - k;
  of_elements<C>(args.loss.type, [&](auto type) {
    using T = decltype(type);
    const T* at = static_cast<const T*>(args.loss.logits) + first + k * args.loss.by.plane;
    if (args.shape.wide) {
      Vec<T, V> vectors[U]{};
      FUSEDMIX_UNROLL
      for (int u = 0; u < U; ++u) {
        if (u < left) vectors[u] = load_vector<T, V>(at + u * args.loss.by.plane);
      }
      FUSEDMIX_UNROLL
      for (int u = 0; u < U; ++u) {
        FUSEDMIX_UNROLL
        for (int l = 0; l < V; ++l) z[u][l] = u < left ? to_compute(vectors[u].get(l)) : -C(INFINITY);
      }
    } else {
      load_one_by_one(args, place, at, left, z);
    }
  });
}

// Stores what was made of them.
template <class C>
FUSEDMIX_DEVICE void store_planes(const PixelLossArgs& args, const PixelPlace<C>& place, int64_t first, int32_t k,
                                  const C (&made)[kPlanes<C>][kPixels<C>]) {
  constexpr int V = kPixels<C>, U = kPlanes<C>;
  const auto left = static_cast<int32_t>(args.loss.classes) - k;
  of_elements<C>(args.loss.type, [&](auto type) {
    using T = decltype(type);
    T* at = static_cast<T*>(args.grad.out) + first + k * args.grad.by.plane;
    FUSEDMIX_UNROLL
    for (int u = 0; u < U; ++u) {
      if (u >= left) break;
      T* plane = at + u * args.grad.by.plane;
      if (args.shape.wide) {
        device::store_whole(reinterpret_cast<RawVec<T, V>*>(plane), to_raw(Vec<T, V>::of(made[u])));
      } else {
        store_one_by_one(args, place, plane, made[u]);
      }
    }
  });
}

// ---- forwards ----

// Blocks that are to fit a multiprocessor.
template <class C>
constexpr int kPixelBlocks = sizeof(C) == 4 ? 4 : 3;

template <class C>
FUSEDMIX_WIDE_KERNEL(kPixelThreads, kPixelBlocks<C>) pixel_cross_entropy_kernel(FUSEDMIX_ARGS(PixelLossArgs, args)) {
  constexpr int V = kPixels<C>, U = kPlanes<C>;
  FUSEDMIX_SHARED(double, losses, kPixelThreads);
  FUSEDMIX_SHARED(double, masses, kPixelThreads);
  const PixelPlace<C> place(args);
  const int64_t first = place.element(args.loss.by);
  const auto classes = static_cast<int32_t>(args.loss.classes);
  const bool smooth = args.loss.smoothing != 0.0;

  // Of exponentials, and of the logits by the weights of classes, relative to the largest logit so far (RowSums).
  C top[V], exponentials[V], linear[V], total = 0;
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) top[l] = -C(INFINITY), exponentials[l] = linear[l] = 0;
  for (int32_t k = 0; k < classes && place.lanes > 0; k += U) {
    C z[U][V], c[U], all = 0;
    load_planes(args, place, first, k, z);
    FUSEDMIX_UNROLL
    for (int u = 0; u < U; ++u) {
      c[u] = smooth && k + u < classes ? weight_of<C>(args.loss.class_weight, k + u) : C(0);
      all += c[u];
    }
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      C higher = top[l], more = 0;
      FUSEDMIX_UNROLL
      for (int u = 0; u < U; ++u) higher = std::fmax(higher, z[u][l]);
      const C base = RowSums<C>::base_of(higher);
      FUSEDMIX_UNROLL
      for (int u = 0; u < U; ++u) more += exp_nonpositive(z[u][l] - base);
      exponentials[l] = mad(exponentials[l], exp_nonpositive(top[l] - base), more);
      if (smooth) {
        linear[l] += total * (RowSums<C>::base_of(top[l]) - base);
        FUSEDMIX_UNROLL
        for (int u = 0; u < U; ++u) linear[l] += term(c[u], z[u][l] - base);
      }
      top[l] = higher;
    }
    total += all;
  }

  PixelLabels<C> own, lent;
  load_labels(args, place, own, lent);
  C logarithm[V], loss[V], logsumexp[V], sum = 0, mass = 0;
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    top[l] = RowSums<C>::base_of(top[l]);
    logarithm[l] = std::log(exponentials[l]);
    logsumexp[l] = top[l] + logarithm[l];
    loss[l] = term(static_cast<C>(args.share) * (own.share[l] + lent.share[l]), total * logarithm[l] - linear[l]);
  }
  const C keep = static_cast<C>(1.0 - args.loss.smoothing);
  const auto add = [&](const PixelLabels<C>& label) {
    C z[V];
    label.load_logits(args, place, first, z);
    FUSEDMIX_UNROLL
    for (int l = 0; l < V; ++l) {
      loss[l] += keep * term(label.weight[l], logarithm[l] - (z[l] - top[l]));
      mass += label.weight[l];
    }
  };
  add(own);
  add(lent);
  store_pixels(args, place, args.out.logsumexp, logsumexp);
  if (args.out.losses != nullptr) store_pixels(args, place, args.out.losses, loss);

  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) sum += loss[l];
  const auto thread = static_cast<int32_t>(device::thread());
  losses[thread] = sum;
  masses[thread] = mass;
  over_lanes(thread, kPixelThreads, [&](int32_t other) {
    losses[thread] += losses[other];
    masses[thread] += masses[other];
  });
  if (thread != 0) return;
  device::store(args.partial + 2 * device::block(), static_cast<double>(losses[0]));
  device::store(args.partial + 2 * device::block() + 1, static_cast<double>(masses[0]));
}

struct PixelSumArgs {
  PixelOut out;
  const double* partial;
  int64_t blocks;
  bool mean, wide;
};

// The sums of all blocks: one block.
FUSEDMIX_KERNEL(kPixelThreads) pixel_sum_kernel(FUSEDMIX_ARGS(PixelSumArgs, args)) {
  FUSEDMIX_SHARED(double, losses, kPixelThreads);
  FUSEDMIX_SHARED(double, masses, kPixelThreads);
  const auto thread = static_cast<int32_t>(device::thread());
  double loss = 0, mass = 0;
  for (int64_t n = thread; n < args.blocks; n += kPixelThreads) {
    loss += device::load(args.partial + 2 * n);
    mass += device::load(args.partial + 2 * n + 1);
  }
  losses[thread] = loss;
  masses[thread] = mass;
  over_lanes(thread, kPixelThreads, [&](int32_t other) {
    losses[thread] = loss = loss + losses[other];
    masses[thread] = mass = mass + masses[other];
  });
  if (thread != 0) return;
  const double scale = args.mean ? 1.0 / mass : 1.0;
  if (args.wide) {
    device::store(static_cast<double*>(args.out.sum), loss * scale);
    device::store(static_cast<double*>(args.out.scale), scale);
  } else {
    device::store(static_cast<float*>(args.out.sum), static_cast<float>(loss * scale));
    device::store(static_cast<float*>(args.out.scale), static_cast<float>(scale));
  }
}

// ---- backwards ----

// The sum of the weights of all classes.
template <class C>
FUSEDMIX_DEVICE C all_weights(const PixelLossArgs& args) {
  if (args.loss.class_weight == nullptr) return static_cast<C>(args.loss.classes);
  C sum = 0;
  FUSEDMIX_UNROLL_4
  for (int64_t k = 0; k < args.loss.classes; ++k) sum += weight_of<C>(args.loss.class_weight, k);
  return sum;
}

template <class C>
FUSEDMIX_WIDE_KERNEL(kPixelThreads, 3) pixel_gradient_kernel(FUSEDMIX_ARGS(PixelLossArgs, args)) {
  constexpr int V = kPixels<C>, U = kPlanes<C>;
  const PixelPlace<C> place(args);
  if (place.lanes == 0) return;
  PixelLabels<C> own, lent;
  load_labels(args, place, own, lent);
  const bool smooth = args.loss.smoothing != 0.0;
  const C keep = static_cast<C>(1.0 - args.loss.smoothing), share = static_cast<C>(args.share), all = smooth ? all_weights<C>(args) : C(0);
  C rate[V], flat[V], logsumexp[V], g[V];
  load_pixels(args, place, args.grad.logsumexp, logsumexp);
  if (args.grad.each) load_pixels(args, place, args.grad.grad, g);
  FUSEDMIX_UNROLL
  for (int l = 0; l < V; ++l) {
    if (!args.grad.each) g[l] = device::load(static_cast<const C*>(args.grad.grad));
    g[l] *= device::load(static_cast<const C*>(args.grad.scale));
    flat[l] = g[l] * share * (own.share[l] + lent.share[l]);
    rate[l] = g[l] * keep * (own.weight[l] + lent.weight[l]) + all * flat[l];
    own.weight[l] *= g[l] * keep;
    lent.weight[l] *= g[l] * keep;
  }
  const int64_t first = place.element(args.loss.by), to = place.element(args.grad.by);
  const auto classes = static_cast<int32_t>(args.loss.classes);
  for (int32_t k = 0; k < classes; k += U) {
    C z[U][V];
    load_planes(args, place, first, k, z);
    FUSEDMIX_UNROLL
    for (int u = 0; u < U; ++u) {
      const C c = smooth && k + u < classes ? weight_of<C>(args.loss.class_weight, k + u) : C(0);
      FUSEDMIX_UNROLL
      for (int l = 0; l < V; ++l) {
        C slope = rate[l] * exp_nonpositive(z[u][l] - logsumexp[l]);
        if (smooth) slope -= c * flat[l];
        if (k + u == own.at[l]) slope -= own.weight[l];
        if (k + u == lent.at[l]) slope -= lent.weight[l];
        z[u][l] = own.share[l] == C(0) && lent.share[l] == C(0) ? C(0) : slope;
      }
    }
    store_planes(args, place, to, k, z);
  }
}

// ---- launches ----

template <class Kernel>
int launch(Kernel* of_float, Kernel* of_double, PixelLossArgs& args, void* stream) {
  const PixelLoss& loss = args.loss;
  if (args.shape.blocks == 0) return 0;
  const int64_t above = args.shape.row == loss.side[2] ? loss.side[1] : 1;
  args.tiles = divisor(args.shape.tiles);
  args.rows = divisor(args.shape.rows);
  args.columns = divisor(above);
  args.height = divisor(loss.side[1]);
  args.width = divisor(loss.side[2]);
  args.share = loss.smoothing / static_cast<double>(loss.classes);
  args.label_bytes = static_cast<int32_t>(label_size(loss.label));
  const bool has_sign = loss.label <= kLabelInt8 && args.label_bytes < 8;
  args.label_span = has_sign ? int64_t{1} << (8 * args.label_bytes) : 0;
  args.most_label = has_sign ? args.label_span / 2 - 1 : INT64_MAX;
  return device::launch(loss.type == ElementType::kFloat64 ? of_double : of_float, args.shape.blocks, kPixelThreads, stream, args);
}

// How many of the pixels lie at a constant step.
int64_t row_of(const PixelLoss& loss, const PixelSteps& by) {
  int64_t row = loss.side[2];
  for (int axis = 1; axis >= 0; --axis) {
    if (loss.side[axis] > 1 && by.side[axis] != row * by.side[2]) return row;
    row *= loss.side[axis];
  }
  return row;
}

// Whether every `width` pixels that follow each other in a row are one aligned access.
bool is_wide(const PixelLoss& loss, const PixelSteps& by, const void* data, int64_t row, int64_t width) {
  const auto fits = [&](int64_t count, int64_t step) { return count <= 1 || step % width == 0; };
  return (by.side[2] == 1 || row == 1) && row % width == 0 && fits(loss.batch, by.batch) && fits(loss.classes, by.plane) && fits(loss.side[0], by.side[0]) &&
         (row != loss.side[2] || fits(loss.side[1], by.side[1])) &&
         reinterpret_cast<uintptr_t>(data) % (width * element_size(loss.type)) == 0;
}

}  // namespace

PixelShape pixel_shape(const PixelLoss& loss, const PixelGrad* grad) {
  if (loss.batch > INT32_MAX || loss.classes > INT32_MAX || loss.pixels > INT32_MAX) {
    throw std::invalid_argument("fusedmix: logits must have fewer than 2^31 samples, classes and pixels on a GPU.");
  }
  const int64_t width = loss.type == ElementType::kFloat64 ? kPixels<double> : kPixels<float>;
  PixelShape shape{};
  if (loss.batch * loss.pixels == 0) return shape;
  shape.row = row_of(loss, loss.by);
  if (grad != nullptr) shape.row = std::min(shape.row, row_of(loss, grad->by));
  shape.wide = width > 1 && is_wide(loss, loss.by, loss.logits, shape.row, width) &&
               (grad == nullptr || is_wide(loss, grad->by, grad->out, shape.row, width));
  shape.rows = loss.pixels / shape.row;
  shape.tiles = divide_up(shape.row, width * kPixelThreads);
  shape.blocks = launchable(loss.batch * shape.rows * shape.tiles);
  return shape;
}

int pixel_losses(const PixelLoss& loss, const LaunchPlan& plan, const PixelShape& shape, const PixelOut& out, double* partial, void* stream) {
  PixelLossArgs args{};
  args.loss = loss;
  args.shape = shape;
  args.out = out;
  args.partial = partial;
  args.plan = plan;
  return launch(pixel_cross_entropy_kernel<float>, pixel_cross_entropy_kernel<double>, args, stream);
}

int finish_pixel_losses(const PixelLoss& loss, const PixelShape& shape, const double* partial, bool mean, const PixelOut& out, void* stream) {
  const PixelSumArgs args{out, partial, shape.blocks, mean, loss.type == ElementType::kFloat64};
  return device::launch(pixel_sum_kernel, 1, kPixelThreads, stream, args);
}

int pixel_gradient(const PixelLoss& loss, const LaunchPlan& plan, const PixelShape& shape, const PixelGrad& grad, void* stream) {
  PixelLossArgs args{};
  args.loss = loss;
  args.shape = shape;
  args.grad = grad;
  args.plan = plan;
  return launch(pixel_gradient_kernel<float>, pixel_gradient_kernel<double>, args, stream);
}

}  // namespace fusedmix::cuda
