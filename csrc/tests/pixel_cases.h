// The loss of label maps and the costs of borders on the CPU, against plain loops over single elements.
#pragma once

#include <algorithm>

#include "../cpu/borders.h"
#include "../cpu/pixel_losses.h"
#include "naive.h"
#include "threads.h"

namespace fusedmix::test {

// ---- the loss of label maps ----

inline PixelSteps steps_of(const Batch& x) {
  PixelSteps by{x.strides[0], x.strides[1], {0, 0, 0}};
  for (int64_t d = 0; d < x.pixel_dims(); ++d) by.side[3 - x.pixel_dims() + d] = x.strides[2 + d];
  return by;
}

// The equations of fusedmix/backends/pixel_losses.py at one pixel, in float64.
struct NaivePixel {
  double loss = 0, logsumexp, weight = 0;
  std::vector<double> slope;  // of each logit

  // `labels` and `shares`: the sample's and its partner's; `c`: weights of the classes.
  NaivePixel(const std::vector<double>& z, const int64_t* labels, const double* shares, int64_t ignore, const std::vector<double>& c,
             double smoothing)
      : slope(z.size(), 0.0) {
    const double top = *std::max_element(z.begin(), z.end()), spread = smoothing / static_cast<double>(z.size());
    double sum = 0;
    for (const double x : z) sum += std::exp(x - top);
    logsumexp = top + std::log(sum);
    for (int side = 0; side < 2; ++side) {
      const int64_t y = labels[side];
      if (y == ignore) continue;
      weight += shares[side] * c[y];
      for (size_t k = 0; k < z.size(); ++k) {
        const double target = shares[side] * c[k] * ((static_cast<int64_t>(k) == y ? 1.0 - smoothing : 0.0) + spread);
        loss += target * (logsumexp - z[k]);
        slope[k] -= target;
        for (size_t l = 0; l < z.size(); ++l) slope[l] += target * std::exp(z[l] - logsumexp);
      }
    }
  }
};

template <class C>
void test_pixel_loss(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order, Masks masks) {
  // Few pixels may all be ignored, or nearly.
  const bool mean = shape.back() > 1 && random.below(2), smooth = random.below(2), weighted = random.below(2), each = random.below(2);
  context = format("the loss of %s maps, B=%lld, K=%lld, %s, %s%s%s%s%s", name_of(type), static_cast<long long>(shape[0]),
                   static_cast<long long>(shape[1]), name_of(order), name_of(masks), mean ? ", mean" : "", smooth ? ", smoothed" : "",
                   weighted ? ", weighted" : "", each ? ", gradients each" : "");
  Batch logits(type, shape, order), slope(type, shape, random.below(2) ? order : Order::kContiguous);
  logits.fill(random, false);
  const std::vector<char> gaps = slope.memory;
  PixelLoss loss{};
  sides_of(logits, loss.side);
  const int64_t batch = shape[0], classes = shape[1], pixels = loss.side[0] * loss.side[1] * loss.side[2], ignore = 255;
  const HostPlan plan = make_plan(random, batch, loss.side, kRandom, masks, false);
  std::vector<int64_t> maps(batch * pixels);
  for (int64_t& y : maps) y = random.below(5) ? random.below(classes) : ignore;
  std::vector<C> weights(classes, C(1)), losses(batch * pixels), logsumexp(batch * pixels), grads(each ? batch * pixels : 1);
  for (C& c : weights) c = weighted ? static_cast<C>(random.uniform()) : C(1);
  for (C& g : grads) g = static_cast<C>(random.uniform(-1.0, 2.0));
  loss.type = type;
  loss.logits = logits.data();
  loss.by = steps_of(logits);
  loss.maps = maps.data();
  loss.label = kLabelInt64;
  loss.class_weight = weighted ? weights.data() : nullptr;
  loss.batch = loss.samples = batch, loss.classes = classes, loss.pixels = pixels;
  loss.smoothing = smooth ? 0.1 : 0.0, loss.ignore = ignore;
  C sum, scale;
  const Parallel& parallel = random.below(4) ? kOneThread : kThreeThreads;
  cpu::pixel_loss(loss, plan.view(), mean, {losses.data(), logsumexp.data(), &sum, &scale}, parallel);
  cpu::pixel_gradient(loss, plan.view(), {grads.data(), each, logsumexp.data(), &scale, slope.data(), steps_of(slope)}, parallel);

  const bool exact = sizeof(C) == 8 && masks != Masks::kGaussian && masks != Masks::kAll;  // Gaussians are float32
  const double place = exact ? 0x1p-44 : 0x1p-17;
  const auto near = [&](double got, double want) { return std::fabs(got - want) <= place * (1.0 + std::fabs(want)); };
  const std::vector<double> c(weights.begin(), weights.end());
  std::vector<bool> touched(gaps.size(), false);
  double all = 0, weight = 0;
  for (int64_t i = 0, n = 0; i < batch; ++i) {
    for (int64_t p = 0; p < pixels; ++p, ++n) {
      const int64_t pixel[3] = {p / loss.side[2] / loss.side[1], p / loss.side[2] % loss.side[1], p % loss.side[2]};
      const auto at = [&](const PixelSteps& by, int64_t k) {
        return i * by.batch + k * by.plane + pixel[0] * by.side[0] + pixel[1] * by.side[1] + pixel[2] * by.side[2];
      };
      std::vector<double> z(classes);
      for (int64_t k = 0; k < classes; ++k) z[k] = read_element(type, logits.data(), at(loss.by, k));
      const double m = naive_mask(plan.view(), i, pixel), shares[2] = {m, 1.0 - m};
      const int64_t labels[2] = {maps[n], maps[plan.partner[i] * pixels + p]};
      const NaivePixel want(z, labels, shares, ignore, c, loss.smoothing);
      all += want.loss, weight += want.weight;
      expect(near(losses[n], want.loss) && near(logsumexp[n], want.logsumexp), "a loss is off");
      for (int64_t k = 0; k < classes; ++k) {
        const double g = grads[each ? n : 0] * scale * want.slope[k], got = read_element(type, slope.data(), at(steps_of(slope), k));
        expect(near(got, g) || close(type, got, g, false), "a gradient is off");
        std::fill_n(touched.begin() + (slope.first + at(steps_of(slope), k)) * element_size(type), element_size(type), true);
      }
    }
  }
  expect(near(scale, mean ? 1.0 / weight : 1.0) && near(sum, all * scale), "the sum is off");
  bool whole = true;
  for (size_t k = 0; k < gaps.size(); ++k) whole = whole && (touched[k] || gaps[k] == slope.memory[k]);
  expect(whole, "memory between the gradients was written");
}

inline void test_pixel_losses() {
  Random random(30);
  // More pixels than a tile has, and more classes than are read at a time.
  const std::vector<int64_t> shapes[] = {{3, 5, 7, 9}, {2, 21, 3, 100}, {2, 40, 4, 5}, {2, 3, 600}, {2, 4, 3, 5, 6}, {3, 2, 1, 1}};
  for (const auto& shape : shapes) {
    for (const Order order : kOrders) {
      for (const Masks masks : kMasks) {
        for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
          test_pixel_loss<float>(random, type, shape, order, masks);
        }
        test_pixel_loss<double>(random, ElementType::kFloat64, shape, order, masks);
      }
    }
  }
}

// ---- the costs of borders ----

inline void test_border_cost(Random& random, ElementType type, const std::vector<int64_t>& shape, int64_t down, int64_t across,
                             Order order) {
  context = format("%s borders of %lldx%lld blocks, %s", name_of(type), static_cast<long long>(down), static_cast<long long>(across),
                   name_of(order));
  Batch x(type, shape, order);
  x.fill(random, false);
  const int64_t batch = shape[0], channels = shape[1];
  std::vector<int64_t> partner(batch);
  std::generate(partner.begin(), partner.end(), [&] { return random.below(batch); });
  std::vector<float> scale(channels), below(4 * batch * (down - 1) * across, -1.0f), right(4 * batch * down * (across - 1), -1.0f);
  for (float& s : scale) s = static_cast<float>(random.uniform(0.1, 1.1));
  const BorderCosts costs{type,
                          x.data(),
                          {x.strides[0], x.strides[1], x.strides[2], x.strides[3]},
                          batch,
                          channels,
                          {block_side(shape[2], down), block_side(shape[3], across)},
                          partner.data(),
                          scale.data(),
                          {below.data(), right.data()}};
  cpu::border_costs(costs, random.below(2) ? kOneThread : kThreeThreads);

  const int64_t patch[2] = {costs.side[0].patch, costs.side[1].patch};
  const auto patch_mean = [&](int64_t sample, int64_t channel, int64_t y, int64_t x0) {
    double sum = 0;
    for (int64_t v = y; v < y + patch[0]; ++v) {
      for (int64_t u = x0; u < x0 + patch[1]; ++u) {
        sum += read_element(type, x.data(), sample * x.strides[0] + channel * x.strides[1] + v * x.strides[2] + u * x.strides[3]);
      }
    }
    return sum * scale[channel] / static_cast<double>(patch[0] * patch[1]);
  };
  for (int axis = 0; axis < 2; ++axis) {  // borders below, and to the right
    const int64_t along = costs.side[1 - axis].patches(), each = along / (axis == 0 ? across : down), size = shape[2 + axis] / costs.side[axis].blocks;
    for (int64_t i = 0; i < batch; ++i) {
      for (int32_t border = 0; border < costs.borders(axis); ++border) {
        for (int32_t block = 0; block < costs.side[1 - axis].blocks; ++block) {
          for (int way = 0; way < 4; ++way) {
            const int64_t before = way < 2 ? i : partner[i], behind = way % 2 ? partner[i] : i, edge = (border + 1) * size;
            double want = 0, largest = 0;
            for (int64_t q = block * each; q < (block + 1) * each; ++q) {
              for (int64_t k = 0; k < channels; ++k) {
                const int64_t at = q * patch[1 - axis];
                const double a = axis == 0 ? patch_mean(before, k, edge - patch[0], at) : patch_mean(before, k, at, edge - patch[1]);
                const double b = axis == 0 ? patch_mean(behind, k, edge, at) : patch_mean(behind, k, at, edge);
                want += std::fabs(a - b) / static_cast<double>(each * channels);
                largest = std::max({largest, std::fabs(a), std::fabs(b)});
              }
            }
            const double got = costs.out(axis, i, border, block)[way * costs.out_step(axis)];
            expect(std::fabs(got - want) <= 0x1p-18 * largest, "a cost is off");
          }
        }
      }
    }
  }
}

inline void test_border_costs() {
  Random random(31);
  for (const ElementType type : kTypes) {
    for (const Order order : kOrders) {
      test_border_cost(random, type, {3, 3, 16, 24}, 2, 3, order);  // patches of 4x4 pixels
      test_border_cost(random, type, {2, 1, 12, 14}, 4, 2, order);  // of 3x1
      test_border_cost(random, type, {2, 5, 3, 4}, 3, 4, order);    // blocks of a pixel
      test_border_cost(random, type, {2, 2, 8, 528}, 2, 2, order);
    }
  }
}

}  // namespace fusedmix::test
