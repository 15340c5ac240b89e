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
  kGridMix = 11,
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
  kGrid = 8,
  kLargeGrid = 9,  // of more cells than a record has bits
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
  kCells = 128,  // of a grid, each 1 or 0
  kLargeCells = 256,  // the same, of more than a record has bits: a bit for each cell is stored
};
constexpr int32_t kAllFamilies = kConstants | kCuts | kBoxes | kGaussians | kStored | kLevels | kSmooth | kCells | kLargeCells;

enum Pairing : int32_t { kRoll = 0, kFlip = 1, kRandom = 2, kCrossClass = 3, kSameClass = 4 };
enum Per : int32_t { kPerBatch = 0, kPerPair = 1, kPerSample = 2 };

// What a method draws on the host after λ and the partners, in this order.
enum Drawn : int32_t {
  kDrawsCentre = 1,
  kDrawsCoin = 2,
  kDrawsNoise = 4,
  kDrawsPlace = 8,
  kDrawsSides = 16,
  kDrawsAspect = 32,
  kDrawsRatio = 64,  // this one after λ, before the partners
};

// The places of the numbers of a draw that was made on the host.
enum Number : int32_t {
  kNumberChoice = 0,
  kNumberApplied = 1,
  kNumberLam = 2,
  kNumberCentre = 3,  // z, y, x
  kNumberCoin = 6,
  kNumberNoise = 7,
  kNumberPlace = 8,  // z, y, x
  kNumberSides = 11,  // z, y, x
  kNumberAspect = 14,
  kNumberRatio = 15,
};
constexpr int kDrawnWidth = 16;

// How a crop is read in a box of another size: the nearest pixel, or between two of them along each axis, where either the edges of
// the outermost pixels of both lie at one place, or their centres.
enum class Resize : int32_t { kNearest = 0, kLinear = 1, kLinearCorners = 2 };

// One row of a spec: the columns of fusedmix/methods.py, in their order.
struct MethodRow {
  double method, weight, p, alpha, lam, lam_min, lam_max, ratio, decay, soft, cutoff, reformulate, draws, families,
      edge, inside, side_low, side_high, aspect_low, aspect_high, ratio_alpha, cells_z, cells_y, cells_x,
      fold;
};

}  // namespace fusedmix
