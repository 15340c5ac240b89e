// Flips, holes and normalisation of a batch that is finished. The meaning is fusedmix/backends/finished.py's, that of the draws
// fusedmix/erasing.py's.
#pragma once

#include "blend.h"
#include "fourier.h"

namespace fusedmix {

// The words of a record before its holes, which are four words each.
enum FinishWord : int32_t { kWordFlip = 0, kWordHoles = 1, kWordNoiseLow = 2, kWordNoiseHigh = 3, kFinishHead = 4 };
constexpr int32_t kMostHoles = 16;
constexpr int32_t kEraseAttempts = 10;

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
  const Pair pair = channel % 4 < 2 ? normals(w.a, w.b) : normals(w.c, w.d);
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

// Writes kFinishHead + 4·most words.
FUSEDMIX_HD void flip_and_holes(const FinishDraw& draw, uint64_t seed, uint64_t index, int64_t height, int64_t width, int32_t* record) {
  const auto unit = [](uint32_t word) { return static_cast<double>(2 * uint64_t{word} + 1) * 0x1p-33; };
  const auto most = static_cast<int32_t>(draw.most);
  for (int32_t k = 0; k < kFinishHead + 4 * most; ++k) record[k] = 0;
  if (draw.flip > 0.0) {
    const Words w = words(seed, index, kStreamFlip);
    record[kWordFlip] = uniform(w.a, w.b) < draw.flip ? 1 : 0;
  }
  if (most == 0) return;
  const Words first = words(seed, index, kStreamErase, 0), noise = words(seed, index, kStreamErase, 1);
  record[kWordNoiseLow] = static_cast<int32_t>(noise.a);
  record[kWordNoiseHigh] = static_cast<int32_t>(noise.b);
  if (!(uniform(first.a, first.b) < draw.erase)) return;
  const auto least = static_cast<int32_t>(draw.least);
  const int32_t count = least + static_cast<int32_t>(below(first.c, most - least + 1));
  record[kWordHoles] = count;
  for (int32_t k = 0; k < count; ++k) {
    for (int32_t t = 0; t < kEraseAttempts; ++t) {
      const Words w = words(seed, index, kStreamErase, static_cast<uint32_t>(2 + k * kEraseAttempts + t));
      const double pixels = static_cast<double>(height * width);
      const double area = (draw.area_low + (draw.area_high - draw.area_low) * unit(w.a)) * pixels / static_cast<double>(count);
      const double ratio = draw.ratio_low * static_cast<double>(static_cast<float>(exp(unit(w.b) * draw.ratio_log)));
      const int64_t h = nearest_root(fmin(area * ratio, 0x1p50)), v = nearest_root(fmin(area / ratio, 0x1p50));
      if (h >= height || v >= width) continue;
      int32_t* hole = record + kFinishHead + 4 * k;
      hole[0] = static_cast<int32_t>(below(w.c, height - h + 1));
      hole[1] = static_cast<int32_t>(below(w.d, width - v + 1));
      hole[2] = static_cast<int32_t>(h);
      hole[3] = static_cast<int32_t>(v);
      break;
    }
  }
}

}  // namespace fusedmix
