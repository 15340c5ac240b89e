// Batches with crops of other samples in them, resized to boxes.
#pragma once

#include "tiling.h"
#include "vector.h"

namespace fusedmix::cuda {

struct PasteArgs {
  const char* src;
  char* dst;
  Loops loops;
  Tiling tiling;
  int32_t side[3];
  int64_t step[3];  // in bytes of src, from pixel to pixel along z, y, x
  bool large;       // a side of more than 32767 pixels
  LaunchPatches patches;
};
static_assert(sizeof(PasteArgs) <= 4096, "kernel arguments");

// What a pixel of a box is made of along an axis, in bytes from where it lies itself.
struct Sources {
  int64_t first, second;
  float share;  // of the second
};

// A patch along an axis.
struct Range {
  Side box, crop;
  int64_t step;

  // Whether both lie in an image of that side, and the crop has pixels. Only the host could refuse others.
  FUSEDMIX_DEVICE bool is_valid(int32_t side) const {
    return (box.first >= 0) & (box.stop <= side) & (crop.first >= 0) & (crop.first < crop.stop) & (crop.stop <= side);
  }
  FUSEDMIX_DEVICE Sources at(const PasteArgs& args, int32_t pixel) const {
    const Resize resize = args.patches.view.resize;
    const auto c = static_cast<uint32_t>(pixel - box.first), n = static_cast<uint32_t>(box.length()), m = static_cast<uint32_t>(crop.length());
    Tap tap;
    if (args.large) {
      tap = tap_at<uint64_t>(resize, c, n, m);
    } else {
      const auto of = place_in_crop(resize, c, n, m);
      const uint32_t whole = small_quotient(of.numerator, of.denominator);
      tap = tap_of(resize, whole, of.numerator - whole * of.denominator, of.denominator, m);
    }
    const int32_t moved = crop.first - pixel;
    return {(moved + tap.first) * step, (moved + tap.second) * step, tap.share};
  }
};

// The patches of a batch.
struct Pasted {
  const PasteArgs& args;
  Patches patches;

  FUSEDMIX_DEVICE explicit Pasted(const PasteArgs& given) : args(given), patches(given.patches.view) {
    const LaunchPatches& its = given.patches;
    patches.partner = part_of(its, patches.partner, its.offset.partner);
    patches.boxes = part_of(its, patches.boxes, its.offset.boxes);
    patches.crops = part_of(its, patches.crops, its.offset.crops);
  }
  FUSEDMIX_DEVICE Side box(int64_t patch, int32_t axis) const { return patches.side_of(patches.boxes, patch, axis, Load{}); }
  FUSEDMIX_DEVICE Range range(int64_t patch, int32_t axis) const {
    return {box(patch, axis), patches.side_of(patches.crops, patch, axis, Load{}), along_axis(args.step, axis)};
  }
  // The lanes of a vector that its box holds.
  template <int V>
  FUSEDMIX_DEVICE uint32_t lanes(int64_t patch, const Place<V>& place) const {
    Box of{};
    FUSEDMIX_UNROLL
    for (int32_t axis = 0; axis < 3; ++axis) {
      const Side side = box(patch, axis);
      of.first[axis] = side.first;
      of.stop[axis] = side.stop;
    }
    return lanes_in(of.along(place.at, args.loops.row_axis), place, args.loops);
  }
};

// A pixel of a partner, between up to eight. `own`: the place in the partner that the pixel itself has.
template <class T>
FUSEDMIX_DEVICE T resized(const char* own, const Sources (&from)[3], const Loops& loops) {
  using C = Compute<T>;
  const auto value = [&](int64_t offset) { return device::load(reinterpret_cast<const T*>(own + offset)); };
  const T nearest = value(from[0].first + from[1].first + from[2].first);
  if (from[0].share == 0.0f && from[1].share == 0.0f && from[2].share == 0.0f) return nearest;
  const auto along_x = [&](int64_t offset) {
    const C first = number_of(value(offset + from[2].first), loops), second = number_of(value(offset + from[2].second), loops);
    return between(first, second, from[2].share);
  };
  const auto along_y = [&](int64_t offset) {
    const C first = along_x(offset + from[1].first);
    return from[1].share == 0.0f ? first : between(first, along_x(offset + from[1].second), from[1].share);
  };
  const C first = along_y(from[0].first);
  return rounded_to<T>(from[0].share == 0.0f ? first : between(first, along_y(from[0].second), from[0].share), loops);
}

// Adds the lanes of a vector that a patch paints, if it is one. `own`: the vector's place in the partner.
template <class T, int V>
FUSEDMIX_DEVICE bool paint(const Pasted& pasted, int64_t patch, const Place<V>& place, const char* own, uint32_t lanes, Vec<T, V>& out) {
  const PasteArgs& args = pasted.args;
  const int32_t row_axis = args.loops.row_axis;
  Sources from[3] = {};
  Range row{};
  int64_t moved = 0;
  bool as_it_is = true;
  FUSEDMIX_NO_UNROLL
  for (int32_t axis = 0; axis < 3; ++axis) {
    const Range range = pasted.range(patch, axis);
    if (!range.is_valid(along_axis(args.side, axis))) return false;
    moved += (range.crop.first - range.box.first) * range.step;
    as_it_is &= range.crop.length() == range.box.length();
    if (axis == row_axis) {
      row = range;
      continue;
    }
    const Sources its = range.at(args, along_axis(place.at, axis));
    FUSEDMIX_UNROLL
    for (int32_t a = 0; a < 3; ++a) from[a] = a == axis ? its : from[a];
  }
  if (V > 1 && as_it_is && lanes == kAllLanes<V> && reinterpret_cast<uintptr_t>(own + moved) % sizeof(RawVec<T, V>) == 0) {
    out = load_vector<T, V>(own + moved);
    return true;
  }
  FUSEDMIX_NO_UNROLL
  for (int l = 0; l < V; ++l) {
    if ((lanes >> l & 1u) == 0) continue;
    if (row_axis >= 0) {
      const Sources its = row.at(args, place.first + lane_at(args.loops, place.channel, l));
      FUSEDMIX_UNROLL
      for (int32_t a = 0; a < 3; ++a) from[a] = a == row_axis ? its : from[a];
    }
    out.put(l, resized<T>(own + l * static_cast<int>(sizeof(T)), from, args.loops));
  }
  return true;
}

// A thread has a vector of a sample. Patches cover what came before them, so the last is looked at first.
template <class T, int V>
FUSEDMIX_WIDE_KERNEL(kEachThreads, 3) paste_kernel(FUSEDMIX_ARGS(PasteArgs, args)) {
  const Spot spot = spot_of(args.tiling);
  if (!spot.is_there) return;
  const Place<V> place = place_of<V>(args.loops, spot.column);
  const Pasted pasted(args);
  const int32_t count = pasted.patches.count;
  uint32_t bare = kAllLanes<V>;
  Vec<T, V> out{};
  FUSEDMIX_NO_UNROLL
  for (int32_t k = count - 1; k >= 0 && bare != 0; --k) {
    const int64_t patch = static_cast<int64_t>(spot.sample) * count + k;
    const uint32_t lanes = pasted.lanes(patch, place) & bare;
    if (lanes == 0) continue;
    const int64_t j = device::load(pasted.patches.partner + patch);
    if (static_cast<uint64_t>(j) >= args.tiling.batch) continue;  // nobody's number, which only the host could refuse
    if (paint(pasted, patch, place, args.src + j * args.loops.src_batch + place.src, lanes, out)) bare &= ~lanes;
  }
  if (bare != 0) {
    const Vec<T, V> own = load_vector<T, V>(args.src + spot.sample * args.loops.src_batch + place.src);
    out = bare == kAllLanes<V> ? own : pick(bare, out, own);
  }
  store_vector<T, V>(args.dst + spot.sample * args.loops.dst_batch + place.dst, out);
}

}  // namespace fusedmix::cuda
