// What kernels that finish a batch are told, and what they find of a sample before they touch its pixels.
#pragma once

#include "tiling.h"
#include "vector.h"

namespace fusedmix::cuda {

// Bytes from one to the next.
struct Steps {
  int64_t sample, channel, row, pixel;
};

struct FinishingArgs {
  const char* src;
  char* dst;
  Steps from, to;
  ElementType type, made;
  Tiling tiling;  // of vectors of pixels; where a thread has one channel, of all channels
  int32_t channels, width;
  Divisor groups, rows;  // vectors in a row, rows in a channel
  const float* affine;
  int32_t draw_words;  // 0: nothing was drawn
  Fill fill;
  bool mixes;  // else each sample is by itself, and the plan has no masks
  LaunchPlan plan;
};
static_assert(sizeof(FinishingArgs) <= 4096, "kernel arguments");

// A sample as it comes, and what was drawn for it.
struct Side {
  const char* src;
  const Hole* holes;
  int32_t count;  // of them
  bool flip;
  uint64_t seed;
};

template <bool kDraws>
FUSEDMIX_DEVICE Side side_of(const FinishingArgs& args, uint32_t i) {
  Side side{args.src + i * args.from.sample, nullptr, 0, false, 0};
  if (kDraws && args.draw_words > 0) {
    using Raw = device::RawOf<16>::type;  // four words
    const int32_t* words = part_of(args.plan, args.plan.draws, args.plan.offset.draws) + static_cast<int64_t>(i) * args.draw_words;
    struct Head {
      int32_t flip, holes;
      uint32_t low, high;
    };
    const auto head = bit_cast<Head>(device::load(reinterpret_cast<const Raw*>(words)));
    const auto most = static_cast<int32_t>(holes_of_words(args.draw_words));
    side.flip = head.flip != 0;
    side.count = head.holes < 0 ? 0 : (head.holes < most ? head.holes : most);  // only the host can refuse what is more
    side.seed = head.low | static_cast<uint64_t>(head.high) << 32;
    side.holes = reinterpret_cast<const Hole*>(words + kFinishHead);
  }
  return side;
}

FUSEDMIX_DEVICE Hole load_hole(const Hole* hole) {
  return bit_cast<Hole>(device::load(reinterpret_cast<const device::RawOf<16>::type*>(hole)));
}

// Whether any of n pixels from x on is in one of the first `a` holes of a sample, or of the first `b` of its partner.
FUSEDMIX_DEVICE bool is_touched(const Side& own, int32_t a, const Side& lent, int32_t b, int32_t y, int32_t x, int32_t n) {
  bool touched = false;
  FUSEDMIX_NO_UNROLL
  for (int32_t k = 0; k < a + b; ++k) {
    const Hole hole = load_hole(k < a ? own.holes + k : lent.holes + (k - a));
    const int64_t left = hole.left;
    touched |= hole.has_row(y) & (left < x + n) & (left + hole.width > x);
  }
  return touched;
}

}  // namespace fusedmix::cuda
