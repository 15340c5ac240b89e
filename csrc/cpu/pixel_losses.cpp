// Label maps tile by tile; the loops within a tile are pixel_rows.h's.
#include "pixel_losses.h"

#include <numeric>
#include <stdexcept>
#include <string>

#include "large_pages.h"
#include "tables.h"

namespace fusedmix::cpu {
namespace {

bool merges(const PixelSteps& by, const int64_t* side) {
  return by.side[0] == by.side[1] * side[1] && by.side[1] == by.side[2] * side[2];
}

// A batch in tiles of pixels that lie at a constant step: in a row that is a whole sample, or one of an image.
struct PixelTiles {
  const PixelLoss& loss;
  int64_t row, rows, of_row;  // pixels of a row, rows of a sample, tiles of a row

  // `to`: the steps of the gradient, if there is one.
  explicit PixelTiles(const PixelLoss& of, const PixelSteps* to = nullptr) : loss(of) {
    row = merges(of.by, of.side) && (to == nullptr || merges(*to, of.side)) ? of.pixels : of.side[2];
    rows = row == 0 ? 0 : of.pixels / row;
    of_row = ceil_div(row, kPixelTile);
  }
  int64_t count() const { return loss.batch * rows * of_row; }
};

struct PixelTile {
  int64_t sample, pixel, n;

  PixelTile(const PixelTiles& tiles, int64_t index) {
    const int64_t of_sample = tiles.rows * tiles.of_row, at = index % of_sample, begin = at % tiles.of_row * kPixelTile;
    sample = index / of_sample;
    pixel = at / tiles.of_row * tiles.row + begin;
    n = std::min(kPixelTile, tiles.row - begin);
  }
  // Its first logit in a tensor of those steps, in elements, and how the others lie.
  int64_t first(const PixelLoss& loss, const PixelSteps& by) const {
    const int64_t x = pixel % loss.side[2], y = pixel / loss.side[2] % loss.side[1], z = pixel / loss.side[2] / loss.side[1];
    return sample * by.batch + z * by.side[0] + y * by.side[1] + x * by.side[2];
  }
  PixelPlaces places(const PixelLoss& loss, const PixelSteps& by) const { return {n, by.side[2], loss.classes, by.plane}; }
};

// The two labels of each pixel of a tile, and what they count.
template <class C>
struct PixelLabels {
  int32_t own[kPixelTile], lent[kPixelTile];
  C own_part[kPixelTile], lent_part[kPixelTile], flat[kPixelTile] = {};
  PixelTargets targets;
  double weight = 0;  // Σ share·c of both labels
  bool known = true;  // whether each is a class, or ignored

  // `mass`: Σ c.
  PixelLabels(const PixelLoss& loss, const PlanView& plan, const PixelTile& tile, double mass, const float* mask)
      : targets{own, lent, own_part, lent_part, loss.smoothing != 0.0 ? flat : nullptr, loss.class_weight, mass} {
    C share[kPixelTile];
    for (int64_t q = 0; q < tile.n; ++q) share[q] = static_cast<C>(mask[q]);
    read(loss, tile.sample, tile, share, own, own_part);
    for (int64_t q = 0; q < tile.n; ++q) share[q] = C(1) - static_cast<C>(mask[q]);
    read(loss, plan.partner[tile.sample], tile, share, lent, lent_part);
  }
  PixelLabels(const PixelLabels&) = delete;

 private:
  void read(const PixelLoss& loss, int64_t sample, const PixelTile& tile, C* __restrict share, int32_t* __restrict found,
            C* __restrict part) {
    kernels().pixels[static_cast<int>(loss.type)].find_classes(found, loss.label, loss.maps, sample * loss.pixels + tile.pixel, tile.n,
                                                               loss.classes, loss.ignore);
    const C keep = static_cast<C>(1.0 - loss.smoothing), spread = static_cast<C>(loss.smoothing / static_cast<double>(loss.classes));
    int32_t none = 0;
    for (int64_t q = 0; q < tile.n; ++q) {
      const C lost = found[q] == kIgnored || share[q] == C(0) ? C(0) : C(NAN);
      none |= found[q] == kNoClass ? 1 : 0;
      share[q] = found[q] >= 0 ? share[q] : lost;
      flat[q] += spread * share[q];
    }
    known = known && none == 0;
    if (loss.class_weight != nullptr) {
      const auto* weights = static_cast<const C*>(loss.class_weight);
      for (int64_t q = 0; q < tile.n; ++q) share[q] *= found[q] >= 0 ? weights[found[q]] : C(1);
    }
    constexpr int64_t kLanes = 8;  // of a sum, whose order the compiler keeps
    C lanes[kLanes] = {};
    std::fill(share + tile.n, share + kPixelTile, C(0));
    for (int64_t q = 0; q < kPixelTile; q += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += share[q + l];
    }
    weight += static_cast<double>(std::accumulate(lanes, lanes + kLanes, C(0)));
    for (int64_t q = 0; q < tile.n; ++q) part[q] = keep * share[q];
  }
};

// Σ c of all classes.
template <class C>
double mass_of(const PixelLoss& loss) {
  const auto* weights = static_cast<const C*>(loss.class_weight);
  return weights == nullptr ? static_cast<double>(loss.classes) : std::accumulate(weights, weights + loss.classes, 0.0);
}

// f(C{}, tile, labels) for every tile, C being the compute type of the logits.
template <class F>
void each_tile(const PixelTiles& tiles, const PlanView& plan, const Parallel& parallel, const F& f) {
  if (tiles.count() == 0) return;
  const PixelLoss& loss = tiles.loss;
  const Masks masks = masks_of(plan, Row{loss.side[2], 1, 1, 1, 2, 0}, loss.side, loss.batch);
  const Tables tables = tables_of(masks, false, parallel);
  const auto run = [&](auto compute) {
    const double mass = mass_of<decltype(compute)>(loss);
    parallel(tiles.count(), 1 + kWorthAThread / (kPixelTile * loss.classes), [&](int64_t begin, int64_t end) {
      std::vector<Span> spans;
      float mask[kPixelTile];
      for (int64_t index = begin; index < end; ++index) {
        const PixelTile tile(tiles, index);
        for (int64_t q = 0, width; q < tile.n; q += width) {
          const int64_t pixel = tile.pixel + q, x = pixel % loss.side[2], line = pixel / loss.side[2];
          width = std::min(tile.n - q, loss.side[2] - x);
          const RowAt here{0, 0, {static_cast<int32_t>(line / loss.side[1]), static_cast<int32_t>(line % loss.side[1]), 0}};
          tables.weights(tile.sample, {&here, 1, x, x + width, 0}, spans, mask + q);
        }
        f(compute, index, tile, PixelLabels<decltype(compute)>(loss, plan, tile, mass, mask));
      }
    });
  };
  loss.type == ElementType::kFloat64 ? run(double{}) : run(float{});
}

const char* logits_of(const PixelLoss& loss, const PixelTile& tile) {
  return static_cast<const char*>(loss.logits) + tile.first(loss, loss.by) * element_size(loss.type);
}

template <class C>
void write(void* to, double x) {
  *static_cast<C*>(to) = static_cast<C>(x);
}

}  // namespace

void pixel_loss(const PixelLoss& loss, const PlanView& plan, bool mean, const PixelOut& out, const Parallel& parallel) {
  const PixelTiles tiles(loss);
  const PixelRows& rows = kernels().pixels[static_cast<int>(loss.type)];
  struct Part {
    double loss, weight;
    bool known;
  };
  std::vector<Part> parts;  // added in their order, however many threads there are
  resize(parts, tiles.count(), "the sums of a loss");
  each_tile(tiles, plan, parallel, [&](auto compute, int64_t index, const PixelTile& tile, const auto& labels) {
    using C = decltype(compute);
    C scratch[kPixelTile];
    const int64_t at = tile.sample * loss.pixels + tile.pixel;
    C* losses = out.losses == nullptr ? scratch : static_cast<C*>(out.losses) + at;
    const double sum = rows.losses(losses, static_cast<C*>(out.logsumexp) + at, logits_of(loss, tile), tile.places(loss, loss.by), labels.targets);
    parts[index] = {sum, labels.weight, labels.known};
  });
  Part all{0, 0, true};
  for (const Part& part : parts) all = {all.loss + part.loss, all.weight + part.weight, all.known && part.known};
  if (!all.known) throw std::invalid_argument("maps must hold classes in [0, " + std::to_string(loss.classes) + "), or ignore_index.");
  const double scale = mean ? 1 / all.weight : 1.0;
  const auto put = loss.type == ElementType::kFloat64 ? write<double> : write<float>;
  put(out.scale, scale);
  if (out.sum != nullptr) put(out.sum, all.loss * scale);
}

void pixel_gradient(const PixelLoss& loss, const PlanView& plan, const PixelGrad& grad, const Parallel& parallel) {
  const PixelTiles tiles(loss, &grad.by);
  const PixelRows& rows = kernels().pixels[static_cast<int>(loss.type)];
  const int64_t size = element_size(loss.type);
  ask_for_large_pages(grad.out, loss.batch * loss.classes * loss.pixels * size);
  each_tile(tiles, plan, parallel, [&](auto compute, int64_t, const PixelTile& tile, const auto& labels) {
    using C = decltype(compute);
    const int64_t at = tile.sample * loss.pixels + tile.pixel;
    rows.gradient(static_cast<char*>(grad.out) + tile.first(loss, grad.by) * size, tile.places(loss, grad.by), logits_of(loss, tile),
                  tile.places(loss, loss.by), labels.targets, static_cast<const C*>(grad.logsumexp) + at,
                  static_cast<const C*>(grad.grad) + (grad.each ? at : 0), grad.each, *static_cast<const C*>(grad.scale));
  });
}

}  // namespace fusedmix::cpu
