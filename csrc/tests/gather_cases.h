// What is pasted and what is summed on the CPU, against plain loops over single elements.
#pragma once

#include <algorithm>

#include "../cpu/gather.h"
#include "naive.h"
#include "threads.h"

namespace fusedmix::test {

// Whether every element of `out` is what `want` says, and nothing else of its memory has changed.
template <class Want>
void expect_elements(const Batch& out, const std::vector<char>& before, const Want& want) {
  std::vector<bool> touched(out.memory.size(), false);
  const int64_t bytes = element_size(out.type);
  for (int64_t n = 0; n < out.elements(); ++n) {
    int64_t index[8];
    const int64_t at = out.at(n, index);
    const double wanted = want(index), got = read_element(out.type, out.data(), at);
    if (same(got, wanted)) {
      pass();
    } else {
      fail(format("element %lld: %.17g instead of %.17g", static_cast<long long>(n), got, wanted));
    }
    std::fill_n(touched.begin() + (out.first + at) * bytes, bytes, true);
  }
  bool whole = true;
  for (size_t k = 0; k < before.size(); ++k) whole = whole && (touched[k] || before[k] == out.memory[k]);
  expect(whole, "memory between the elements was written");
}

inline double read_at(const Batch& x, const int64_t* index) {
  int64_t at = 0;
  for (size_t d = 0; d < x.sizes.size(); ++d) at += index[d] * x.strides[d];
  return read_element(x.type, x.data(), at);
}

// The patches of a batch, whose last `ndim` dims are their sides.
struct HostPatches {
  std::vector<int64_t> partner;
  std::vector<int32_t> boxes, crops;
  Patches view;

  HostPatches(Random& random, const std::vector<int64_t>& shape, int32_t count, int32_t ndim, Resize resize) {
    const size_t lead = shape.size() - ndim;
    for (int64_t k = 0; k < shape[0] * count; ++k) {
      partner.push_back(random.below(shape[0]));
      int32_t box[6], crop[6];
      const bool alike = random.below(3) == 0;  // the crop is as large as the box
      for (int d = 0; d < ndim; ++d) {
        const auto side = static_cast<int32_t>(shape[lead + d]);
        const auto span = [&](int32_t* sides, int64_t length) {
          sides[d] = static_cast<int32_t>(random.below(side - length + 1));
          sides[ndim + d] = static_cast<int32_t>(sides[d] + length);
        };
        const int64_t wide = random.below(side + 1);
        span(box, wide);
        span(crop, alike && wide > 0 ? wide : 1 + random.below(side));
      }
      boxes.insert(boxes.end(), box, box + 2 * ndim);
      crops.insert(crops.end(), crop, crop + 2 * ndim);
    }
    view = {partner.data(), boxes.data(), crops.data(), count, ndim, resize};
  }
};

// A pixel of a crop, resized: `index` is that of the element in the partner along all dims before side d, and `c` that of the pixel
// in the box along the others.
inline double naive_resized(const Batch& x, const HostPatches& patches, int64_t k, int d, std::vector<int64_t> index, const int64_t* c) {
  const int ndim = patches.view.ndim;
  if (d == ndim) return read_at(x, index.data());
  const int32_t *box = &patches.boxes[k * 2 * ndim], *crop = &patches.crops[k * 2 * ndim];
  const int64_t n = box[ndim + d] - box[d], m = crop[ndim + d] - crop[d];
  const auto at = [&](int64_t pixel) {
    index[x.sizes.size() - ndim + d] = crop[d] + pixel;
    return naive_resized(x, patches, k, d + 1, index, c);
  };
  if (patches.view.resize == Resize::kNearest) return at(c[d] * m / n);
  const bool corners = patches.view.resize == Resize::kLinearCorners;
  const int64_t numerator = corners ? c[d] * (m - 1) : std::max<int64_t>(0, (2 * c[d] + 1) * m - n);
  const int64_t denominator = corners ? std::max<int64_t>(1, n - 1) : 2 * n;
  const int64_t first = numerator / denominator, second = std::min(first + 1, m - 1);
  const float share = static_cast<float>(numerator % denominator) / static_cast<float>(denominator);
  const double a = at(first), b = at(second);
  if (first == second || share == 0.0f) return a;
  if (x.type == ElementType::kFloat64) return a + share * (b - a);
  const float difference = static_cast<float>(b) - static_cast<float>(a), product = share * difference;
  return static_cast<float>(a) + product;
}

inline void test_paste(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order, int32_t ndim, Resize resize) {
  const auto count = static_cast<int32_t>(1 + random.below(random.below(2) ? 2 : 8));
  const Parallel& parallel = random.below(4) ? kOneThread : kThreeThreads;
  context = format("%s paste of B=%lld, %s, %d sides, %d patches, resize %d, %d threads", name_of(type), static_cast<long long>(shape[0]),
                   name_of(order), ndim, count, static_cast<int>(resize), parallel.threads);
  Batch x(type, shape, order), out(type, shape, random.below(2) ? order : Order::kContiguous);
  x.fill(random, true);
  const std::vector<char> before = out.memory;
  const HostPatches patches(random, shape, count, ndim, resize);
  cpu::paste({type, x.data(), out.data(), layout_of(x, out, ndim), false}, patches.view, parallel);
  expect_elements(out, before, [&](const int64_t* index) {
    const int64_t* pixel = index + shape.size() - ndim;
    for (int64_t k = (index[0] + 1) * count - 1; k >= index[0] * count; --k) {
      bool inside = true;
      int64_t c[3];
      for (int d = 0; d < ndim; ++d) {
        const int32_t first = patches.boxes[(2 * k) * ndim + d], stop = patches.boxes[(2 * k + 1) * ndim + d];
        inside = inside && pixel[d] >= first && pixel[d] < stop;
        c[d] = pixel[d] - first;
      }
      if (!inside) continue;
      std::vector<int64_t> from(index, index + shape.size());
      from[0] = patches.partner[k];
      return round_to(type, naive_resized(x, patches, k, 0, from, c));
    }
    return read_at(x, index);
  });
}

inline void test_sums(Random& random, ElementType type, const std::vector<int64_t>& shape, Order order) {
  const auto count = static_cast<int32_t>(1 + random.below(8));
  const Parallel& parallel = random.below(4) ? kOneThread : kThreeThreads;
  context = format("%s sums of B=%lld, %s, %d terms, %d threads", name_of(type), static_cast<long long>(shape[0]), name_of(order), count,
                   parallel.threads);
  Batch x(type, shape, order), out(type, shape, random.below(2) ? order : Order::kContiguous);
  x.fill(random, true);
  const std::vector<char> before = out.memory;
  std::vector<int64_t> partner;
  std::vector<float> weight;
  for (int64_t k = 0; k < shape[0] * count; ++k) {
    partner.push_back(random.below(shape[0]));
    weight.push_back(random.below(3) == 0 ? 0.0f : static_cast<float>(random.uniform(-1.0, 2.0)));
  }
  cpu::sum_terms({type, x.data(), out.data(), layout_of(x, out, 0), false}, {partner.data(), weight.data(), count}, parallel);
  expect_elements(out, before, [&](const int64_t* index) {
    double sum = 0.0;
    for (int64_t k = index[0] * count; k < (index[0] + 1) * count; ++k) {
      if (weight[k] == 0.0f) continue;
      std::vector<int64_t> from(index, index + shape.size());
      from[0] = partner[k];
      const double term = read_at(x, from.data());
      sum = type == ElementType::kFloat64 ? std::fma(weight[k], term, sum)
                                          : std::fma(weight[k], static_cast<float>(term), static_cast<float>(sum));
    }
    return round_to(type, sum);
  });
}

inline void test_gathers() {
  Random random(30);
  const std::vector<int64_t> shapes[] = {{5, 3, 7, 9},   {6, 4, 8, 16},  {4, 3, 33},     {3, 2, 3, 5, 6}, {2, 1, 7, 31}, {1, 3, 4, 4},
                                         {7, 2, 1, 65},  {3, 2, 70, 40}, {2, 1, 20000}, {40, 3, 5, 4},   {2, 300, 5, 8}, {3, 1, 1}};
  for (const ElementType type : kTypes) {
    for (const auto& shape : shapes) {
      for (const Order order : kOrders) {
        for (int32_t ndim = 1; ndim < static_cast<int32_t>(shape.size()) && ndim <= 3; ++ndim) {
          for (const Resize resize : {Resize::kNearest, Resize::kLinear, Resize::kLinearCorners}) {
            test_paste(random, type, shape, order, ndim, resize);
          }
        }
        test_sums(random, type, shape, order);
      }
    }
  }
}

}  // namespace fusedmix::test
