// The numbers that every language of the package shares: those of fusedmix/methods.py, against which tests/test_numbers.py
// holds them.
#pragma once

#include <cstdint>

namespace fusedmix {

enum Method : int32_t {
  kMixUp = 0,
  kCutMix = 1,
  kHMixReleased = 2,
  kHMixPaper = 3,
  kGMixReleased = 4,
  kGMixPaper = 5,
  kSamplePairing = 6,
  kFMixReleased = 7,
  kFMixPaper = 8,
  kSmoothMixDisc = 9,
  kSmoothMixSquare = 10,
};

enum Kind : int32_t {
  kConstant = 0,
  kBox = 1,
  kGaussian = 2,
  kGaussianComplement = 3,
  kFourierReleased = 4,
  kFourier = 5,
  kSmoothDisc = 6,
  kSmoothSquare = 7,
};

// Which masks a call may hold. Every set also holds the mask that is 1 everywhere.
enum Families : int32_t {
  kConstants = 1,
  kCuts = 2,   // boxes, 1 outside and 0 inside
  kBoxes = 4,  // boxes of any two values
  kGaussians = 8,
  kStored = 16,  // a bit for each pixel
  kLevels = 32,  // a level for each pixel
  kSmooth = 64,  // discs and squares with a soft edge
};
constexpr int32_t kAllFamilies = kConstants | kCuts | kBoxes | kGaussians | kStored | kLevels | kSmooth;

enum Pairing : int32_t { kRoll = 0, kFlip = 1, kRandom = 2, kCrossClass = 3, kSameClass = 4 };
enum Per : int32_t { kPerBatch = 0, kPerPair = 1, kPerSample = 2 };

// What a method draws on the host after λ and the partners, in this order.
enum Drawn : int32_t { kDrawsCentre = 1, kDrawsCoin = 2, kDrawsNoise = 4 };

// The places of the numbers of a draw that was made on the host.
enum Number : int32_t {
  kNumberChoice = 0,
  kNumberApplied = 1,
  kNumberLam = 2,
  kNumberCentre = 3,  // z, y, x
  kNumberCoin = 6,
  kNumberNoise = 7,
};
constexpr int kDrawnWidth = 8;

// One row of a spec: the columns of fusedmix/methods.py, in their order.
struct MethodRow {
  double method, weight, p, alpha, lam, lam_min, lam_max, ratio, decay, soft, cutoff, reformulate, draws, families,
      edge;
};

}  // namespace fusedmix
