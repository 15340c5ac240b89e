// Counter-based random numbers: Philox4x32-10 and what is made of its words. The mirror of fusedmix/philox.py.
//
// A draw is a pure function of (seed, logical index, stream, call). Source: Salmon, Moraes, Dror, Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include "platform.h"

namespace fusedmix {

// What a counter is used for: the third word of the counter, part of what a seed means. Never renumber.
enum Stream : uint32_t {
  kStreamLam = 0,
  kStreamCentre = 1,
  kStreamChoice = 2,
  kStreamApply = 3,
  kStreamPartner = 4,
  kStreamClass = 5,
  kStreamShift = 6,
  kStreamNoise = 7,
  kStreamSwap = 8,
  kStreamSides = 9,
  kStreamAspect = 10,
  kStreamRatio = 11,
  kStreamCells = 12,
  kStreamOwn = 13,
  kStreamFlip = 14,
  kStreamErase = 15,
  kStreamFill = 16,
  kStreamCropLam = 20,
  kStreamCropCentre = 21,
  kStreamSpectrum = 27,
  kStreamLaw = 28,
  kStreamPaste = 30,
  kStreamCut = 31,
  kStreamCrop = 32,
  kStreamTerms = 34,
  kStreamRanks = 35,
  kStreamCutout = 37,
  kStreamGridmask = 38,
  kStreamBands = 44,
};

struct Words {
  uint32_t a, b, c, d;
};

FUSEDMIX_HD Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = uint64_t{0xD2511F53u} * counter.a;
    const uint64_t high = uint64_t{0xCD9E8D57u} * counter.c;
    counter = {static_cast<uint32_t>(high >> 32) ^ counter.b ^ key0, static_cast<uint32_t>(high),
               static_cast<uint32_t>(low >> 32) ^ counter.d ^ key1, static_cast<uint32_t>(low)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The four words at a logical index.
FUSEDMIX_HD Words words(uint64_t seed, uint64_t index, Stream stream, uint32_t call = 0) {
  return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream, call},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Uniform in (0, 1), never 0 or 1 and symmetric about 1/2, from 52 bits.
FUSEDMIX_HD double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t{high} << 20) | (low >> 12);
  return static_cast<double>(2 * bits + 1) * 0x1p-53;
}

// Integer uniform in 0..n-1 by multiply-shift (Lemire 2019).
FUSEDMIX_HD int64_t below(uint32_t word, int64_t n) {
  return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(n)) >> 32);
}

// 63 bits: equal keys, for which order decides, once in 2^63 pairs.
FUSEDMIX_HD int64_t sort_key(uint32_t high, uint32_t low) {
  return static_cast<int64_t>((uint64_t{high} << 31) | (low >> 1));
}

FUSEDMIX_HD int64_t partner_key(uint64_t seed, int64_t index) {
  const Words w = words(seed, static_cast<uint64_t>(index), kStreamPartner);
  return sort_key(w.a, w.b);
}

// Beta(alpha, alpha) for every alpha > 0 without rejection: Ulrich's polar formula for alpha + 1, t = 2 Beta - 1, and Stuart's boost
// down to alpha, in logarithms (fusedmix/philox.py, symmetric_beta, has the derivation and the sources).
FUSEDMIX_HD double beta_polar(double log_u, double v, double alpha) {
  return sqrt(-expm1((2.0 / (2.0 * alpha + 1.0)) * log_u)) * cos_turns(v);
}
FUSEDMIX_HD double beta_of(double log1p_t, double log1p_minus_t, double log_boost_u, double log_boost_v, double alpha) {
  const double logit = log1p_t - log1p_minus_t + (log_boost_u - log_boost_v) / alpha;
  return 1.0 / (1.0 + exp(-logit));
}
FUSEDMIX_HD double symmetric_beta(uint64_t seed, uint64_t index, double alpha, Stream stream = kStreamLam) {
  const Words first = words(seed, index, stream, 0);
  const Words second = words(seed, index, stream, 1);
  const double t = beta_polar(log(uniform(first.a, first.b)), uniform(first.c, first.d), alpha);
  return beta_of(log1p(t), log1p(-t), log(uniform(second.a, second.b)), log(uniform(second.c, second.d)), alpha);
}

}  // namespace fusedmix
