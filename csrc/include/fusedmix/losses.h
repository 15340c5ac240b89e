// Cross entropy and binary cross entropy of logits with mixed labels: one entry, and one row. The meaning is
// fusedmix/backends/reference.py, cross_entropy and binary_cross_entropy.
#pragma once

#include "labels.h"

namespace fusedmix {

// a·b + c, fused where that is one instruction: inside approximations only, which promise no last bit.
FUSEDMIX_HD float mad(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__) || defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}
FUSEDMIX_HD double mad(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__) || defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for x <= 0, to 2 units in the last place, of 1 on a GPU in float32; NaN for NaN; 0 where it would be no normal number.
// Loops over it are vectorised, which those over std::exp are not: x = n·ln 2 + r with |r| <= ln(2)/2, and Taylor's series of
// exp(r). Adding 1.5 times the power of two at which the unit is 1 rounds to n, and leaves n in the low bits.
FUSEDMIX_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return near_exp(1.0f, -x);
#else
  const float at = x < -87.3f ? -87.3f : x;
  const float shifted = at * 0x1.715476p0f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const float r = mad(n, 0x1.bd0106p-13f, mad(n, -0x1.63p-1f, at));  // ln 2 in two parts: n times the first is exact
  float y = mad(r, 1.0f / 5040, 1.0f / 720);
  y = mad(y, r, 1.0f / 120);
  y = mad(y, r, 1.0f / 24);
  y = mad(y, r, 1.0f / 6);
  y = mad(y, r, 0.5f);
  y = mad(y, r, 1.0f);
  y = mad(y, r, 1.0f);
  y *= bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
  return x < -87.3f ? 0.0f : y;
#endif
}

FUSEDMIX_HD double exp_nonpositive(double x) {
#if defined(__CUDA_ARCH__)
  return exp(x);
#else
  const double at = x < -708.0 ? -708.0 : x;
  const double shifted = at * 0x1.71547652b82fep0 + 0x1.8p52, n = shifted - 0x1.8p52;
  const double r = mad(n, -0x1.a39ef35793c76p-33, mad(n, -0x1.62e42feep-1, at));
  double y = mad(r, 1.0 / 6227020800, 1.0 / 479001600);
  y = mad(y, r, 1.0 / 39916800);
  y = mad(y, r, 1.0 / 3628800);
  y = mad(y, r, 1.0 / 362880);
  y = mad(y, r, 1.0 / 40320);
  y = mad(y, r, 1.0 / 5040);
  y = mad(y, r, 1.0 / 720);
  y = mad(y, r, 1.0 / 120);
  y = mad(y, r, 1.0 / 24);
  y = mad(y, r, 1.0 / 6);
  y = mad(y, r, 0.5);
  y = mad(y, r, 1.0);
  y = mad(y, r, 1.0);
  y *= bit_cast<double>((bit_cast<uint64_t>(shifted) << 52) + 0x3FF0000000000000u);
  return x < -708.0 ? 0.0 : y;
#endif
}

// log(1 + u) for u in [0, 1], to a few units in the last place; NaN for NaN: 2·artanh(s) with s = u/(2+u) <= 1/3.
FUSEDMIX_HD float log1p_unit(float u) {
  const float s = near_quotient(u, 2.0f + u), q = s * s;
  float y = mad(q, 1.0f / 15, 1.0f / 13);
  y = mad(y, q, 1.0f / 11);
  y = mad(y, q, 1.0f / 9);
  y = mad(y, q, 1.0f / 7);
  y = mad(y, q, 1.0f / 5);
  y = mad(y, q, 1.0f / 3);
  return 2.0f * mad(s * q, y, s);
}

FUSEDMIX_HD double log1p_unit(double u) {
#if defined(__CUDA_ARCH__)
  return log1p(u);
#else
  const double s = u / (2.0 + u), q = s * s;
  double y = mad(q, 1.0 / 33, 1.0 / 31);
  y = mad(y, q, 1.0 / 29);
  y = mad(y, q, 1.0 / 27);
  y = mad(y, q, 1.0 / 25);
  y = mad(y, q, 1.0 / 23);
  y = mad(y, q, 1.0 / 21);
  y = mad(y, q, 1.0 / 19);
  y = mad(y, q, 1.0 / 17);
  y = mad(y, q, 1.0 / 15);
  y = mad(y, q, 1.0 / 13);
  y = mad(y, q, 1.0 / 11);
  y = mad(y, q, 1.0 / 9);
  y = mad(y, q, 1.0 / 7);
  y = mad(y, q, 1.0 / 5);
  y = mad(y, q, 1.0 / 3);
  return 2.0 * mad(s * q, y, s);
#endif
}

// log(x) for x >= 1, to a few units in the last place; -inf for 0, NaN for NaN and for infinity. The exponent, and the rest by the
// function above.
FUSEDMIX_HD float log_from_one(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  const auto exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  const float rest = bit_cast<float>((bits & 0x007FFFFFu) | 0x3F800000u) - 1.0f;
  return x == 0.0f ? -INFINITY : mad(exponent, 0x1.62e43p-1f, log1p_unit(rest)) + (x - x);
}
FUSEDMIX_HD double log_from_one(double x) {
  const auto bits = bit_cast<uint64_t>(x);
  const auto exponent = static_cast<double>(static_cast<int32_t>(bits >> 52) - 1023);
  const double rest = bit_cast<double>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u) - 1.0;
  return x == 0.0 ? -INFINITY : mad(exponent, 0x1.62e42fefa39efp-1, log1p_unit(rest)) + (x - x);
}

// 0 where the factor is, whatever infinity it stands before.
template <class C>
FUSEDMIX_HD C term(C factor, C x) {
  return factor == C(0) ? C(0) : factor * x;
}

// ---- cross entropy ----

// What one pass over (a part of) a row of logits z, with class weights c, finds out. Relative to the largest logit, so that
// nothing overflows and a large common offset costs no digits.
template <class C>
struct RowSums {
  C max = -C(INFINITY);
  C exponentials = 0;  // Σ exp(z - base)
  C linear = 0;        // Σ c·(z - base)
  C total = 0;         // Σ c

  FUSEDMIX_HD static C base_of(C max) { return max == -C(INFINITY) ? C(0) : max; }
  FUSEDMIX_HD C base() const { return base_of(max); }

  FUSEDMIX_HD void raise(C higher) {
    if (!(higher > max)) return;
    exponentials *= exp_nonpositive(max - higher);
    linear += term(total, base() - base_of(higher));
    max = higher;
  }
  FUSEDMIX_HD void add(RowSums other) {
    raise(other.max);
    other.raise(max);
    exponentials += other.exponentials;
    linear += other.linear;
    total += other.total;
  }
  // The loss, and what each exponential is multiplied with in its gradient, where c are the coefficients of a label
  // (MixedClasses::sums).
  FUSEDMIX_HD C loss() const { return total * std::log(exponentials) - linear; }
  FUSEDMIX_HD C rate() const { return total / exponentials; }
};

// The mixed label of a row: two classes and their coefficients, and that of every class. A class that is ignored
// contributes nothing, and one outside 0..K-1 makes the loss NaN; neither is an index then, but -1.
template <class C>
struct MixedClasses {
  int64_t own, lent;
  C own_share, lent_share, flat;
  bool ignored;

  // share: smoothing over the number of classes.
  FUSEDMIX_HD MixedClasses(int64_t y, int64_t partner, double weight, int64_t num_classes, int64_t ignore, double smoothing,
                           double share) {
    own = y >= 0 && y < num_classes && y != ignore ? y : -1;
    lent = partner >= 0 && partner < num_classes && partner != ignore ? partner : -1;
    const C w = own >= 0 ? static_cast<C>(weight) : (y == ignore ? C(0) : C(NAN));
    const C v = lent >= 0 ? static_cast<C>(1.0 - weight) : (partner == ignore ? C(0) : C(NAN));
    ignored = w == C(0) && v == C(0);
    own_share = static_cast<C>(1.0 - smoothing) * w;
    lent_share = static_cast<C>(1.0 - smoothing) * v;
    flat = static_cast<C>(share) * (w + v);
  }

  // Turns sums whose c are the weights of classes into those whose c are weight times target. z are the logits of the two classes.
  FUSEDMIX_HD RowSums<C> sums(const RowSums<C>& row, C z_own, C z_lent, C own_weight, C lent_weight) const {
    const C a = own_share * own_weight, b = lent_share * lent_weight;
    const C picked = term(a, z_own - row.base()) + term(b, z_lent - row.base());
    return {row.max, row.exponentials, picked + term(flat, row.linear), a + b + term(flat, row.total)};
  }
  // Leaves of the two classes those that are among the classes of a part of the row. (They must be in the part that has their
  // logits. The largest logit of another may be far below them, where classes are masked, and the difference would cost digits.)
  FUSEDMIX_HD void keep(int64_t begin, int64_t stop) {
    if (own < begin || own >= stop) own = -1, own_share = C(0);
    if (lent < begin || lent >= stop) lent = -1, lent_share = C(0);
  }
  FUSEDMIX_HD C target(int64_t k) const {
    return flat + (k == own ? own_share : C(0)) + (k == lent ? lent_share : C(0));
  }
};

// ---- binary cross entropy ----

// The target of a class: mixed as mix_labels mixes it, in the compute type, and held against the threshold.
template <class C>
struct BinaryTarget {
  Smoothing<C> smooth;
  LabelWeights<C> mixed;
  C threshold;
  bool binary;

  FUSEDMIX_HD C operator()(C y, C partner) const {
    const C t = mixed(smooth(y), smooth(partner));
    return binary && t == t ? (t > threshold ? C(1) : C(0)) : t;
  }
};

// The loss of one class, with its weight c and the weight p of its positive part. At infinite logits it is the limit.
template <class C>
FUSEDMIX_HD C binary_loss(C z, C t, C c, C p) {
  const C slope = z < C(0) ? -(p * t) : C(1) - t;
  return c * (term(slope, z) + (C(1) + (p - C(1)) * t) * log1p_unit(exp_nonpositive(-std::fabs(z))));
}

// The sum of a few, no more than 100, whose weights are 1: one logarithm for all of them, of the product of their 1 + u. That is
// kept less 1, so that small u lose nothing.
template <class C>
struct BinaryLosses {
  C linear = 0, product = 0;

  FUSEDMIX_HD void add(C z, C t) {
    const C u = exp_nonpositive(-std::fabs(z));
    linear += term(z < C(0) ? -t : C(1) - t, z);
    product = mad(product, u, product + u);
  }
  // Adds the loss of a class whose target is 0.
  FUSEDMIX_HD void add(C z) {
    const C u = exp_nonpositive(-std::fabs(z));
    linear += std::fmax(z, C(0));
    product = mad(product, u, product + u);
  }
  FUSEDMIX_HD C sum() const { return linear + std::log1p(product); }
};

// up·σ(z) - down·σ(-z): the derivative, where up is c·(1-t) and down is c·p·t.
template <class C>
FUSEDMIX_HD C binary_slope(C z, C up, C down) {
  const C u = exp_nonpositive(-std::fabs(z));
  return near_quotient(z < C(0) ? mad(up, u, -down) : mad(-down, u, up), C(1) + u);
}
template <class C>
FUSEDMIX_HD C binary_gradient(C z, C t, C c, C p) {
  return c * binary_slope(z, C(1) - t, p * t);
}

}  // namespace fusedmix
