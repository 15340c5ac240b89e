// What mixing means, written down once more: plain loops in float64 over single elements, sharing nothing with csrc/include
// but the names of the kinds.
#pragma once

#include <cmath>

#include "batch.h"

namespace fusedmix::test {

// A number rounded to an element type, to nearest even.
inline double round_to(ElementType type, double value) {
  if (type == ElementType::kFloat64 || !std::isfinite(value)) return value;
  if (is_integer(type)) {
    const double least = type == ElementType::kInt16 ? -32768.0 : 0.0, most = type == ElementType::kUInt8 ? 255.0 : least + 65535.0;
    return std::nearbyint(std::min(most, std::max(least, value)));
  }
  const bool half = type == ElementType::kFloat16;
  const int digits = type == ElementType::kFloat32 ? 24 : (half ? 11 : 8), least = half ? -24 : (digits == 24 ? -149 : -133);
  const double largest = type == ElementType::kFloat32 ? 0x1.fffffep127 : (half ? 65504.0 : 0x1.fep127);
  int exponent = 0;
  std::frexp(value, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - digits, least));
  const double rounded = std::nearbyint(value / step) * step;
  return std::fabs(rounded) > largest ? std::copysign(std::numeric_limits<double>::infinity(), rounded) : rounded;
}

inline bool is_gaussian(const Record& mask) { return mask.kind == kGaussian || mask.kind == kGaussianComplement; }
inline double float_of(int32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// M of sample i at a pixel.
inline double naive_mask(const PlanView& plan, int64_t i, const int64_t* pixel) {
  const int64_t row = plan.shared ? 0 : i;
  const Record& mask = plan.masks[row];
  const double outer = float_of(mask.words[6]), inner = float_of(mask.words[7]);
  const int32_t* first = mask.words;
  if (mask.kind == kConstant) return outer;
  if (mask.kind == kBox) {
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) inside = inside && pixel[axis] >= first[axis] && pixel[axis] < first[3 + axis];
    return inside ? inner : outer;
  }
  if (mask.kind == kFourier || mask.kind == kFourierReleased) {
    const Pixels& stored = plan.pixels;
    const int64_t draw = stored.per == kPerBatch ? 0 : (stored.per == kPerPair ? std::min(row, stored.batch - 1 - row) : row);
    const int64_t at = (pixel[0] * stored.side[1] + pixel[1]) * stored.side[2] + pixel[2];
    if (stored.levels != nullptr) return static_cast<float>(stored.levels[draw * stored.stride + at] / 65535.0);
    return stored.bits[draw * stored.stride + at / 32] >> at % 32 & 1u;
  }
  double d2 = 0.0;
  for (int axis = 0; axis < 3; ++axis) d2 += std::pow(static_cast<double>(pixel[axis] - first[axis]), 2.0);
  const double g = std::exp(-outer * d2);
  return mask.kind == kGaussian ? g : 1.0 - g;
}

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Whether an element is as near as rounding lets it be: where the mask is a Gaussian, which may be off by 2^-22 (times
// |a-b| <= 8; 65535 for integers), or where the mask is exact but the sum of two products was rounded on the way (adjoints).
inline bool close(ElementType type, double got, double want, bool exact_mask) {
  if (same(got, want)) return true;
  if (is_integer(type)) return std::fabs(got - want) <= 1.0;
  const bool tight = type == ElementType::kFloat64 && exact_mask;
  const double places[] = {0x1p-22, 0x1p-10, 0x1p-7, tight ? 0x1p-50 : 0x1p-22, 0.0};
  return std::fabs(got - want) <= (tight ? 0x1p-49 : 0x1p-19) + places[static_cast<int>(type)] * std::fabs(want);
}

// One element of w·a + (1-w)·b as the reference rounds it: the difference, then the sum with an exact product.
inline double naive_blend(ElementType type, double w, double a, double b) {
  if (w == 0.0) return b;
  if (w == 1.0 || a == b) return a;
  if (is_integer(type)) return round_to(type, static_cast<double>(static_cast<long double>(w) * (a - b) + b));  // 64 bits hold the sum
  if (type == ElementType::kFloat64) return std::fma(w, a - b, b);
  const auto difference = static_cast<float>(a - b);
  return round_to(type, std::fma(static_cast<float>(w), difference, static_cast<float>(b)));
}

// own·g + (1-lent)·h in float64, rounded to float32 and then to the type; a weight of 0 takes nothing.
inline double naive_adjoint(ElementType type, double own, double g, double lent, double h) {
  const double given = 1.0 - lent;
  const double sum = (own == 0.0 ? 0.0 : own * g) + (given == 0.0 ? 0.0 : given * h);
  return type == ElementType::kFloat64 ? sum : round_to(type, static_cast<float>(sum));
}

// One entry of a target, as torchvision rounds it: both products, then the sum.
inline double naive_target(ElementType type, double y, double partner, double weight, double smoothing, int64_t classes) {
  const auto compute = [&](double x) { return type == ElementType::kFloat64 ? x : static_cast<double>(static_cast<float>(x)); };
  const auto rounded = [&](double x) { return round_to(type, compute(x)); };
  const auto smooth = [&](double v) {
    if (smoothing == 0.0) return v;
    return rounded(compute(v * compute(1.0 - smoothing)) + compute(smoothing / static_cast<double>(classes)));
  };
  return rounded(rounded(smooth(partner) * compute(1.0 - weight)) + rounded(smooth(y) * compute(weight)));
}

}  // namespace fusedmix::test
