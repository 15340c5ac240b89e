// Mixes a batch in one pass over memory, in place or not.
//
// The batch is cut into tiles: up to 64 KiB at the same place of every sample. A tile is mixed for the whole batch at once,
// walking the cycles of the permutation: out[i] needs x[i] and x[p(i)], out[p(i)] needs x[p(i)] and x[p(p(i))], and so on.
// A few samples of the walk are a chain, mixed together element by element. So every byte is read from memory once and
// written once, in a few long streams, which is what the hardware foresees best; the last sample of a chain is still in the
// cache when the next chain begins with it. In place, only the tile of the first sample of a cycle is kept aside, for the
// last one. Tiles do not depend on each other: threads take different ones. Samples of one tile are not cut for that: there
// threads take different parts of the walk, and the sample that each part begins with is kept aside for the one before it.
#include "mix.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../include/fusedmix/partners.h"
#include "kernels.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kTileBytes = 1 << 16;  // of one sample: long streams, of which a chain fits a second-level cache
constexpr int64_t kBlock = 1024;         // elements of a sample at a time, where there is a weight for each
constexpr int64_t kScaledRows = 16;      // that one call mixes
constexpr int64_t kRowsAhead = 2;        // that are asked for before their turn, where a box is copied
constexpr int64_t kLongRow = 512;        // and rows have so many bytes at least
constexpr int64_t kAheadBytes = 1024;    // of a stretch of a row
constexpr int64_t kCacheLine = 64;
constexpr int64_t kTilesEach = 4;     // for each thread, if that does not make them short
constexpr int64_t kWorthATile = 512;  // elements
constexpr int64_t kWorthAThread = 32768;  // elements
constexpr int64_t kWorthAPart = 16;       // samples
constexpr int64_t kAnchor = 1024;  // pixels
constexpr int64_t kKeptTable = 1 << 18;  // numbers
constexpr int64_t kManyMasks = 256;      // worth more than one thread

// A mask, and how it is gone through: as its family's traits say (sampling.h).
struct Mask {
  bool boxed, factored, bits, levels, grid;
  Box box;        // empty where the mask is one number
  Gaussian bell;  // its centre in the image
};

// Of images of that size.
std::vector<Mask> masks_of(const PlanView& plan, int64_t n, const int64_t* size) {
  std::vector<Mask> masks;
  resize(masks, n, "the masks of a batch");
  for (int64_t m = 0; m < n; ++m) {
    of_kind(plan.masks[m], [&](const auto& mask) {
      using Its = std::decay_t<decltype(mask)>;
      masks[m].bits = Its::kHasPixels && plan.pixels.levels == nullptr;
      masks[m].levels = Its::kHasPixels && !masks[m].bits;
      masks[m].grid = std::is_same_v<Its, Grid>;
      if constexpr (Its::kHasBox) masks[m].boxed = true, masks[m].box = mask.box();
      if constexpr (Its::kHasFactors) masks[m].factored = mask.is_inside(size), masks[m].bell = mask;
    });
  }
  return masks;
}

bool is_hard(float w) { return w == 0.0f || w == 1.0f; }

int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// n things in groups of `most` at most, all alike: how many are in one.
int64_t even_groups(int64_t n, int64_t most) { return ceil_div(n, ceil_div(n, std::max<int64_t>(1, most))); }

// The cycles of the permutation, one after another: sample order[k]'s partner is order[k+1], the last one's is the first.
// Partners that are no permutation, which only an image that is written elsewhere may have, are cut into paths: there the
// last one's partner is a sample that has been in a path before, its own one or another.
struct Cycles {
  std::vector<int64_t> order, start;

  Cycles(const PlanView& plan, int64_t batch, bool paths) {
    check_partners(plan.partner, batch);
    resize(order, batch, "the cycles of the partners");
    std::vector<bool> seen;
    resize(seen, batch, "the cycles of the partners");
    int64_t n = 0;
    for (int64_t i = 0; i < batch; ++i) {
      if (seen[i]) continue;
      start.push_back(n);
      int64_t j = i;
      for (; !seen[j]; j = plan.partner[j]) {
        seen[j] = true;
        order[n++] = j;
      }
      if (j != i && !paths) refuse_repeated_partners();
    }
    start.push_back(n);
  }
};

// What masks are made of along a row, so that a weight takes a multiplication at most. Of a Gaussian: exp(-rate·d²) along every
// axis, in float64 rounded once; it is separable, so H+W exponentials serve H·W pixels. Of a box: a row beside it and one
// through it. Along the row every element has its own entry.
class Tables {
 public:
  // `boxes`: not only of Gaussians.
  Tables(const std::vector<Mask>& masks, const Row& row, const int64_t* size, bool boxes, const Parallel& parallel)
      : row_axis_(row.axis), length_(row.length) {
    const auto count = static_cast<int64_t>(masks.size());
    int64_t n = 0;
    resize(offset_, count, "the tables of masks");
    std::fill(offset_.begin(), offset_.end(), -1);
    for (int axis = 0; axis < 3; ++axis) {
      first_[axis] = n;
      n += axis == row.axis ? row.length : size[axis];
    }
    boxes = boxes && row.axis >= 0 && row.length <= kBlock;
    int64_t total = 0;
    for (int64_t m = 0; m < count; ++m) {
      if (!masks[m].factored && !(boxes && masks[m].boxed)) continue;
      offset_[m] = total;
      total += masks[m].factored ? n : 2 * row.length;
    }
    if (total == 0) return;
    thread_local std::vector<float> kept;  // by the thread that calls, as scratch memory is
    if (total <= kKeptTable) {
      if (static_cast<int64_t>(kept.size()) < total) resize(kept, total, "the tables of masks");
      values_ = kept.data();
    } else {
      own_ = unwritten<float>(total, "the tables of masks");
      values_ = own_.get();
    }
    parallel(count, count < kManyMasks ? count : 8, [&](int64_t begin, int64_t end) {
      std::vector<float> by_distance;
      for (int64_t m = begin; m < end; ++m) {
        if (offset_[m] < 0) continue;
        float* values = values_ + offset_[m];
        if (masks[m].boxed) {
          const Box& box = masks[m].box;
          std::fill(values, values + 2 * row.length, box.outer);
          const int64_t first = std::max(box.first[row.axis], 0), stop = std::min<int64_t>(box.stop[row.axis], size[row.axis]);
          float* through = values + row.length;
          if (first < stop) std::fill(through + first * row.inner, through + stop * row.inner, box.inner);
          continue;
        }
        const Gaussian& bell = masks[m].bell;
        distances(bell, size, by_distance);
        for (int axis = 0; axis < 3; ++axis) {
          along(bell, axis, size[axis], axis == row.axis ? row.inner : 1, by_distance, values + first_[axis]);
        }
      }
    });
  }

  // Whether a mask's weights along a row are one of these times a number, or 1 minus that.
  bool has(int64_t mask) const { return offset_[mask] >= 0 && row_axis_ == 2; }

  // Of a box, or of a constant: along a row through it or beside it.
  const float* box_row(int64_t mask, bool inside) const { return values_ + offset_[mask] + (inside ? length_ : 0); }

  // Of a Gaussian, for each coordinate; along the row for each element.
  const float* axis(int64_t mask, int axis) const { return values_ + offset_[mask] + first_[axis]; }
  const float* row(int64_t mask) const { return axis(mask, row_axis_ < 0 ? 0 : row_axis_); }

  // The axes outside the row; all of them are before it where a row is in one pixel.
  Factors factors(int64_t mask, const int32_t* at) const {
    Factors f{1.0f, 1.0f, 1.0f};
    for (int axis = 0; axis < 3; ++axis) {
      if (axis == row_axis_) continue;
      const float value = values_[offset_[mask] + first_[axis] + at[axis]];
      if (row_axis_ < 0 || axis < row_axis_) {
        f.before *= value;
      } else {
        (axis == row_axis_ + 1 ? f.after : f.last) = value;
      }
    }
    return f;
  }

 private:
  // exp(-r·d²) for each d that there is along any axis, from exp(-r(d+1)²) = exp(-rd²)·q and the next q = q·exp(-2r): two
  // exponentials for kAnchor pixels. After d steps from an anchor that is off by up to d²·2^-53 of itself, as the error of the
  // first q is raised to the d²; anchors keep it below 2^-33, and what is made of it is rounded to float32.
  static void distances(const Gaussian& bell, const int64_t* size, std::vector<float>& found) {
    int64_t n = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t centre = bell.centre[axis];
      n = std::max(n, 1 + std::max(centre, size[axis] - 1 - centre));
    }
    resize(found, n, "the tables of masks");
    std::fill(found.begin(), found.end(), 0.0f);
    const double rate = bell.rate, step = std::exp(-2.0 * rate);
    double g = 1.0, q = 1.0;
    for (int64_t d = 0; d < n; ++d, g *= q, q *= step) {
      if (d % kAnchor == 0) {
        const double x = static_cast<double>(d);
        g = std::exp(-rate * (x * x));
        q = std::exp(-rate * (2.0 * x + 1.0));
      }
      if (g < 1e-60) break;  // far below what float32 holds
      found[d] = static_cast<float>(g);
    }
  }

  // `repeat`: elements that share a pixel.
  static void along(const Gaussian& bell, int axis, int64_t side, int64_t repeat, const std::vector<float>& by_distance,
                    float* out) {
    const int64_t centre = bell.centre[axis];
    const float* at = by_distance.data();
    if (repeat == 1) {
      std::reverse_copy(at + 1, at + 1 + centre, out);
      std::copy(at, at + side - centre, out + centre);
      return;
    }
    for (int64_t c = 0; c < side; ++c, out += repeat) std::fill(out, out + repeat, at[std::abs(c - centre)]);
  }

  int row_axis_;
  int64_t length_;
  int64_t first_[3];
  std::vector<int64_t> offset_;
  std::unique_ptr<float[]> own_;
  float* values_ = nullptr;
};

// A row of a tile: where it starts in a sample, and its coordinates outside the row.
struct RowAt {
  int64_t src, dst;
  int32_t at[3];
};

// A stretch of a row in which the mask is one number, or varies.
struct Span {
  int64_t begin, end;
  float w;
};
// The w of a span that does: no number is it, as λ may be any. (A λ of NaN is a number here, of a mask that never varies.)
constexpr float kVaries = std::numeric_limits<float>::quiet_NaN();
inline bool varies(const Mask& mask, float w) { return w != w && !mask.boxed; }

// As the functions of masks.h ask for it.
constexpr auto kLoad = [](const auto* at) { return *at; };

// The pixels of one Fourier mask.
class PixelsOf {
 public:
  PixelsOf(const Pixels& pixels, int64_t sample) : pixels_(pixels), base_(draw_index(pixels.per, sample, pixels.batch) * pixels.stride) {}

  bool soft() const { return pixels_.levels != nullptr; }
  const uint32_t* bits() const { return pixels_.bits + base_; }
  bool bit(int64_t q) const { return (pixels_.bits[base_ + q / 32] >> (q % 32) & 1u) != 0; }
  float weight(int64_t q) const {
    return soft() ? weight_of_level(pixels_.levels[base_ + q]) : static_cast<float>(bit(q));
  }

  // How many of the pixels q, q + step, ... before q + n·step are what the first is.
  int64_t run(int64_t q, int64_t step, int64_t n) const {
    const bool first = bit(q);
    int64_t k = 1;
    if (step != 1) {
      while (k < n && bit(q + k * step) == first) ++k;
      return k;
    }
    while (k < n) {  // word by word: the bits from q + k on that differ from the first
      const int64_t at = q + k, rest = 32 - at % 32;
      const uint32_t word = pixels_.bits[base_ + at / 32], differ = (first ? ~word : word) >> (at % 32);
      if (differ != 0) return std::min(n, k + __builtin_ctz(differ));
      k += rest;
    }
    return n;
  }

 private:
  const Pixels& pixels_;
  const int64_t base_;
};

class Mixer {
 public:
  Mixer(const MixArgs& args, const Parallel& parallel)
      : args_(args),
        kernels_(kernels()),
        rows_(kernels_.rows[static_cast<int>(args.type)]),
        size_(element_size(args.type)),
        row_(innermost_row(args.layout)),
        in_place_(args.src == args.dst),
        cycles_(args.plan, args.layout.batch, !in_place_ && !args.adjoint),
        packed_(row_.src_step == 1 && row_.dst_step == 1) {
    const Layout& layout = args.layout;
    for (int d = 0; d < layout.rank; ++d) {
      if (layout.dims[d].axis >= 0) sides_[layout.dims[d].axis] = layout.dims[d].size;
    }
    masks_ = masks_of(args.plan, args.plan.shared ? 1 : layout.batch, sides_);
    const bool boxes = !args.plan.shared && !args.adjoint &&
                       std::any_of(masks_.begin(), masks_.end(),
                                   [&](const Mask& m) { return m.boxed && !m.box.is_empty() && !copies(m); });
    tables_ = std::make_unique<Tables>(masks_, row_, sides_, boxes, parallel);

    for (int d = 0; d < row_.outer_rank; ++d) row_count_ *= layout.dims[d].size;
    // Below some 32768 elements, torch's own measure, waking threads takes longer than the work.
    const int64_t threads = layout.batch * layout.elements < kWorthAThread ? 1 : parallel.threads;
    // Threads take the next tile when they are done with one: a box makes some of them empty. So there are several for each,
    // unless they would be short.
    const int64_t each = std::max<int64_t>(1, std::min(kTilesEach, layout.elements / (kWorthATile * threads)));
    const int64_t fair = threads == 1 ? layout.elements : ceil_div(layout.elements, each * threads);
    whole_samples_ = layout.elements * size_ <= kTileBytes && (threads == 1 || layout.batch >= kWorthAPart * threads);
    const int64_t wanted = whole_samples_ ? layout.elements : fair;
    const int64_t most = std::max<int64_t>(2 * kCacheLine / size_, std::min(kTileBytes / size_, wanted));
    rows_per_tile_ = even_groups(row_count_, most / row_.length);
    piece_ = rows_per_tile_ > 1 ? row_.length : even_groups(row_.length, most);
    pieces_ = ceil_div(row_.length, piece_);
    const int64_t tiles = pieces_ * ceil_div(row_count_, rows_per_tile_);
    cut_walk(whole_samples_ && threads > 1 ? std::min(kTilesEach * threads, layout.batch / kWorthAPart) : 1, parallel);
    const auto parts = static_cast<int64_t>(parts_.size()) - 1;
    std::atomic<int64_t> next{0};
    parallel(threads, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      int64_t placed = -1;
      for (; begin < end; ++begin) {
        for (int64_t t = next++; t < tiles * parts; t = next++) {
          if (t / parts != placed) place(placed = t / parts, scratch);
          const int64_t first = parts_[t % parts], stop = parts_[t % parts + 1];
          if (args_.adjoint) {
            adjoint_tile(first, stop, scratch);
          } else {
            mix_tile(first, stop, scratch);
          }
        }
      }
    });
  }

 private:
  // What one thread needs while it walks a tile.
  struct Scratch {
    explicit Scratch(const Mixer& m) {
      const int64_t elements = m.rows_per_tile_ * m.piece_;
      rows.reserve(m.rows_per_tile_);
      // Kept by the thread: memory given back to the system costs a page fault for each 4 KiB of it the next time.
      thread_local std::vector<char> memory;
      int64_t bytes = 0;
      const auto next = [&](int64_t n) { return std::exchange(bytes, bytes + ceil_div(n, kCacheLine) * kCacheLine); };
      const int64_t w_at = next(kLinks * kBlock * sizeof(float)), shared_w_at = next(elements * sizeof(float));
      const int64_t lane_at = next(m.packed_ ? 0 : (2 * kLinks + 1) * kBlock * m.size_);
      const int64_t saved_at = next(m.in_place_ ? elements * m.size_ : 0);
      if (static_cast<int64_t>(memory.size()) < bytes) resize(memory, bytes, "the tiles that are mixed at a time");
      w = reinterpret_cast<float*>(memory.data() + w_at);
      shared_w = reinterpret_cast<float*>(memory.data() + shared_w_at);
      lane = memory.data() + lane_at;
      saved = memory.data() + saved_at;
    }
    std::vector<Span> runs;  // of a row of a Fourier mask or a grid
    std::vector<RowAt> rows;
    bool adjoin;              // whether the rows lie behind each other
    int64_t begin, end;       // of every row
    int32_t low[3], high[3];  // the coordinates of the rows, the last included
    float *w, *shared_w;  // of a block of each sample of a chain; of the tile, where all samples have one mask
    char *lane, *saved;   // blocks gathered from memory that is not contiguous; the tile of the first sample of a cycle
  };

  // Some elements of a tile: a part of a row, or several rows that adjoin.
  struct Block {
    const RowAt* row;
    int64_t rows, begin, end;
    int64_t offset;  // in the tile

    int64_t elements() const { return rows * (end - begin); }
  };

  // Cuts the walk along the cycles into parts for threads, but no cycle that is one chain. In place, what a part needs of a
  // sample that another one may have overwritten is kept aside before any of them begins.
  void cut_walk(int64_t parts, const Parallel& parallel) {
    const std::vector<int64_t>&order = cycles_.order, &start = cycles_.start;
    parts_.reserve(parts + 1);
    parts_.push_back(0);
    for (int64_t p = 1, cut_before = -1; p < parts; ++p) {
      int64_t at = args_.layout.batch * p / parts;
      const auto cycle = std::upper_bound(start.begin(), start.end(), at) - 1;
      if (cycle[1] - cycle[0] <= kLinks) at = cycle[1];
      parts_.push_back(at);
      if (!in_place_ || at == cycle[0] || at == cycle[1]) continue;
      if (cycle[0] != cut_before) heads_.push_back({order[cycle[0]], order[cycle[1] - 1]});
      cut_before = cycle[0];
      heads_.push_back({order[at], order[at - 1]});
    }
    parts_.push_back(args_.layout.batch);
    if (heads_.empty()) return;
    const auto count = static_cast<int64_t>(heads_.size());
    kept_ = unwritten<char>(count * kept_bytes(), "the samples that parts of a batch begin with");
    parallel(count, 1 + kWorthAThread / args_.layout.elements, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      place(0, scratch);
      for (int64_t h = begin; h < end; ++h) {
        scratch.saved = kept_.get() + h * kept_bytes();
        save(heads_[h].sample, heads_[h].needed_by, scratch);
      }
    });
  }
  int64_t kept_bytes() const { return args_.layout.elements * size_; }

  // The sample as it was, if it is one that parts begin with.
  char* kept(int64_t sample) const {
    const auto found = std::find_if(heads_.begin(), heads_.end(), [&](const Head& head) { return head.sample == sample; });
    return found == heads_.end() ? nullptr : kept_.get() + (found - heads_.begin()) * kept_bytes();
  }

  // The rows of a tile; of a mask for the whole batch that copies no others, those that it reaches.
  void place(int64_t tile, Scratch& s) const {
    const Layout& layout = args_.layout;
    const int64_t first = tile / pieces_ * rows_per_tile_;
    s.rows.resize(std::min(rows_per_tile_, row_count_ - first));
    s.begin = tile % pieces_ * piece_;
    s.end = std::min(row_.length, s.begin + piece_);
    s.adjoin = packed_;
    for (size_t r = 0; r < s.rows.size(); ++r) {
      RowAt& row = s.rows[r];
      row = {0, 0, {0, 0, 0}};
      int64_t index = first + static_cast<int64_t>(r);
      for (int d = row_.outer_rank - 1; d >= 0; --d) {
        const Dim& dim = layout.dims[d];
        const int64_t at = index % dim.size;
        index /= dim.size;
        row.src += at * dim.src;
        row.dst += at * dim.dst;
        if (dim.axis >= 0) row.at[dim.axis] = static_cast<int32_t>(at);
      }
      if (r > 0) {
        const RowAt& before = s.rows[r - 1];
        s.adjoin = s.adjoin && row.src - before.src == row_.length && row.dst - before.dst == row_.length;
      }
      for (int axis = 0; axis < 3; ++axis) {
        s.low[axis] = r == 0 ? row.at[axis] : std::min(s.low[axis], row.at[axis]);
        s.high[axis] = r == 0 ? row.at[axis] : std::max(s.high[axis], row.at[axis]);
      }
    }
    if (!args_.plan.shared || way_of(masks_[0]) != kCopied || !only_box(masks_[0])) return;
    const auto reached = std::remove_if(s.rows.begin(), s.rows.end(), [&](const RowAt& row) { return !reaches(masks_[0], row); });
    s.rows.erase(reached, s.rows.end());
  }

  // Blocks of so many elements and rows at most. What is gathered is always in blocks of kBlock.
  template <class F>
  void for_blocks(const Scratch& s, int64_t most, int64_t most_rows, const F& f) const {
    const int64_t rows = static_cast<int64_t>(s.rows.size()), width = s.end - s.begin;
    const int64_t together = s.adjoin ? std::max<int64_t>(1, std::min(most / width, most_rows)) : 1;
    const int64_t step = packed_ ? most : kBlock;
    for (int64_t row = 0; row < rows; row += together) {
      for (int64_t begin = s.begin; begin < s.end; begin += step) {
        const int64_t end = std::min(s.end, begin + step);
        f(Block{&s.rows[row], std::min(together, rows - row), begin, end, row * width + begin - s.begin});
      }
    }
  }

  const Mask& mask(int64_t i) const { return masks_[args_.plan.shared ? 0 : i]; }
  int64_t table(int64_t i) const { return args_.plan.shared ? 0 : i; }
  const char* src(int64_t i, const RowAt& row) const {
    return static_cast<const char*>(args_.src) + (i * args_.layout.src_batch + row.src) * size_;
  }
  char* dst(int64_t i, const RowAt& row) const {
    return static_cast<char*>(args_.dst) + (i * args_.layout.dst_batch + row.dst) * size_;
  }

  // ---- Masks ----

  // A row cut where a box starts and ends: the same for every row that crosses the box. Other masks are one span, which varies.
  struct Cut {
    int n;
    Span inside[3];
    Span outside;
    const Mask* mask;
    int64_t sample;
  };

  Cut cut(int64_t i, int64_t begin, int64_t end) const {
    const Mask& m = mask(i);
    Cut made{0, {}, {begin, end, m.boxed ? m.box.outer : kVaries}, &m, i};
    if (!m.boxed || m.box.is_empty()) return made;
    int64_t x0 = begin, x1 = end;
    if (row_.axis >= 0) {
      x0 = std::min(end, std::max(begin, m.box.first[row_.axis] * row_.inner));
      x1 = std::max(x0, std::min(end, m.box.stop[row_.axis] * row_.inner));
    }
    if (begin < x0) made.inside[made.n++] = {begin, x0, m.box.outer};
    if (x0 < x1) made.inside[made.n++] = {x0, x1, m.box.inner};
    if (x1 < end) made.inside[made.n++] = {x1, end, m.box.outer};
    return made;
  }

  struct Spans {
    const Span* at;
    int n;
  };

  // The first pixel of a row, and the way from one to the next along it.
  int64_t first_pixel(const RowAt& row) const {
    int64_t q = 0;
    for (int axis = 0; axis < 3; ++axis) q += axis == row_.axis ? 0 : row.at[axis] * pixel_step(args_.plan.pixels, axis);
    return q;
  }
  int64_t step_along() const { return row_.axis < 0 ? 0 : pixel_step(args_.plan.pixels, row_.axis); }

  // The runs of equal pixels of a row.
  Spans runs(const Cut& cut, const RowAt& row, std::vector<Span>& found) const {
    const PixelsOf pixels(args_.plan.pixels, cut.sample);
    const int64_t first = first_pixel(row), step = step_along(), stop = (cut.outside.end + row_.inner - 1) / row_.inner;
    found.clear();
    for (int64_t begin = cut.outside.begin, end; begin < cut.outside.end; begin = end) {
      const int64_t pixel = begin / row_.inner, q = first + pixel * step;
      end = step == 0 ? cut.outside.end : std::min(cut.outside.end, (pixel + pixels.run(q, step, stop - pixel)) * row_.inner);
      found.push_back({begin, end, pixels.bit(q) ? 1.0f : 0.0f});
    }
    return {found.data(), static_cast<int>(found.size())};
  }

  // The cells of a row, equal ones together.
  Spans cells(const Cut& cut, const RowAt& row, std::vector<Span>& found) const {
    const int64_t sample = table(cut.sample), stop = (cut.outside.end + row_.inner - 1) / row_.inner;
    const auto of = row_of(bit_cast<Grid>(args_.plan.masks[sample]), row.at, row_.axis, args_.plan, sample, kLoad);
    found.clear();
    for (int64_t begin = cut.outside.begin, end; begin < cut.outside.end; begin = end) {
      const auto pixel = static_cast<int32_t>(begin / row_.inner);
      end = row_.axis < 0 ? cut.outside.end : std::min(cut.outside.end, std::min(stop, of.next(pixel)) * row_.inner);
      const float w = of(row_.axis < 0 ? 0 : pixel);
      if (!found.empty() && found.back().w == w) {
        found.back().end = end;
      } else {
        found.push_back({begin, end, w});
      }
    }
    return {found.data(), static_cast<int>(found.size())};
  }

  // The spans of one row; runs are kept in `found`.
  Spans spans(const Cut& cut, const RowAt& row, std::vector<Span>& found) const {
    if (cut.mask->bits) return runs(cut, row, found);
    if (cut.mask->grid) return cells(cut, row, found);
    return cut.n > 0 && reaches(*cut.mask, row) ? Spans{cut.inside, cut.n} : Spans{&cut.outside, 1};
  }

  bool reaches(const Mask& m, const RowAt& row) const { return m.box.crosses(row.at, row_.axis); }

  template <class F>
  void for_spans(const Cut& cut, const RowAt& row, std::vector<Span>& kept, const F& f) const {
    const Spans found = spans(cut, row, kept);
    for (int k = 0; k < found.n; ++k) f(found.at[k]);
  }

  void factored(int64_t i, const RowAt& row, int64_t begin, int64_t end, float* w) const {
    const Factors factors = tables_->factors(table(i), row.at);
    const bool complement = mask(i).bell.is_complement();
    if (row_.axis >= 0) {
      kernels_.gaussian(w, tables_->row(table(i)) + begin, end - begin, factors, complement);
    } else {
      std::fill(w, w + (end - begin), complement ? 1.0f - factors.before : factors.before);
    }
  }

  // The mask of sample i along a span in which it varies. Out of line: within weights() all families would take the registers of
  // its loop, in which boxes do nothing but fill.
  __attribute__((noinline)) void varying(int64_t i, const RowAt& row, const Span& span, float* w) const {
    if (mask(i).levels) {
      const PixelsOf pixels(args_.plan.pixels, i);
      const int64_t first = first_pixel(row), step = step_along();
      for (int64_t k = span.begin; k < span.end; ++k) w[k - span.begin] = pixels.weight(first + k / row_.inner * step);
      return;
    }
    of_kind(args_.plan.masks[table(i)], [&](const auto& family) {
      const auto weight = row_of(family, row.at, row_.axis, args_.plan, i, kLoad);
      for (int64_t k = span.begin; k < span.end; ++k) w[k - span.begin] = weight(static_cast<int32_t>(k / row_.inner));
    });
  }

  // The mask of sample i, a weight for each element of the block.
  void weights(int64_t i, const Block& block, std::vector<Span>& kept, float* w) const {
    const int64_t width = block.end - block.begin;
    if (mask(i).factored) {
      for (int64_t r = 0; r < block.rows; ++r) factored(i, block.row[r], block.begin, block.end, w + r * width);
      return;
    }
    if (mask(i).bits && row_.inner == 1 && step_along() == 1) {
      const uint32_t* bits = PixelsOf(args_.plan.pixels, i).bits();
      for (int64_t r = 0; r < block.rows; ++r) {
        kernels_.fourier.expand(w + r * width, bits, first_pixel(block.row[r]) + block.begin, width);
      }
      return;
    }
    const Cut made = cut(i, block.begin, block.end);
    for (int64_t r = 0; r < block.rows; ++r, w += width) {
      for_spans(made, block.row[r], kept, [&](const Span& span) {
        float* at = w + (span.begin - block.begin);
        if (varies(*made.mask, span.w)) {
          varying(i, block.row[r], span, at);
        } else {
          std::fill(at, at + (span.end - span.begin), span.w);
        }
      });
    }
  }

  // Whether a sample is mixed by copying: where each pixel of its mask is 0 or 1. Where everything is read and written anyway,
  // as out of place, or what is copied is in many pieces, blending in long streams is faster, unless types are converted.
  bool copies(const Mask& m) const {
    if (m.bits || m.grid) return size_ < 4;
    return m.boxed && (size_ < 4 || in_place_) && is_hard(m.box.outer) && is_hard(m.box.inner);
  }

  enum MixedBy { kBlended, kCopied, kBoxCopied };
  MixedBy way_of(const Mask& m) const {
    if (!copies(m)) return kBlended;
    return whole_samples_ && packed_ && only_box(m) ? kBoxCopied : kCopied;
  }

  // Whether a mask is one number in the whole tile: no row of it reaches into a box.
  bool is_number(const Mask& m, const Scratch& s) const {
    const Box& box = m.box;
    if (!m.boxed || box.is_empty()) return m.boxed;
    for (int axis = 0; axis < 3; ++axis) {
      if (axis != row_.axis && (box.stop[axis] <= s.low[axis] || box.first[axis] > s.high[axis])) return true;
    }
    return row_.axis >= 0 && (box.stop[row_.axis] * row_.inner <= s.begin || box.first[row_.axis] * row_.inner >= s.end);
  }
  // And both samples show.
  bool is_share(const Mask& m, const Scratch& s) const { return is_number(m, s) && !is_hard(m.box.outer); }

  // Whether mixing a sample in place leaves what is outside of a box as it is.
  bool only_box(const Mask& m) const { return in_place_ && m.boxed && m.box.outer == 1.0f; }

  // Or the whole tile.
  bool untouched(const Mask& m, const Scratch& s) const {
    return only_box(m) && (m.box.inner == 1.0f || is_number(m, s));
  }

  // ---- Memory ----

  void copy_strided(char* out, int64_t out_step, const char* in, int64_t in_step, int64_t n) const {
    if (out_step == 1 && in_step == 1) {
      std::memcpy(out, in, n * size_);
      return;
    }
    switch (size_) {
      case 1: return strided<uint8_t>(out, out_step, in, in_step, n);
      case 2: return strided<uint16_t>(out, out_step, in, in_step, n);
      case 4: return strided<uint32_t>(out, out_step, in, in_step, n);
      default: return strided<uint64_t>(out, out_step, in, in_step, n);
    }
  }
  template <class T>
  static void strided(char* out, int64_t out_step, const char* in, int64_t in_step, int64_t n) {
    T* o = reinterpret_cast<T*>(out);
    const T* x = reinterpret_cast<const T*>(in);
    for (int64_t k = 0; k < n; ++k) o[k * out_step] = x[k * in_step];
  }

  // The block of sample i: contiguous memory as it is, other memory gathered into lane `lane`.
  const char* read(int64_t i, const Block& block, int lane, Scratch& s) const {
    const char* from = src(i, *block.row) + block.begin * row_.src_step * size_;
    if (row_.src_step == 1) return from;
    char* to = s.lane + lane * kBlock * size_;
    copy_strided(to, 1, from, row_.src_step, block.elements());
    return to;
  }

  // Where to write the block of sample i, and what to call then.
  char* target(int64_t i, const Block& block, int lane, Scratch& s) const {
    return row_.dst_step == 1 ? dst(i, *block.row) + block.begin * size_ : s.lane + lane * kBlock * size_;
  }
  void written(int64_t i, const Block& block, const char* from) const {
    if (row_.dst_step == 1) return;
    copy_strided(dst(i, *block.row) + block.begin * row_.dst_step * size_, row_.dst_step, from, 1, block.elements());
  }

  // ---- Mixing ----

  // The walk from `first` to `stop`.
  void mix_tile(int64_t first, int64_t stop, Scratch& s) const {
    if (args_.plan.shared) {
      const Mask& m = masks_[0];
      if (untouched(m, s)) return;
      if (!copies(m) && !is_share(m, s)) {
        for_blocks(s, kBlock, kBlock, [&](const Block& block) { weights(0, block, s.runs, s.shared_w + block.offset); });
      }
    }
    Chain pair{};
    auto end = std::upper_bound(cycles_.start.begin(), cycles_.start.end(), first);  // of the cycle that `first` is in
    for (int64_t at = first, next; at < stop; at = next, ++end) {
      next = std::min(stop, *end);
      mix_cycle(&cycles_.order[at], next - at, pair, s);
    }
    if (pair.links != 0) blend_chain(pair, s);
  }

  // links + 1 samples, each the partner of the one before it, that are mixed together, all but the last.
  struct Chain {
    int links;  // or kTwoPairs
    int64_t sample[kLinks + 1];
    bool closes;  // it ends where its cycle begins
    bool whole;   // and begins there
  };

  // A cycle, or what a part of the walk has of it. `pair`: of samples that are each other's partners, waiting for another such
  // pair.
  void mix_cycle(const int64_t* order, int64_t length, Chain& pair, Scratch& s) const {
    const int64_t after = args_.plan.partner[order[length - 1]];
    if (in_place_ && after == order[length - 1]) return;  // paired with itself
    const auto skipped = [&](int64_t k) { return !args_.plan.shared && untouched(mask(order[k]), s); };
    const auto way = [&](int64_t k) { return way_of(mask(order[k])); };
    bool whole = length <= kLinks && after == order[0];
    for (int64_t k = 0; k < length && whole; ++k) whole = !skipped(k) && way(k) == way(0);
    char* const own = s.saved;
    if (in_place_ && !whole && !skipped(length - 1)) {
      if (char* const head = kept(after)) {
        s.saved = head;
      } else {
        save(order[0], order[length - 1], s);
      }
    }
    for (int64_t k = 0, links; k < length; k += links) {
      links = 1;
      if (skipped(k)) continue;
      while (links < kLinks && k + links < length && !skipped(k + links) && way(k + links) == way(k)) ++links;
      Chain chain{static_cast<int>(links), {}, k + links == length, whole};
      for (int64_t l = 0; l <= links; ++l) chain.sample[l] = k + l == length ? after : order[k + l];
      if (way(k) == kBoxCopied) {
        copy_boxes(chain, s);
      } else if (way(k) == kCopied) {
        copy_chain(chain, s);
      } else if (!whole || length != 2) {
        blend_chain(chain, s);
      } else if (pair.links == 0) {
        pair = chain;
      } else {
        blend_chain({kTwoPairs, {pair.sample[0], pair.sample[1], order[0], order[1]}, true, true}, s);
        pair.links = 0;
      }
    }
    s.saved = own;
  }

  // Keeps what `last` will need of its partner `first`: where its mask lets anything of it through.
  void save(int64_t first, int64_t last, Scratch& s) const {
    if (way_of(mask(last)) == kBoxCopied) return save_box(first, mask(last).box, s);
    const Cut made = cut(last, s.begin, s.end);
    char* to = s.saved;
    for (const RowAt& row : s.rows) {
      save_row(first, row, made, to, s);
      to += (s.end - s.begin) * size_;
    }
  }
  void save_row(int64_t first, const RowAt& row, const Cut& last, char* to, Scratch& s) const {
    for_spans(last, row, s.runs, [&](const Span& span) {
      if (span.w == 1.0f) return;
      copy_strided(to + (span.begin - s.begin) * size_, 1, src(first, row) + span.begin * row_.src_step * size_, row_.src_step,
                   span.end - span.begin);
    });
  }

  void blend_chain(const Chain& chain, Scratch& s) const {
    const int links = samples_of(chain.links);
    float one[kLinks];
    bool numbers = true;  // other than 0 and 1, one for each sample
    bool tabled = !args_.plan.shared, complements = false;
    for (int l = 0; l < links; ++l) {
      const Mask& m = mask(chain.sample[l]);
      one[l] = m.box.outer;
      numbers = numbers && is_share(m, s);
      tabled = tabled && tables_->has(chain.sample[l]);
      complements = complements || m.bell.is_complement();
    }
    const int64_t most = numbers || tabled || args_.plan.shared ? kTileBytes : kBlock;
    for_blocks(s, most, tabled && !numbers ? kScaledRows : most, [&](const Block& block) {
      const void* in[kLinks + 1];
      void* out[kLinks];
      for (int l = 0; l < links; ++l) out[l] = target(chain.sample[l], block, l, s);
      for (int l = 0; l < links; ++l) in[l] = read(chain.sample[l], block, kLinks + l, s);
      if (in_place_ && chain.closes && !chain.whole) {
        in[links] = s.saved + block.offset * size_;
      } else if (chain.links != kTwoPairs) {
        in[links] = read(chain.sample[links], block, kLinks + links, s);
      }
      const float* w[kLinks];
      if (numbers) {
        rows_.uniform(chain.links, out, in, block.elements(), one);
      } else if (tabled) {
        ScaledRow scaled[kScaledRows];
        for (int l = 0; l < links; ++l) scale_rows(chain.sample[l], block, l, scaled);
        rows_.scaled(chain.links, out, in, block.end - block.begin, scaled, block.rows, complements);
      } else {
        for (int l = 0; l < links; ++l) {
          w[l] = args_.plan.shared ? s.shared_w + block.offset : s.w + l * kBlock;
          if (!args_.plan.shared) weights(chain.sample[l], block, s.runs, s.w + l * kBlock);
        }
        rows_.weighted(chain.links, out, in, block.elements(), w);
      }
      for (int l = 0; l < links; ++l) written(chain.sample[l], block, static_cast<const char*>(out[l]));
    });
  }

  // The rows of a block of sample i, which is link l.
  void scale_rows(int64_t i, const Block& block, int l, ScaledRow* rows) const {
    const Mask& m = mask(i);
    if (m.factored) {
      const float *z = tables_->axis(i, 0), *y = tables_->axis(i, 1), *x = tables_->axis(i, 2) + block.begin;
      const bool complement = m.bell.is_complement();
      for (int64_t r = 0; r < block.rows; ++r) {
        const float factor = z[block.row[r].at[0]] * y[block.row[r].at[1]];
        rows[r].table[l] = x;
        rows[r].factor[l] = complement ? -factor : factor;
      }
    } else {
      const float *beside = tables_->box_row(i, false) + block.begin, *through = tables_->box_row(i, true) + block.begin;
      for (int64_t r = 0; r < block.rows; ++r) {
        rows[r].table[l] = reaches(m, block.row[r]) ? through : beside;
        rows[r].factor[l] = 1.0f;
      }
    }
  }

  // Row by row, so that what a sample takes of the next one is taken before that is overwritten.
  void copy_chain(const Chain& chain, Scratch& s) const {
    Cut cuts[kLinks];
    for (int l = 0; l < chain.links; ++l) cuts[l] = cut(chain.sample[l], s.begin, s.end);
    const int64_t rows = static_cast<int64_t>(s.rows.size());
    const int last = chain.links - 1;
    const bool ahead = in_place_ && row_.length * row_.src_step * size_ >= kLongRow;
    const bool swaps = packed_ && chain.whole && chain.links == 2 && only_box(*cuts[0].mask) && only_box(*cuts[1].mask);
    for (int64_t r = 0; r < rows; ++r) {
      const RowAt& row = s.rows[r];
      if (swaps) {
        if (ahead && r + kRowsAhead < rows) {
          prefetch(chain.sample[1], s.rows[r + kRowsAhead], cuts[0], s.runs);
          prefetch(chain.sample[0], s.rows[r + kRowsAhead], cuts[1], s.runs);
        }
        swap_row(chain.sample[0], chain.sample[1], row, cuts);
        continue;
      }
      char* kept = s.saved + (chain.whole ? 0 : r * (s.end - s.begin) * size_);
      if (in_place_ && chain.whole) save_row(chain.sample[0], row, cuts[last], kept, s);
      for (int l = 0; l <= last; ++l) {
        if (ahead && r + kRowsAhead < rows) prefetch(chain.sample[l + 1], s.rows[r + kRowsAhead], cuts[l], s.runs);
        if (in_place_ && l == last && chain.closes) {
          copy_row(chain.sample[l], row, cuts[l], kept - s.begin * size_, 1, s.runs);
        } else {
          copy_row(chain.sample[l], row, cuts[l], src(chain.sample[l + 1], row), row_.src_step, s.runs);
        }
      }
    }
  }

  // Boxes of samples that are one tile, sample after sample.
  void copy_boxes(const Chain& chain, const Scratch& s) const {
    if (chain.whole) save_box(chain.sample[0], mask(chain.sample[chain.links - 1]).box, s);
    for (int l = 0; l < chain.links; ++l) {
      const bool last = chain.closes && l == chain.links - 1;
      for_box(mask(chain.sample[l]).box, [&](int64_t place, int64_t step, int64_t kept, int64_t rows, int64_t bytes) {
        const char* from = last ? s.saved + kept : sample(chain.sample[l + 1]) + place;
        kernels_.copy_rows(sample(chain.sample[l]) + place, step, from, last ? row_.length * size_ : step, rows, bytes);
      });
    }
  }
  void save_box(int64_t i, const Box& box, const Scratch& s) const {
    for_box(box, [&](int64_t place, int64_t step, int64_t kept, int64_t rows, int64_t bytes) {
      kernels_.copy_rows(s.saved + kept, row_.length * size_, sample(i) + place, step, rows, bytes);
    });
  }
  char* sample(int64_t i) const { return static_cast<char*>(args_.dst) + i * args_.layout.dst_batch * size_; }

  // f of what a box holds of rows along the innermost dim outside of them: the place of the first in a sample, the step to the
  // next, its place where all rows lie behind each other, how many rows there are, and how much of each. All in bytes.
  template <class F>
  void for_box(const Box& box, const F& f) const {
    for (int axis = 0; axis < 3; ++axis) {
      if (sides_[axis] == 1 && (box.first[axis] > 0 || box.stop[axis] < 1)) return;  // such an axis has no dim below
    }
    const Span along = row_.axis < 0 ? Span{0, row_.length, 0.0f} : inside(box, row_.axis, row_.length, row_.inner);
    if (along.begin < along.end) for_rows(box, along, 0, 0, 0, f);
  }
  template <class F>
  void for_rows(const Box& box, const Span& along, int d, int64_t place, int64_t row, const F& f) const {
    const Dim dim = row_.outer_rank == 0 ? Dim{1, 0, 0, -1} : args_.layout.dims[d];
    const Span across = dim.axis < 0 ? Span{0, dim.size, 0.0f} : inside(box, dim.axis, dim.size, 1);
    place += across.begin * dim.dst;
    row = row * dim.size + across.begin;
    if (d + 1 >= row_.outer_rank) {
      return f((place + along.begin) * size_, dim.dst * size_, (row * row_.length + along.begin) * size_,
               across.end - across.begin, (along.end - along.begin) * size_);
    }
    for (int64_t i = across.begin; i < across.end; ++i, ++row, place += dim.dst) for_rows(box, along, d + 1, place, row, f);
  }
  // Where a box is along an axis, whose every coordinate has so many elements.
  static Span inside(const Box& box, int axis, int64_t length, int64_t inner) {
    const int64_t begin = std::max<int64_t>(0, box.first[axis] * inner);
    return {begin, std::max(begin, std::min(length, box.stop[axis] * inner)), 0.0f};
  }

  // One row of two samples that are each other's partners: swapped where both boxes are, copied where one is.
  void swap_row(int64_t i, int64_t j, const RowAt& row, const Cut* cuts) const {
    char *x = dst(i, row), *y = dst(j, row);
    const auto copy = [&](char* to, const char* from, int64_t begin, int64_t end) {
      if (begin < end) std::memcpy(to + begin * size_, from + begin * size_, (end - begin) * size_);
    };
    const Span of_x = box_along(cuts[0], row), of_y = box_along(cuts[1], row);
    const int64_t begin = std::max(of_x.begin, of_y.begin), end = std::min(of_x.end, of_y.end);
    if (begin >= end) {
      copy(x, y, of_x.begin, of_x.end);
      copy(y, x, of_y.begin, of_y.end);
      return;
    }
    std::swap_ranges(x + begin * size_, x + end * size_, y + begin * size_);
    copy(x, y, of_x.begin, begin);
    copy(x, y, end, of_x.end);
    copy(y, x, of_y.begin, begin);
    copy(y, x, end, of_y.end);
  }

  // Where a row is in the box of a mask that is 1 outside of it.
  Span box_along(const Cut& cut, const RowAt& row) const {
    if (!reaches(*cut.mask, row)) return {0, 0, 0.0f};
    for (int k = 0; k < cut.n; ++k) {
      if (cut.inside[k].w != 1.0f) return cut.inside[k];
    }
    return {0, 0, 0.0f};
  }

  // One row of sample i. `b` is the partner's row, at its own step.
  void copy_row(int64_t i, const RowAt& row, const Cut& cut, const char* b, int64_t b_step, std::vector<Span>& runs) const {
    const char* a = src(i, row);
    char* out = dst(i, row);
    if (only_box(*cut.mask) && !reaches(*cut.mask, row)) return;
    for_spans(cut, row, runs, [&](const Span& span) {
      if (span.w == 1.0f && in_place_) return;
      const char* from = span.w == 1.0f ? a : b;
      const int64_t step = span.w == 1.0f ? row_.src_step : b_step;
      copy_strided(out + span.begin * row_.dst_step * size_, row_.dst_step, from + span.begin * step * size_, step,
                   span.end - span.begin);
    });
  }

  // Asks for the row of a sample whose partner has this cut, before its turn. The hardware foresees the rest of a row, but
  // not the jump to the next one.
  void prefetch(int64_t next, const RowAt& row, const Cut& cut, std::vector<Span>& runs) const {
    if (only_box(*cut.mask) && !reaches(*cut.mask, row)) return;
    const char* base = src(next, row);
    for_spans(cut, row, runs, [&](const Span& span) {
      if (span.w == 1.0f) return;
      const char* begin = base + span.begin * row_.src_step * size_;
      const char* stop = base + std::min(span.end * row_.src_step * size_, span.begin * row_.src_step * size_ + kAheadBytes);
      for (const char* at = begin; at < stop; at += kCacheLine) {
        __builtin_prefetch(at, 0, 3);
        asm volatile("" : : "r"(at));  // else gcc finds that this function does nothing, and drops every call of it
      }
    });
  }

  // The gradient of sample j = p(i): M_j·g_j and what i lent, (1-M_i)·g_i.
  void adjoint_tile(int64_t first, int64_t stop, Scratch& s) const {
    float *own = s.w, *lent = own + kBlock;
    for (int64_t at = first; at < stop; ++at) {
      const int64_t i = cycles_.order[at], j = args_.plan.partner[i];
      const bool numbers = is_number(mask(i), s) && is_number(mask(j), s);
      for_blocks(s, kBlock, kBlock, [&](const Block& block) {
        char* out = target(j, block, 0, s);
        const char *g = read(j, block, 1, s), *h = read(i, block, 2, s);
        if (numbers) {
          rows_.adjoint_uniform(out, g, h, block.elements(), mask(j).box.outer, mask(i).box.outer);
        } else {
          weights(j, block, s.runs, own);
          weights(i, block, s.runs, lent);
          rows_.adjoint_weighted(out, g, h, block.elements(), own, lent);
        }
        written(j, block, out);
      });
    }
  }

  const MixArgs& args_;
  const Kernels& kernels_;
  const RowKernels& rows_;
  const int64_t size_;
  const Row row_;
  const bool in_place_;
  const Cycles cycles_;
  const bool packed_;  // the elements of a row lie behind each other
  std::vector<Mask> masks_;
  std::unique_ptr<Tables> tables_;
  int64_t sides_[3] = {1, 1, 1};  // of the images
  int64_t row_count_ = 1, rows_per_tile_;
  int64_t piece_, pieces_;  // of a row
  bool whole_samples_;      // whether a tile is a sample
  std::vector<int64_t> parts_;  // where parts of the walk begin, and where the last one stops
  struct Head {
    int64_t sample, needed_by;
  };
  std::vector<Head> heads_;  // samples that parts begin with, kept aside
  std::unique_ptr<char[]> kept_;
};

// A new batch is new memory, and the kernel hands it out page by page as it is written: 4 KiB at a time that takes longer
// than the mixing. Large pages where the system leaves the choice to the program (Linux's "madvise" mode).
void ask_for_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kLargePage = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage * kLargePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (begin + 2 * kLargePage <= end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

void mix(const MixArgs& args, const Parallel& parallel) {
  const Layout& layout = args.layout;
  if (layout.batch == 0 || layout.elements == 0) return;
  if (args.src != args.dst) {
    ask_for_large_pages(args.dst, layout.batch * layout.elements * element_size(args.type));
  }
  Mixer(args, parallel);
}

void masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, const Parallel& parallel) {
  const Row row{size[2], 1, 1, 1, 2, 0};
  const std::vector<Mask> masks = masks_of(plan, n, size);
  const Tables tables(masks, row, size, false, parallel);
  const int64_t pixels = size[0] * size[1] * size[2];
  parallel(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Mask& mask = masks[m];
      float* at = out + m * pixels;
      for (int32_t z = 0; z < size[0]; ++z) {
        for (int32_t y = 0; y < size[1]; ++y, at += size[2]) {
          const int32_t here[3] = {z, y, 0};
          if (mask.factored) {
            kernels().gaussian(at, tables.row(m), size[2], tables.factors(m, here), mask.bell.is_complement());
          } else if (mask.bits || mask.levels) {
            const PixelsOf pixels(plan.pixels, m);
            for (int64_t x = 0; x < size[2]; ++x) at[x] = pixels.weight((z * size[1] + y) * size[2] + x);
          } else {
            of_kind(plan.masks[m], [&](const auto& family) {
              const auto weight = row_of(family, here, 2, plan, m, kLoad);
              for (int32_t x = 0; x < size[2]; ++x) at[x] = weight(x);
            });
          }
        }
      }
    }
  });
}

}  // namespace fusedmix::cpu
