// Everything random about a batch. The mirror of fusedmix/draws.py and fusedmix/partners.py.
#include "sample.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/memory.h"

namespace fusedmix::host {
namespace {

constexpr int64_t kWorthAThread = 64;  // samples, each of them drawn

std::vector<int64_t> ascending(int64_t n) {
  std::vector<int64_t> order;
  resize(order, n, "the partners of a batch");
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

// The samples in the order of their keys; equal keys in the order they stand in.
template <class Key>
void stable_sort_by(std::vector<int64_t>& order, const Key& key) {
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
}

void by_class(const Sampling& args, const std::vector<int64_t>& keys, int64_t* partner) {
  const int64_t n = args.batch;
  const int64_t* label = args.classes;
  std::vector<int64_t> order = ascending(n);
  stable_sort_by(order, [&](int64_t i) { return keys[i]; });
  stable_sort_by(order, [&](int64_t i) { return label[i]; });
  if (args.pairing == kSameClass) {
    for (int64_t first = 0, stop; first < n; first = stop) {
      for (stop = first; stop < n && label[order[stop]] == label[order[first]];) ++stop;
      for (int64_t k = first; k < stop; ++k) partner[order[k]] = order[k + 1 < stop ? k + 1 : first];
    }
    return;
  }
  int64_t largest = 0;
  for (int64_t first = 0, stop; first < n; first = stop) {
    for (stop = first; stop < n && label[order[stop]] == label[order[first]];) ++stop;
    largest = std::max(largest, stop - first);
  }
  stable_sort_by(order, [&](int64_t i) {
    const Words w = words(args.seed.value, static_cast<uint64_t>(label[i]), kStreamClass);
    return sort_key(w.a, w.b);
  });
  const int64_t choices = std::max<int64_t>(n - 2 * largest + 1, 1);
  const Words w = words(args.seed.value, 0, kStreamShift);
  const int64_t shift = largest + static_cast<int64_t>(uniform(w.a, w.b) * static_cast<double>(choices));
  for (int64_t k = 0; k < n; ++k) partner[order[k]] = order[(k + shift) % n];
}

void partners(const Sampling& args, int64_t* partner) {
  const int64_t n = args.batch;
  if (args.partner != nullptr) {
    std::copy(args.partner, args.partner + n, partner);
  } else if (is_formula(args.pairing)) {
    for (int64_t i = 0; i < n; ++i) partner[i] = formula_partner(args.pairing, i, n);
  } else {
    std::vector<int64_t> keys = ascending(n);
    for (int64_t i = 0; i < n; ++i) keys[i] = partner_key(args.seed.value, i);
    if (args.pairing != kRandom) return by_class(args, keys, partner);
    std::vector<int64_t> order = ascending(n);
    stable_sort_by(order, [&](int64_t i) { return keys[i]; });
    for (int64_t k = 0; k < n; ++k) partner[order[k]] = k;  // the rank of each sample's key
  }
}

Draw drawn_elsewhere(const double* row, int64_t at) {
  Draw drawn{};
  drawn.choice = static_cast<int32_t>(row[kNumberChoice]);
  drawn.applied = row[kNumberApplied] != 0.0;
  drawn.lam = static_cast<float>(row[kNumberLam]);
  for (int axis = 0; axis < 3; ++axis) {
    drawn.centre[axis] = static_cast<int64_t>(row[kNumberCentre + axis]);
    drawn.place[axis] = static_cast<uint32_t>(row[kNumberPlace + axis]);
    drawn.sides[axis] = static_cast<uint32_t>(row[kNumberSides + axis]);
  }
  drawn.coin = row[kNumberCoin] != 0.0;
  drawn.aspect = static_cast<uint32_t>(row[kNumberAspect]);
  drawn.ratio = static_cast<float>(row[kNumberRatio]);
  drawn.noise = static_cast<uint64_t>(row[kNumberNoise]);
  drawn.index = static_cast<uint64_t>(at);
  return drawn;
}

Draw drawn_here(const Sampling& args, int64_t at) {
  const Numbers numbers{args.seed.value, static_cast<uint64_t>(at)};
  const auto row_at = [&](int32_t row) -> const MethodRow& { return args.rows[row]; };
  const int32_t choice = choose(numbers, row_at, args.methods);
  return draw(numbers, choice, args.rows[choice], args.p, args.lam == nullptr, args.extent);
}

}  // namespace

void sample(const Sampling& args, const Parallel& parallel) {
  if (args.batch == 0) return;
  const PlanOut& out = args.out;
  partners(args, out.partner);
  const auto make = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = draw_index(args.per, i, args.batch);
      const Draw drawn = args.drawn != nullptr ? drawn_elsewhere(args.drawn + kDrawnWidth * at, at) : drawn_here(args, at);
      const MethodRow row = used_row(args.rows[drawn.choice], args.lam != nullptr);
      const float lam = used_lam(row, drawn, args.lam == nullptr ? nullptr : args.lam + (args.lam_each ? i : 0));
      Made made = make_mask(row, lam, drawn, args.extent);
      out.lam[i] = realised_lam(row, drawn, lam, made);
      if (is_summed(made.record)) made.weight = summed_weight(made.record, sums_of(made.record, args.extent), args.extent);
      out.weight[i] = made.weight;
      out.masks[i] = made.record;
    }
  };
  if (args.per != kPerBatch || (args.lam != nullptr && args.lam_each)) return parallel(args.batch, kWorthAThread, make);
  make(0, 1);
  std::fill(out.lam + 1, out.lam + args.batch, out.lam[0]);
  std::fill(out.weight + 1, out.weight + args.batch, out.weight[0]);
  std::fill(out.masks + 1, out.masks + args.batch, out.masks[0]);
}

}  // namespace fusedmix::host
