// Flips, holes and normalisation of a batch that is finished. The meaning is fusedmix/backends/finished.py's, that of the draws
// fusedmix/erasing.py's.
#pragma once

#include "blend.h"
#include "fourier.h"

namespace fusedmix {

// The words of a record before its holes, which are four words each.
enum FinishWord : int32_t { kWordFlip = 0, kWordHoles = 1, kWordNoiseLow = 2, kWordNoiseHigh = 3, kFinishHead = 4 };
constexpr int32_t kMostHoles = 16;
// The words of a record that has room for so many holes, and the other way round.
FUSEDMIX_HD int64_t finish_words(int64_t holes) { return kFinishHead + 4 * holes; }
FUSEDMIX_HD int64_t holes_of_words(int64_t words) { return (words - kFinishHead) / 4; }
constexpr int32_t kEraseAttempts = 10;

// Four of the eight bytes of two words, each by the four bits of the selector that has its number.
FUSEDMIX_HD uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  uint32_t word = 0;
  for (int n = 0; n < 4; ++n) word |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * n & 7u) & 0xFFu) << 8 * n;
  return word;
#endif
}

// What holes are filled with: a number for each channel, or standard normal numbers.
enum Fill : int32_t { kFillNumber = 0, kFillEachHole = 1, kFillEachPixel = 2 };

struct Hole {
  int32_t top, left, height, width;
  // Without a sign: of a record that no sampler makes, differences may not fit.
  FUSEDMIX_HD static bool is_in(int32_t c, int32_t first, int32_t side) {
    return static_cast<uint32_t>(c) - static_cast<uint32_t>(first) < static_cast<uint32_t>(side);
  }
  FUSEDMIX_HD bool has_row(int32_t y) const { return is_in(y, top, height); }
  FUSEDMIX_HD bool has(int32_t y, int32_t x) const { return has_row(y) & is_in(x, left, width); }
};

// What was drawn for a sample; `words` may be null: nothing was.
struct FinishRecord {
  const int32_t* words;
  FUSEDMIX_HD bool flip() const { return words != nullptr && words[kWordFlip] != 0; }
  FUSEDMIX_HD int32_t holes() const { return words == nullptr ? 0 : words[kWordHoles]; }
  FUSEDMIX_HD uint64_t seed() const {
    return static_cast<uint32_t>(words[kWordNoiseLow]) | static_cast<uint64_t>(static_cast<uint32_t>(words[kWordNoiseHigh])) << 32;
  }
  FUSEDMIX_HD Hole hole(int32_t k) const {
    const int32_t* at = words + kFinishHead + 4 * k;
    return {at[0], at[1], at[2], at[3]};
  }
};

// The normal fill of a channel: of a hole by its number, or of a pixel by its place in row-major order.
FUSEDMIX_HD float normal_fill(const Words& w, int64_t channel) {
  const bool first = channel % 4 < 2;
  const Pair pair = normals(first ? w.a : w.c, first ? w.b : w.d);
  return channel % 2 == 0 ? pair.a : pair.b;
}
FUSEDMIX_HD Words fill_words(uint64_t seed, uint64_t index, int64_t channel) {
  return words(seed, index, kStreamFill, static_cast<uint32_t>(channel / 4));
}

// The mix of two bytes, normalised.
FUSEDMIX_HD float finish_bytes(float w, uint8_t a, uint8_t b, float scale, float shift) {
  const float difference = static_cast<float>(static_cast<int32_t>(a) - static_cast<int32_t>(b));
  return fma(fma(w, difference, static_cast<float>(b)), scale, shift);
}

// What is drawn for each sample: fusedmix/erasing.py, numbers().
struct FinishDraw {
  double flip, erase, area_low, area_high, ratio_low, ratio_log, least, most;
};
constexpr int kFinishDrawWidth = sizeof(FinishDraw) / sizeof(double);

// The integer nearest to the root of x, from 0 to 2^50, whatever the last bit of sqrt() is; of h + 1/2 it is h.
FUSEDMIX_HD int64_t nearest_root(double x) {
  double h = floor(sqrt(x) + 0.5);
  if (h > 0.0 && h * h - h + 0.25 >= x) h -= 1.0;
  if (h * h + h + 0.25 < x) h += 1.0;
  return static_cast<int64_t>(h);
}

// The record of a sample, word by word: write(k, word) for each of its finish_words(draw.most).
template <class Write>
FUSEDMIX_HD void flip_and_holes(const FinishDraw& draw, uint64_t seed, uint64_t index, int64_t height, int64_t width,
                                const Write& write) {
  const auto unit = [](uint32_t word) { return static_cast<double>(2 * uint64_t{word} + 1) * 0x1p-33; };
  const auto least = static_cast<int32_t>(draw.least), most = static_cast<int32_t>(draw.most);
  const Words flip = words(seed, index, kStreamFlip);
  const Words first = words(seed, index, kStreamErase, 0), noise = words(seed, index, kStreamErase, 1);
  const bool erased = most > 0 && uniform(first.a, first.b) < draw.erase;
  const int32_t count = erased ? least + static_cast<int32_t>(below(first.c, most - least + 1)) : 0;
  write(kWordFlip, uniform(flip.a, flip.b) < draw.flip ? 1 : 0);
  write(kWordHoles, count);
  write(kWordNoiseLow, most > 0 ? static_cast<int32_t>(noise.a) : 0);
  write(kWordNoiseHigh, most > 0 ? static_cast<int32_t>(noise.b) : 0);
  FUSEDMIX_NO_UNROLL
  for (int32_t k = 0; k < most; ++k) {
    Hole hole{0, 0, 0, 0};
    FUSEDMIX_NO_UNROLL
    for (int32_t t = 0; t < kEraseAttempts && k < count; ++t) {
      const Words w = words(seed, index, kStreamErase, static_cast<uint32_t>(2 + k * kEraseAttempts + t));
      const double pixels = static_cast<double>(height * width);
      const double area = (draw.area_low + (draw.area_high - draw.area_low) * unit(w.a)) * pixels / static_cast<double>(count);
      const double ratio = draw.ratio_low * static_cast<double>(static_cast<float>(exp(unit(w.b) * draw.ratio_log)));
      const int64_t h = nearest_root(fmin(area * ratio, 0x1p50)), v = nearest_root(fmin(area / ratio, 0x1p50));
      if (h >= height || v >= width) continue;
      hole = {static_cast<int32_t>(below(w.c, height - h + 1)), static_cast<int32_t>(below(w.d, width - v + 1)), static_cast<int32_t>(h),
              static_cast<int32_t>(v)};
      break;
    }
    const int32_t at = kFinishHead + 4 * k;
    write(at, hole.top), write(at + 1, hole.left), write(at + 2, hole.height), write(at + 3, hole.width);
  }
}

}  // namespace fusedmix
