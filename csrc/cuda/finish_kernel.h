// Finishes whole vectors of pixels: what is read is flipped, mixed, normalised, rounded and written, once. finish.cu
// launches the kernel, and has one for all that fits no vector.
//
// A thread has some pixels that follow each other, of the three channels of images in colour: what is found of pixels (weights, holes)
// is then found once for all three, and six loads of 16 bytes are under way. Of other images it has one channel. What holes touch is
// done number by number, from memory (finish_pixel.h), in a branch of its own.
#pragma once

#include "finish_pixel.h"

namespace fusedmix::cuda {

// The weights of n pixels.
template <int P, int32_t kFamilies>
struct PixelWeights {
  uint32_t inside = 0;
  float inner = 1.0f, outer = 1.0f;  // inside of a box and elsewhere
  float each[kFamilies == kAnySet ? P : 1];

  FUSEDMIX_DEVICE float operator()(int p) const {
    if constexpr (kFamilies == kAnySet) {
      return each[p];
    } else if constexpr (kFamilies == kConstantSet) {
      return outer;
    }
    return (inside >> p & 1u) != 0 ? inner : outer;
  }
  // Where the compiler does not know p: an index would put the array into local memory.
  FUSEDMIX_DEVICE float at(int p) const {
    float found = (*this)(0);
    if constexpr (kFamilies == kAnySet) {
      FUSEDMIX_UNROLL
      for (int k = 1; k < P; ++k) found = k == p ? each[k] : found;
    } else {
      found = (*this)(p);
    }
    return found;
  }

  // Of sample i at row y from x on. Returns what is needed of the sample and of its partner.
  FUSEDMIX_DEVICE Reach find(const PlanView& plan, uint32_t i, int32_t y, int32_t x) {
    if constexpr (kFamilies == kConstantSet) {
      outer = bit_cast<Constant>(load_mask(plan, i)).value;
      return reach_of(outer);
    } else {
      // A row of pixels, whatever lies between them in memory.
      const Loops loops{1, 2, 1, 0, {1, 1, 0}, 0, 0, 0, {}};
      Place<P> place{0, 0, {0, y, 0}, x, x, 0, {}};
      FUSEDMIX_UNROLL
      for (int p = 0; p < P; ++p) place.lane.set(p, p);
      if constexpr (kFamilies == kBoxSet) {
        const Box::Row row = bit_cast<Box>(load_mask(plan, i)).along(place.at, 2);
        inside = lanes_in(row, place, loops), inner = row.inner, outer = row.outer;
        if (inside == kAllLanes<P>) return reach_of(inner);
        return inside == 0 ? reach_of(outer) : kBlend;
      } else {
        OnPixels on{};
        Glimpse seen{};
        if (may_be_stored(plan)) {
          on = on_pixels<P>(plan.pixels, place, 2);
          seen = glimpse(plan, on, i);
        }
        return weigh<kFamilies>(plan, i, on, seen, place, loops, each);
      }
    }
  }
};

// P pixels of C channels, each channel's behind each other, or, if kLast, each pixel's.
template <class In, int P, int C, bool kLast>
struct PixelGroup {
  Vec<In, P> part[C];
  static constexpr int kSize = static_cast<int>(sizeof(In)), kPartBytes = P * kSize;
  static constexpr int kWords = kPartBytes < 4 ? 1 : kPartBytes / 4;  // of a part

  static FUSEDMIX_HD constexpr int element(int p, int c) { return kLast ? p * C + c : c * P + p; }

  FUSEDMIX_DEVICE void load(const char* from, int64_t channel_step) {
    FUSEDMIX_UNROLL
    for (int k = 0; k < C; ++k) part[k] = load_vector<In, P>(from + k * (kLast ? kPartBytes : channel_step));
  }

  FUSEDMIX_DEVICE uint32_t word(int k) const { return part[k / kWords].words[k % kWords]; }
  // The pixels from the last to the first.
  FUSEDMIX_DEVICE void mirror() {
    const PixelGroup old = *this;
    FUSEDMIX_UNROLL
    for (int k = 0; k < C * kWords; ++k) {
      // The four bytes of a word come from three words in a row at most.
      int from[4], first = C * kWords;
      FUSEDMIX_UNROLL
      for (int n = 0; n < 4; ++n) {
        const int e = (4 * k + n) / kSize, p = kLast ? e / C : e % P, c = kLast ? e % C : e / P;
        from[n] = element(P - 1 - p, c) * kSize + (4 * k + n) % kSize;
        first = from[n] / 4 < first ? from[n] / 4 : first;
      }
      uint32_t near = 0, far = 0;
      bool is_far = false;
      FUSEDMIX_UNROLL
      for (int n = 0; n < 4; ++n) {
        const int byte = from[n] - 4 * first;
        near |= static_cast<uint32_t>(byte < 8 ? byte : 0) << 4 * n;
        far |= static_cast<uint32_t>(byte < 8 ? n : byte - 4) << 4 * n;
        is_far = is_far || byte >= 8;
      }
      const int last = C * kWords - 1;
      uint32_t made = permuted(old.word(first), old.word(first + 1 < last ? first + 1 : last), near);
      if (is_far) made = permuted(made, old.word(first + 2 < last ? first + 2 : last), far);
      part[k / kWords].words[k % kWords] = made;
    }
  }

  // Two pixels of two groups, blended and normalised.
  static FUSEDMIX_DEVICE float finished(float w, const PixelGroup& own, const PixelGroup& lent, int p, int c, float scale,
                                        float shift) {
    const int e = element(p, c), k = e / P, l = e % P;
    if constexpr (kSize == 1) {  // the difference of bytes is exact, and so are weights of 0 and 1
      const float a = raised(own.part[k].words[l / 4], l % 4), b = raised(lent.part[k].words[l / 4], l % 4);
      return fma(fma(w, a - b, b - 0x1p23f), scale, shift);
    } else {
      return fma(blend<float>(w, to_compute(own.part[k].get(l)), to_compute(lent.part[k].get(l))), scale, shift);
    }
  }
};

template <class Out, int P>
FUSEDMIX_DEVICE void store_as(char* to, const float (&numbers)[P]) {
  constexpr int kEach = P * static_cast<int>(sizeof(Out)) < 16 ? P : 16 / static_cast<int>(sizeof(Out));
  FUSEDMIX_UNROLL
  for (int first = 0; first < P; first += kEach) {
    float some[kEach];
    FUSEDMIX_UNROLL
    for (int l = 0; l < kEach; ++l) some[l] = numbers[first + l];
    store_vector<Out, kEach>(to + first * static_cast<int>(sizeof(Out)), Vec<Out, kEach>::of(some));
  }
}
template <int P>
FUSEDMIX_DEVICE void store_numbers(ElementType type, char* to, const float (&numbers)[P]) {
  switch (static_cast<ElementType>(device::opaque(static_cast<int32_t>(type)))) {
    case ElementType::kFloat16: return store_as<Half>(to, numbers);
    case ElementType::kBFloat16: return store_as<BFloat16>(to, numbers);
    default: return store_as<float>(to, numbers);
  }
}

// Blocks that are to fit a multiprocessor.
template <int32_t kFamilies>
constexpr int kFinishBlocks = kFamilies == kAnySet ? 2 : 3;

// P pixels of C channels, three or one. kSrcLast, kDstLast: channels lie together in the batch that comes, and in the new one.
template <class In, int P, int C, int32_t kFamilies, bool kDraws, bool kSrcLast, bool kDstLast>
FUSEDMIX_WIDE_KERNEL(kEachThreads, kFinishBlocks<kFamilies>) finish_vectors_kernel(FUSEDMIX_ARGS(FinishingArgs, args)) {
  const Spot place = spot_of(args.tiling);
  if (!place.is_there) return;
  const uint32_t line = divide(place.column, args.groups), plane = C == 1 ? divide(line, args.rows) : 0;
  const auto y = static_cast<int32_t>(line - plane * args.rows.number);
  const auto x = static_cast<int32_t>((place.column - line * args.groups.number) * P);
  const auto first_channel = static_cast<int32_t>(plane);
  uint32_t partner = place.sample;
  PixelWeights<P, kFamilies> weights;
  Reach reach = kKeep;
  if constexpr (kFamilies == kAnySet) {
    FUSEDMIX_UNROLL
    for (int p = 0; p < P; ++p) weights.each[p] = 1.0f;
  }
  if (args.mixes) {
    const PlanView plan = view_of(args.plan);
    partner = partner_of(plan, place.sample, args.tiling.batch);
    reach = weights.find(plan, place.sample, y, x);
  }
  const Side own = side_of<kDraws>(args, place.sample), lent = side_of<kDraws>(args, partner);
  char* const to = args.dst + place.sample * args.to.sample + first_channel * args.to.channel + y * args.to.row + x * args.to.pixel;
  const int64_t to_step = kDstLast ? P * args.to.channel : args.to.channel;
  const auto store = [&](int k, const float (&numbers)[P]) { store_numbers(args.made, to + k * to_step, numbers); };
  if constexpr (kDraws) {
    if (is_touched(own, reach == kTake ? 0 : own.count, lent, reach == kKeep ? 0 : lent.count, y, x, P)) {
      return finish_one_by_one<In, P, C, kDstLast>(args, own, lent, weights, first_channel, y, x, store);
    }
  }
  using Group = PixelGroup<In, P, C, kSrcLast>;
  const auto load = [&](Group& group, const Side& side) {
    const int32_t column = kDraws && side.flip ? args.width - P - x : x;
    group.load(side.src + first_channel * args.from.channel + y * args.from.row + column * args.from.pixel, args.from.channel);
  };
  Group a, b;
  if (reach != kTake) load(a, own);
  if (reach != kKeep) load(b, lent);
  if (kDraws && own.flip && reach != kTake) a.mirror();
  if (kDraws && lent.flip && reach != kKeep) b.mirror();
  if (reach == kTake) a = b;
  if (reach == kKeep) b = a;
  float scale[C], shift[C];
  FUSEDMIX_UNROLL
  for (int c = 0; c < C; ++c) {
    scale[c] = device::load(args.affine + first_channel + c);
    shift[c] = device::load(args.affine + args.channels + first_channel + c);
  }
  FUSEDMIX_UNROLL
  for (int k = 0; k < C; ++k) {
    float numbers[P];
    FUSEDMIX_UNROLL
    for (int l = 0; l < P; ++l) {
      const int e = k * P + l, p = kDstLast ? e / C : l, c = kDstLast ? e % C : k;
      numbers[l] = Group::finished(weights(p), a, b, p, c, scale[c], shift[c]);
    }
    store(k, numbers);
  }
}

// ---- launches ----

struct FinishLaunch {
  const FinishingArgs& args;
  int64_t blocks;
  bool draws, src_last, dst_last;
  void* stream;

  template <class In, int P, int C, int32_t kFamilies, bool kDraws, bool kSrcLast, bool kDstLast>
  int start() const {
    return device::launch(finish_vectors_kernel<In, P, C, kFamilies, kDraws, kSrcLast, kDstLast>, blocks, kEachThreads, stream, args);
  }
};

// One channel, of images of any number of channels, by code for everything.
template <class In, int P>
int finish_planes(const FinishLaunch& l) {
  return l.start<In, P, 1, kAnySet, true, false, false>();
}

template <bool kDraws, bool kSrcLast, bool kDstLast>
int finish_set(const FinishLaunch& l) {
  const int32_t families = l.args.plan.view.families;
  if (within(families, kConstantSet)) return l.start<uint8_t, 16, 3, kConstantSet, kDraws, kSrcLast, kDstLast>();
  if (within(families, kBoxSet)) return l.start<uint8_t, 16, 3, kBoxSet, kDraws, kSrcLast, kDstLast>();
  return l.start<uint8_t, 16, 3, kAnySet, kDraws, kSrcLast, kDstLast>();
}
// Bytes of three channels. kDraws: something may have been drawn.
template <bool kDraws>
int finish_colours(const FinishLaunch& l) {
  if (l.src_last) return l.dst_last ? finish_set<kDraws, true, true>(l) : finish_set<kDraws, true, false>(l);
  return l.dst_last ? finish_set<kDraws, false, true>(l) : finish_set<kDraws, false, false>(l);
}

}  // namespace fusedmix::cuda
