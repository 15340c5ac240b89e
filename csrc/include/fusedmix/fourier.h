// The noise of FMix's grey images, frequency by frequency. The definition is fusedmix/fourier.py's.
//
// In float32, by arithmetic that is the same on every machine: no library's logarithm or cosine, which differ in the last
// bit, and which compilers do not vectorise.
#pragma once

#include "element.h"
#include "philox.h"

namespace fusedmix {

// -2·ln(u) of u = m·2^-24, m odd and below 2^24. With u = 2^e·f, f in [√½, √2), and s = (f-1)/(f+1):
// ln f = 2·(s + s³/3 + s⁵/5 + ...), |s| < .172, of which the first term left out is below 1e-9.
FUSEDMIX_HD float minus_two_log(uint32_t m) {
  const float u = static_cast<float>(m) * 0x1p-24f;
  const uint32_t bits = bit_cast<uint32_t>(u);
  const uint32_t shifted = bits - 0x3f3504f3u;  // √½
  const auto exponent = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float f = bit_cast<float>((shifted & 0x007fffffu) + 0x3f3504f3u);
  const float s = (f - 1.0f) / (f + 1.0f), z = s * s;
  const float series = fma(z, fma(z, fma(z, fma(z, 1.0f / 9.0f, 1.0f / 7.0f), 1.0f / 5.0f), 1.0f / 3.0f), 1.0f);
  return -2.0f * fma(exponent, 0.69314718f, 2.0f * s * series);
}

struct Pair {
  float a, b;
};

// (cos, sin) of t·2^-24 turns: the nearest quarter turn, and Taylor's series within π/4 of it, where the first term left out
// is below 2e-9.
FUSEDMIX_HD Pair cos_sin(uint32_t t) {
  const uint32_t quarter = (t + (1u << 21)) >> 22;
  const float x = static_cast<float>(static_cast<int32_t>(t) - static_cast<int32_t>(quarter << 22)) * (6.2831853f * 0x1p-24f);
  const float z = x * x;
  const float sine = x * fma(z, fma(z, fma(z, fma(z, 1.0f / 362880.0f, -1.0f / 5040.0f), 1.0f / 120.0f), -1.0f / 6.0f), 1.0f);
  const float cosine =
      fma(z, fma(z, fma(z, fma(z, fma(z, -1.0f / 3628800.0f, 1.0f / 40320.0f), -1.0f / 720.0f), 1.0f / 24.0f), -0.5f), 1.0f);
  const float c = (quarter & 1u) != 0 ? sine : cosine, s = (quarter & 1u) != 0 ? cosine : sine;
  return {((quarter + 1u) & 2u) != 0 ? -c : c, (quarter & 2u) != 0 ? -s : s};
}

// Two independent standard normals (Box, Muller 1958) of two words.
FUSEDMIX_HD Pair normals(uint32_t high, uint32_t low) {
  const float radius = sqrtf(minus_two_log(2 * (high >> 9) + 1));
  const Pair angle = cos_sin(low >> 8);
  return {radius * angle.a, radius * angle.b};
}

// The call of Philox that has the noise of the frequencies (kz, ky, kx) and (kz, -ky, kx): words 0 and 1, and words 2 and 3.
FUSEDMIX_HD uint32_t noise_call(int ndim, int64_t kz, int64_t ky, int64_t kx) {
  const int x_bits = ndim == 2 ? 16 : 10, y_bits = ndim == 2 ? 16 : 10;
  if (ndim == 1) return static_cast<uint32_t>(kx);
  const int64_t depth = kz > 0 ? 2 * kz - 1 : -2 * kz, height = ky < 0 ? -ky : ky;
  const auto call = static_cast<uint32_t>(kx) + (static_cast<uint32_t>(height) << x_bits);
  return ndim == 2 ? call : call + (static_cast<uint32_t>(depth) << (x_bits + y_bits));
}

FUSEDMIX_HD Pair noise(uint64_t seed, uint64_t index, int ndim, int64_t kz, int64_t ky, int64_t kx) {
  const Words w = words(seed, index, kStreamNoise, noise_call(ndim, kz, ky, kx));
  return ky < 0 ? normals(w.c, w.d) : normals(w.a, w.b);
}

// Which frequencies an image has, its variant and its amplitudes: the same for all masks of a size.
struct Spectrum {
  bool released;
  int32_t ndim;
  int64_t side[3];       // (z, y, x)
  int64_t low[3];        // the lowest frequency along each axis
  int64_t count[3];      // how many there are
  double decay;
};

// `cutoff` in cycles along the longest side; infinite: all there are.
FUSEDMIX_HD Spectrum spectrum_of(bool released, int ndim, const int64_t* side, double decay, double cutoff) {
  Spectrum s{released, ndim, {side[0], side[1], side[2]}, {0, 0, 0}, {1, 1, 1}, decay};
  int64_t longest = 1;
  for (int axis = 3 - ndim; axis < 3; ++axis) longest = side[axis] > longest ? side[axis] : longest;
  for (int axis = 3 - ndim; axis < 3; ++axis) {
    const int64_t n = side[axis];
    if (released) {
      // The array's next axis lies along this one; of its last axis, half and its own two numbers.
      const int64_t next = axis == 2 ? 0 : side[axis + 1];
      const int64_t entries = axis == 2 ? 2 : (axis == 1 ? next / 2 + 1 + next % 2 : next);
      const int64_t most = axis == 2 ? n / 2 + 1 : n;
      s.count[axis] = entries < most ? entries : most;
    } else {
      const auto wanted = cutoff < static_cast<double>(longest)
                              ? static_cast<int64_t>(cutoff * static_cast<double>(n) / static_cast<double>(longest))
                              : n;
      const int64_t most = wanted < n / 2 ? wanted : n / 2;
      const int64_t below = most < (n - 1) / 2 ? most : (n - 1) / 2;
      s.low[axis] = axis == 2 ? 0 : -below;
      s.count[axis] = most - s.low[axis] + 1;
    }
  }
  return s;
}

// The standard deviations of a_k and b_k, that of the slowest wave being one.
struct Deviation {
  double a, b;
};
FUSEDMIX_HD Deviation deviation(const Spectrum& s, int64_t kz, int64_t ky, int64_t kx) {
  // An absent axis has a side of 1 and the frequency 0, which adds nothing.
  const int64_t k[3] = {kz, ky, kx};
  int64_t longest = 1;
  for (int axis = 0; axis < 3; ++axis) longest = s.side[axis] > longest ? s.side[axis] : longest;
  double square = 0.0, more = 0.0;
  if (s.released) {
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t n = s.side[axis + 1], entry = k[axis] % n, signed_entry = entry < (n + 1) / 2 ? entry : entry - n;
      const double f = static_cast<double>(signed_entry) / static_cast<double>(n);
      square += f * f;
    }
    const auto first = static_cast<double>(s.ndim == 3 ? s.side[0] : (s.ndim == 2 ? s.side[1] : s.side[2]));
    more = 1.0 / (first * first);
  } else {
    for (int axis = 0; axis < 3; ++axis) {
      const double f = static_cast<double>(k[axis]) / static_cast<double>(s.side[axis]);
      square += f * f;
    }
  }
  const bool doubled = kx != 0 && 2 * kx != s.side[2];
  const double factor = !doubled ? 1.0 : (s.released ? 2.0 : sqrt(2.0));
  const auto scale = static_cast<double>(longest);
  return {factor * pow(fmax(sqrt(square) * scale, 1.0), -s.decay), factor * pow(fmax(sqrt(square + more) * scale, 1.0), -s.decay)};
}

// By how much a pixel of a grey image that is made in float32 may be off, in shares of Σ|a_k| + |b_k|, whatever the order of
// the sums and whether products and sums are rounded as one (fma) or each.
//
// Backends add in orders of their own, so their images differ in the last bits, and pixels that are closer to each other
// than that may change places. A mask can differ by no more: let ε be this share of the sum, and G the exact image. A pixel's
// rank is at least the number of pixels above G + 2ε and less than the number of those at or above G - 2ε, in every backend,
// and its level between those of these two ranks. (The edge of a soft mask gives each rank a level of its own, so there many
// pixels show it: at 512x300 one in some hundred. A hard mask shows it at its edge only.)
//
// With u = 2^-24, n_z, n_y, n_x the numbers of |k| along the axes, and by Cauchy and Schwarz |a cos θ| + |b sin θ| etc. never
// above |a| + |b|, each term of the sum has met these roundings, each of u at most, when it has become a part of its pixel:
//   3            the deviation, its product with the noise, the sum with that of -ky
//   2·n_z + 3    along z: two products and two sums a frequency at most; cos and sin are within u/2 each
//   2·n_y + 4    along y: a product and a sum, the sums of parts, cos and sin, and the sum of the even and the odd part
//   2·n_x + 3    along x: a product and a sum, cos and sin, and the sum of the even and the odd part
// and what is left of 16 is more than the terms of second order.
FUSEDMIX_HD double grey_error(const Spectrum& s) {
  const int64_t frequencies = s.count[0] + (s.low[1] + s.count[1]) + s.count[2];
  return static_cast<double>(2 * frequencies + 16) * 0x1p-24;
}

}  // namespace fusedmix
