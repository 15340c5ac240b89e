// A move costs the same wherever it begins: all there are, sorted once, are the order in which every block asks for places.
#include "arrangement.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fusedmix::cpu {
namespace {

constexpr int32_t kMostPlaces = kMostBlocks * kMostBlocks;
constexpr int32_t kFine = 1 << 22;  // units of a cost
constexpr int32_t kNone = -1;

struct Move {
  int32_t cost, down, right;
};

// The cheapest first; of equal ones that to the first place.
std::vector<Move> moves_of(const Arrangement& grids) {
  const int32_t longest = std::max(1, std::max(grids.height, grids.width) - 1);
  const auto step = static_cast<float>(std::min<double>(grids.distance_cost * kFine / (longest * longest), kFine));
  std::vector<Move> moves;
  moves.reserve((2 * grids.height - 1) * (2 * grids.width - 1));
  for (int32_t down = 1 - grids.height; down < grids.height; ++down) {
    for (int32_t right = 1 - grids.width; right < grids.width; ++right) {
      const int32_t squares = down * down + right * right;
      const float far = std::clamp(std::nearbyint(static_cast<float>(squares) * step), 1.0f, kFine - 1.0f);
      moves.push_back({squares == 0 ? 0 : static_cast<int32_t>(far), down, right});
    }
  }
  std::stable_sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) { return a.cost < b.cost; });
  return moves;
}

// One grid. A block has the number of the place where it stood.
class Grid {
 public:
  Grid(const Arrangement& grids, int64_t of, const std::vector<Move>& moves)
      : moves_(moves), seen_(grids.seen + of * grids.places()), places_(grids.places()), height_(grids.height), width_(grids.width) {
    const float* map = grids.maps + of * places_;
    for (int32_t b = 0; b < places_; ++b) {
      gain_[b] = static_cast<int32_t>(std::nearbyint(map[b] * kFine));
      next_[b] = 0;
      ask(b);
    }
  }

  void write(int64_t* out) {
    move();
    complete();
    std::copy(held_, held_ + places_, out);
  }

 private:
  // Looks for the next place that is seen, and of which block b has more than the move costs.
  void ask(int32_t b) {
    const int32_t y = b / width_, x = b - y * width_;
    for (const auto end = static_cast<int32_t>(moves_.size()); next_[b] < end; ++next_[b]) {
      const Move& move = moves_[next_[b]];
      if (move.cost >= gain_[b]) break;
      const int32_t row = y + move.down, column = x + move.right;
      if (row < 0 || row >= height_ || column < 0 || column >= width_ || !seen_[row * width_ + column]) continue;
      asked_[b] = row * width_ + column;
      cost_[b] = move.cost - gain_[b];
      return;
    }
    asked_[b] = kNone;
  }

  void move() {
    for (int32_t round = std::max(height_, width_), refused = 1; round > 0 && refused > 0; --round) {
      std::fill(held_, held_ + places_, kNone);
      for (int32_t b = 0; b < places_; ++b) {
        if (asked_[b] == kNone) continue;
        int32_t& holder = held_[asked_[b]];
        if (holder == kNone || cost_[b] < cost_[holder]) holder = b;
      }
      refused = 0;
      for (int32_t b = 0; b < places_; ++b) {
        if (asked_[b] == kNone || held_[asked_[b]] == b) continue;
        ++refused;
        ++next_[b];
        ask(b);
      }
    }
  }

  // Blocks without a place stay, where theirs is free, and then the others go to the places that are left, in order.
  void complete() {
    bool placed[kMostPlaces] = {};
    for (int32_t p = 0; p < places_; ++p) {
      if (held_[p] != kNone) placed[held_[p]] = true;
    }
    for (int32_t p = 0; p < places_; ++p) {
      if (held_[p] != kNone || placed[p]) continue;
      held_[p] = p;
      placed[p] = true;
    }
    for (int32_t p = 0, left = 0; p < places_; ++p) {
      if (held_[p] != kNone) continue;
      while (placed[left]) ++left;
      held_[p] = left++;
    }
  }

  const std::vector<Move>& moves_;
  const uint8_t* seen_;
  int32_t places_, height_, width_;
  // Of each block: the share of its map, which move comes next, the place that this leads to, and what it costs there.
  int32_t gain_[kMostPlaces], next_[kMostPlaces], asked_[kMostPlaces], cost_[kMostPlaces];
  int32_t held_[kMostPlaces];  // the block of each place
};

}  // namespace

void arrange_blocks(const Arrangement& grids, const Parallel& parallel) {
  constexpr int64_t kWorthAThread = 1 << 11;  // blocks
  const std::vector<Move> moves = moves_of(grids);
  parallel(grids.batch, std::max<int64_t>(1, kWorthAThread / grids.places()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Grid(grids, i, moves).write(grids.blocks + i * grids.places());
  });
}

}  // namespace fusedmix::cpu
