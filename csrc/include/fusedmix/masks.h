// All families of masks: the only switch over kinds, and the only one over methods.
#pragma once

#include <type_traits>

#include "masks/box.h"
#include "masks/constant.h"
#include "masks/fourier.h"
#include "masks/gaussian.h"
#include "masks/grid.h"
#include "masks/smooth.h"

namespace fusedmix {

// A kind or a method that there is not, which only the host can refuse: NaN.
struct Unknown : Family {
  FUSEDMIX_HD static int32_t may_hold(const MethodRow&) { return 0; }
  FUSEDMIX_HD static Made make(const MethodRow&, float, const Draw&, const Extent&) { return {{-1, {}}, NAN}; }
  FUSEDMIX_HD int32_t families() const { return 0; }
  FUSEDMIX_HD Uniform along(const int32_t*, int32_t) const { return {NAN}; }
};

// f of the record as its family.
template <class F>
FUSEDMIX_HD auto of_kind(const Record& record, const F& f) {
  switch (record.kind) {
    case kConstant: return f(bit_cast<Constant>(record));
    case kBox: return f(bit_cast<Box>(record));
    case kGaussian: case kGaussianComplement: return f(bit_cast<Gaussian>(record));
    case kFourierReleased: case kFourier: return f(bit_cast<Fourier>(record));
    case kSmoothDisc: case kSmoothSquare: return f(bit_cast<Smooth>(record));
    case kGrid: case kLargeGrid: return f(bit_cast<Grid>(record));
    default: return f(Unknown{});
  }
}

// f of the record as its family, which is in a set that is known when a kernel is compiled: the kernel has the code of no other.
template <int32_t kFamilies, class F>
FUSEDMIX_HD auto of_kind_in(const Record& record, const F& f) {
  if constexpr (kFamilies == kConstants) {
    return f(bit_cast<Constant>(record));
  } else if constexpr ((kFamilies & ~(kConstants | kCuts | kBoxes)) == 0) {
    return f(bit_cast<Box>(record));  // a constant is an empty box: its record says the same
  } else if constexpr (kFamilies == (kConstants | kGaussians)) {
    return record.kind == kConstant ? f(bit_cast<Constant>(record)) : f(bit_cast<Gaussian>(record));
  } else if constexpr (kFamilies == (kConstants | kCuts | kBoxes | kGaussians)) {
    if (record.kind == kGaussian || record.kind == kGaussianComplement) return f(bit_cast<Gaussian>(record));
    Box box = bit_cast<Box>(record);
    box.inner = record.kind == kConstant ? box.outer : box.inner;  // words that it does not use may be anything
    return f(box);
  } else if constexpr (kFamilies == (kStored | kLevels)) {
    return record.kind == kConstant ? f(bit_cast<Constant>(record)) : f(bit_cast<Fourier>(record));
  } else {
    return of_kind(record, f);
  }
}

// f of the family of a method, of which nothing is made yet.
template <class F>
FUSEDMIX_HD auto of_method(double method, const F& f) {
  switch (static_cast<int32_t>(method)) {
    case kMixUp: case kSamplePairing: return f(Constant{});
    case kCutMix: case kHMixReleased: case kHMixPaper: return f(Box{});
    case kGMixReleased: case kGMixPaper: return f(Gaussian{});
    case kFMixReleased: case kFMixPaper: return f(Fourier{});
    case kSmoothMixDisc: case kSmoothMixSquare: return f(Smooth{});
    case kGridMix: return f(Grid{});
    default: return f(Unknown{});
  }
}

// Whether a method is of a family.
template <class F>
FUSEDMIX_HD bool makes(double method) {
  return of_method(method, [](const auto& family) { return std::is_same_v<std::decay_t<decltype(family)>, F>; });
}

// The mask of a draw; all of the sample where nothing is applied. Where is_summed() its weight is missing.
FUSEDMIX_HD Made make_mask(const MethodRow& row, float lam, const Draw& drawn, const Extent& extent) {
  return of_method(drawn.applied ? row.method : static_cast<double>(kMixUp),
                   [&](const auto& family) { return family.make(row, lam, drawn, extent); });
}
// λ of a plan: where the sides of a box are drawn it follows from them.
FUSEDMIX_HD float realised_lam(const MethodRow& row, const Draw& drawn, float lam, const Made& made) {
  return drawn.applied && row.side_high > 0.0 ? static_cast<float>(made.weight) : lam;
}
// The weight of a large grid follows when its cells are chosen.
FUSEDMIX_HD bool is_summed(const Record& record) {
  return of_kind(record, [](const auto& mask) { return mask.kHasSums && (mask.families() & kLargeCells) == 0; });
}
FUSEDMIX_HD Sums sums_of(const Record& record, const Extent& extent) {
  return of_kind(record, [&](const auto& mask) {
    Sums sums{};
    const int64_t rows = mask.rows(extent);
    for (int64_t row = 0; row < rows; ++row) add_to(sums, mask.part_of(row), mask.row_sum(extent, row, 0, 1));
    return sums;
  });
}
FUSEDMIX_HD double summed_weight(const Record& record, const Sums& sums, const Extent& extent) {
  return of_kind(record, [&](const auto& mask) { return mask.weight(sums, extent); });
}

// Whether the pixels of a mask are stored, and whether those of what a method makes are. (Of a large grid the cells are stored.)
FUSEDMIX_HD bool is_stored(const Record& record) {
  return of_kind(record, [](const auto& mask) { return mask.kHasPixels; });
}
FUSEDMIX_HD bool is_stored_method(double method) {
  return of_method(method, [](const auto& family) { return family.kHasPixels; });
}

FUSEDMIX_HD double stored_bits(const Record& record) {
  return of_kind(record, [](const auto& mask) { return mask.stored_bits(); });
}

// Whether a set of families holds the mask.
FUSEDMIX_HD bool is_of(const Record& record, int32_t families) {
  return of_kind(record, [&](const auto& mask) { return (mask.families() & families) != 0; }) ||
         (record.kind == kConstant && bit_cast<Constant>(record).value == 1.0f);
}

FUSEDMIX_HD Reach reach(const Record& record, const Stretch& stretch) {
  return of_kind(record, [&](const auto& mask) { return mask.along(stretch.at, stretch.axis).reach(stretch.first, stretch.last); });
}

// A row of the mask of sample i of a plan, whose pixels a large grid needs; `load` reads memory.
template <class Mask, class Load>
FUSEDMIX_HD auto row_of(const Mask& mask, const int32_t* at, int32_t axis, const PlanView&, int64_t, const Load&) {
  return mask.along(at, axis);
}
template <class Load>
FUSEDMIX_HD auto row_of(const Grid& mask, const int32_t* at, int32_t axis, const PlanView& plan, int64_t i, const Load& load) {
  return mask.along(at, axis, plan, i, load);
}

}  // namespace fusedmix
