// Mixes a batch in one pass over memory, in place or not.
//
// The batch is cut into tiles: a few kilobytes at the same place of every sample. A tile is mixed for the whole batch at
// once, walking the cycles of the permutation: out[i] needs x[i] and x[p(i)], then out[p(i)] needs x[p(i)], still in the
// cache, and x[p(p(i))]. So every byte is read from memory once and written once; in place, only the tile of the first
// sample of a cycle is kept aside, for the last one. Tiles do not depend on each other: threads take different ones.
#include "mix.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../include/fusedmix/sampling.h"
#include "kernels.h"

namespace fusedmix::cpu {
namespace {

// A tile of one sample: two of them fit a first-level cache. Where partners come in pairs, a tile is swept row by row, two
// streams at a time, and the longer the streams the better.
constexpr int64_t kTileBytes = 16384, kPairTileBytes = 1 << 18;
constexpr int64_t kSweepBytes = 4096;  // of a row at a time, in a pair
constexpr int64_t kRowsAhead = 4;      // that are asked for before their turn, in a pair
constexpr int64_t kAheadBytes = 1024;  // of a stretch of a row
constexpr int64_t kCacheLine = 64;
constexpr int64_t kTilesEach = 8;  // for each thread, at least
constexpr int64_t kWorthAThread = 32768;  // elements
constexpr int64_t kAnchor = 1024;  // pixels

Mask mask_at(const PlanView& plan, int64_t i) {
  const int64_t row = plan.shared ? 0 : i;
  Mask mask{plan.kind[row], {}, {}, plan.value[2 * row], plan.value[2 * row + 1]};
  for (int axis = 0; axis < 3; ++axis) {
    mask.first[axis] = plan.geometry[6 * row + axis];
    mask.stop[axis] = plan.geometry[6 * row + 3 + axis];
  }
  return mask;
}

// The cycles of the permutation, one after another: sample order[k]'s partner is order[k+1], the last one's is the first.
struct Cycles {
  std::vector<int64_t> order, start;

  Cycles(const PlanView& plan, int64_t batch) {
    order.reserve(batch);
    std::vector<bool> seen(batch, false);
    for (int64_t i = 0; i < batch; ++i) {
      if (seen[i]) continue;
      start.push_back(static_cast<int64_t>(order.size()));
      for (int64_t j = i; !seen[j]; j = plan.partner[j]) {
        if (plan.partner[j] < 0 || plan.partner[j] >= batch) throw std::out_of_range("partner is not a permutation");
        seen[j] = true;
        order.push_back(j);
      }
      if (plan.partner[order.back()] != i) throw std::out_of_range("partner is not a permutation");
    }
    start.push_back(static_cast<int64_t>(order.size()));
  }

  int64_t longest() const {
    int64_t most = 0;
    for (size_t c = 0; c + 1 < start.size(); ++c) most = std::max(most, start[c + 1] - start[c]);
    return most;
  }
};

// exp(-rate·d²) along every axis, in float64 rounded once, for each mask of the batch that is a Gaussian: it is separable,
// so H+W exponentials serve H·W pixels. Along the row every element has its own entry.
class Tables {
 public:
  Tables(const PlanView& plan, int64_t masks, const Row& row, const int64_t* size, const Parallel& parallel) : row_axis_(row.axis) {
    int64_t n = 0;
    offset_.assign(masks, -1);
    for (int axis = 0; axis < 3; ++axis) {
      first_[axis] = n;
      n += axis == row.axis ? row.length : size[axis];
    }
    int64_t total = 0;
    for (int64_t m = 0; m < masks; ++m) {
      if (!is_gaussian(plan.kind[m])) continue;
      offset_[m] = total;
      total += n;
    }
    if (total == 0) return;
    values_.reset(new float[total]);
    parallel(masks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        if (offset_[m] < 0) continue;
        const Mask mask = mask_at(plan, plan.shared ? 0 : m);
        for (int axis = 0; axis < 3; ++axis) {
          along(mask, axis, size[axis], axis == row.axis ? row.inner : 1, values_.get() + offset_[m] + first_[axis]);
        }
      }
    });
  }

  // Along the row, from element 0.
  const float* row(int64_t mask) const { return values_.get() + offset_[mask] + first_[row_axis_ < 0 ? 0 : row_axis_]; }

  // The axes outside the row; all of them are before it where a row is in one pixel.
  Factors factors(int64_t mask, const int64_t* at) const {
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
  // From the centre outwards, exp(-r(d+1)²) = exp(-rd²)·q and the next q = q·exp(-2r): two exponentials for kAnchor pixels.
  // After d steps from an anchor that is off by up to d²·2^-53 of itself, as the error of the first q is raised to the d²;
  // anchors keep it below 2^-33, and what is made of it is rounded to float32.
  static void along(const Mask& mask, int axis, int64_t side, int64_t repeat, float* out) {
    const double rate = mask.outer, centre = mask.first[axis];
    const auto set = [&](int64_t c, double g) {
      for (int64_t k = 0; k < repeat; ++k) out[c * repeat + k] = static_cast<float>(g);
    };
    if (centre < 0 || centre >= static_cast<double>(side)) {  // not from our samplers
      for (int64_t c = 0; c < side; ++c) set(c, std::exp(-rate * ((c - centre) * (c - centre))));
      return;
    }
    const int64_t at = mask.first[axis], reach = std::max(at, side - 1 - at);
    const double step = std::exp(-2.0 * rate);
    double g = 1.0, q = 1.0;
    for (int64_t d = 0; d <= reach; ++d, g *= q, q *= step) {
      if (d % kAnchor == 0) {
        const double x = static_cast<double>(d);
        g = std::exp(-rate * (x * x));
        q = std::exp(-rate * (2.0 * x + 1.0));
      }
      if (g < 1e-60) g = q = 0.0;  // far below what float32 holds
      if (at + d < side) set(at + d, g);
      if (at - d >= 0) set(at - d, g);
    }
  }

  int row_axis_;
  int64_t first_[3];
  std::vector<int64_t> offset_;
  std::unique_ptr<float[]> values_;
};

// A row of a tile: where it starts in a sample, and its coordinates outside the row.
struct RowAt {
  int64_t src, dst;
  int64_t at[3];
};

// A stretch of a row in which the mask is one number, or varies.
struct Span {
  int64_t begin, end;
  float w;
};
// The w of a span that does: no number is it, as λ may be any.
constexpr float kVaries = std::numeric_limits<float>::quiet_NaN();
inline bool varies(float w) { return w != w; }

// The pixels of one Fourier mask.
class PixelsOf {
 public:
  PixelsOf(const Pixels& pixels, int64_t sample) : pixels_(pixels), base_(draw_index(pixels.per, sample, pixels.batch) * pixels.stride) {}

  bool soft() const { return pixels_.levels != nullptr; }
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
        cycles_(args.plan, args.layout.batch),
        in_place_(args.src == args.dst) {
    const Layout& layout = args.layout;
    int64_t sides[3] = {1, 1, 1};
    for (int d = 0; d < layout.rank; ++d) {
      if (layout.dims[d].axis >= 0) sides[layout.dims[d].axis] = layout.dims[d].size;
    }
    const int64_t masks = args.plan.shared ? 1 : layout.batch;
    masks_.reserve(masks);
    for (int64_t m = 0; m < masks; ++m) masks_.push_back(mask_at(args.plan, m));
    tables_ = std::make_unique<Tables>(args.plan, masks, row_, sides, parallel);

    row_count_ = 1;
    for (int d = 0; d < row_.outer_rank; ++d) row_count_ *= layout.dims[d].size;
    // Threads take the next tile when they are done with one: a box makes some of them empty. So there are several for each,
    // unless they would be shorter than a cache line or two.
    const int64_t most = (cycles_.longest() <= 2 ? kPairTileBytes : kTileBytes) / size_, least = 128 / size_;
    const int64_t fair = (layout.elements + kTilesEach * parallel.threads - 1) / (kTilesEach * parallel.threads);
    tile_ = std::max(least, std::min(most, fair));
    if (row_.length >= tile_) {
      rows_per_tile_ = 1;
      pieces_ = (row_.length + tile_ - 1) / tile_;
    } else {
      rows_per_tile_ = std::max<int64_t>(1, tile_ / row_.length);
      pieces_ = 1;
      tile_ = row_.length;
    }
    tiles_ = pieces_ * ((row_count_ + rows_per_tile_ - 1) / rows_per_tile_);
    std::atomic<int64_t> next{0};
    // Below some 32768 elements, torch's own measure, waking threads takes longer than the work.
    const bool alone = layout.batch * layout.elements < kWorthAThread;
    parallel(alone ? 1 : parallel.threads, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (; begin < end; ++begin) {
        for (int64_t t = next++; t < tiles_; t = next++) {
          place(t, scratch);
          if (args_.adjoint) {
            adjoint_tile(scratch);
          } else {
            mix_tile(scratch);
          }
        }
      }
    });
  }

 private:
  // What one thread needs while it walks a tile.
  struct Scratch {
    explicit Scratch(const Mixer& m) {
      rows.resize(m.rows_per_tile_);
      w.reset(new float[2 * m.tile_]);
      lane.reset(new char[3 * m.tile_ * m.size_]);
      if (m.in_place_) saved.reset(new char[m.rows_per_tile_ * m.tile_ * m.size_]);
    }
    std::vector<Span> runs[2];  // of a row of a Fourier mask, and of its partner's
    std::vector<RowAt> rows;
    int64_t begin, end;         // of every row
    int64_t low[3], high[3];    // the coordinates of the rows, the last included
    std::unique_ptr<float[]> w;
    std::unique_ptr<char[]> lane, saved;
  };

  void place(int64_t tile, Scratch& s) const {
    const Layout& layout = args_.layout;
    const int64_t first = tile / pieces_ * rows_per_tile_;
    s.rows.resize(std::min(rows_per_tile_, row_count_ - first));
    s.begin = tile % pieces_ * tile_;
    s.end = std::min(row_.length, s.begin + tile_);
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
        if (dim.axis >= 0) row.at[dim.axis] = at;
      }
      for (int axis = 0; axis < 3; ++axis) {
        s.low[axis] = r == 0 ? row.at[axis] : std::min(s.low[axis], row.at[axis]);
        s.high[axis] = r == 0 ? row.at[axis] : std::max(s.high[axis], row.at[axis]);
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

  // A row cut where a box starts and ends. The same for every row that the box reaches; other masks are one span, which varies.
  struct Cut {
    int n;
    Span inside[3];
    Span outside;
    const Mask* mask;
    int64_t sample;
  };

  Cut cut(int64_t i, int64_t begin, int64_t end) const {
    const Mask& m = mask(i);
    Cut made{0, {}, {begin, end, is_gaussian(m.kind) || is_fourier(m.kind) ? kVaries : m.outer}, &m, i};
    if (m.kind != kBox) return made;
    int64_t x0 = begin, x1 = end;
    if (row_.axis >= 0) {
      x0 = std::min(end, std::max(begin, m.first[row_.axis] * row_.inner));
      x1 = std::max(x0, std::min(end, m.stop[row_.axis] * row_.inner));
    }
    if (begin < x0) made.inside[made.n++] = {begin, x0, m.outer};
    if (x0 < x1) made.inside[made.n++] = {x0, x1, m.inner};
    if (x1 < end) made.inside[made.n++] = {x1, end, m.outer};
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

  // The runs of equal pixels of a row of a Fourier mask; a soft one varies.
  Spans runs(const Cut& cut, const RowAt& row, std::vector<Span>& found) const {
    const PixelsOf pixels(args_.plan.pixels, cut.sample);
    if (pixels.soft()) return {&cut.outside, 1};
    const int64_t first = first_pixel(row), step = step_along(), stop = (cut.outside.end + row_.inner - 1) / row_.inner;
    found.clear();
    for (int64_t begin = cut.outside.begin, end; begin < cut.outside.end; begin = end) {
      const int64_t pixel = begin / row_.inner, q = first + pixel * step;
      end = step == 0 ? cut.outside.end : std::min(cut.outside.end, (pixel + pixels.run(q, step, stop - pixel)) * row_.inner);
      found.push_back({begin, end, pixels.bit(q) ? 1.0f : 0.0f});
    }
    return {found.data(), static_cast<int>(found.size())};
  }

  // The spans of one row; those of a Fourier mask are kept in `found`.
  Spans spans(const Cut& cut, const RowAt& row, std::vector<Span>& found) const {
    if (is_fourier(cut.mask->kind)) return runs(cut, row, found);
    bool inside = cut.n > 0;
    for (int axis = 0; axis < 3; ++axis) {
      inside = inside && (axis == row_.axis || in_box(*cut.mask, axis, row.at[axis]));
    }
    return inside ? Spans{cut.inside, cut.n} : Spans{&cut.outside, 1};
  }

  template <class F>
  void for_spans(const Cut& cut, const RowAt& row, std::vector<Span>& kept, const F& f) const {
    const Spans found = spans(cut, row, kept);
    for (int k = 0; k < found.n; ++k) f(found.at[k]);
  }

  // Row element k of a row that starts at `base`: contiguous memory as it is, other memory gathered into `lane`.
  const char* read(const char* base, int64_t step, int64_t begin, int64_t end, char* lane) const {
    if (step == 1) return base + begin * size_;
    copy_strided(lane, 1, base + begin * step * size_, step, end - begin);
    return lane;
  }

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

  // One row of sample i. `b` is the partner's row, at its own step.
  void mix_row(int64_t i, const RowAt& row, const Cut& cut, const char* b, int64_t b_step, Scratch& s) const {
    const char* a = src(i, row);
    char* out = dst(i, row);
    for_spans(cut, row, s.runs[0], [&](const Span& span) {
      if (span.w == 1.0f && in_place_) return;
      const int64_t length = span.end - span.begin;
      char* to = out + span.begin * row_.dst_step * size_;
      if (span.w == 1.0f) {
        return copy_strided(to, row_.dst_step, a + span.begin * row_.src_step * size_, row_.src_step, length);
      }
      if (span.w == 0.0f) return copy_strided(to, row_.dst_step, b + span.begin * b_step * size_, b_step, length);
      const bool packed = row_.dst_step == 1;
      char* target = packed ? to : s.lane.get();
      const char* x = read(a, row_.src_step, span.begin, span.end, s.lane.get() + tile_ * size_);
      const char* y = read(b, b_step, span.begin, span.end, s.lane.get() + 2 * tile_ * size_);
      if (varies(span.w)) {
        varying(i, row, span, s.w.get());
        rows_.weighted(target, x, y, length, s.w.get());
      } else {
        rows_.uniform(target, x, y, length, span.w);
      }
      if (!packed) copy_strided(to, row_.dst_step, target, 1, length);
    });
  }

  void gaussian_row(int64_t i, const RowAt& row, int64_t begin, int64_t end, float* w) const {
    const Factors factors = tables_->factors(table(i), row.at);
    const bool complement = mask(i).kind == kGaussianComplement;
    if (row_.axis >= 0) {
      kernels_.gaussian(w, tables_->row(table(i)) + begin, end - begin, factors, complement);
    } else {
      std::fill(w, w + (end - begin), complement ? 1.0f - factors.before : factors.before);
    }
  }

  // The mask of sample i along a span in which it varies.
  void varying(int64_t i, const RowAt& row, const Span& span, float* w) const {
    if (is_gaussian(mask(i).kind)) return gaussian_row(i, row, span.begin, span.end, w);
    const PixelsOf pixels(args_.plan.pixels, i);
    const int64_t first = first_pixel(row), step = step_along();
    for (int64_t k = span.begin; k < span.end; ++k) w[k - span.begin] = pixels.weight(first + k / row_.inner * step);
  }

  // The mask of sample i along a span in which it is `value`, or varies.
  void weights(int64_t i, const RowAt& row, const Span& span, float value, float* w) const {
    if (varies(value)) {
      varying(i, row, span, w);
    } else {
      std::fill(w, w + (span.end - span.begin), value);
    }
  }

  // The mask of sample i along a row; element k goes to w[k].
  void mask_row(int64_t i, const RowAt& row, const Cut& cut, std::vector<Span>& kept, float* w) const {
    for_spans(cut, row, kept, [&](const Span& span) { weights(i, row, span, span.w, w + span.begin); });
  }

  // Keeps what a sample with this cut will need of its partner `first`: where its mask lets anything of it through.
  void save(int64_t first, const RowAt& row, const Cut& cut, char* kept, std::vector<Span>& runs) const {
    const char* from = src(first, row);
    for_spans(cut, row, runs, [&](const Span& span) {
      if (span.w == 1.0f) return;
      copy_strided(kept + span.begin * size_, 1, from + span.begin * row_.src_step * size_, row_.src_step,
                   span.end - span.begin);
    });
  }

  // Asks for the row of a sample whose partner has this cut, before its turn. The hardware foresees the rest of a row, but
  // not the jump to another sample.
  void prefetch(int64_t next, const RowAt& row, const Cut& cut, std::vector<Span>& runs) const {
    const char* base = src(next, row);
    for_spans(cut, row, runs, [&](const Span& span) {
      if (span.w == 1.0f) return;
      const char* stop = base + std::min(span.end * row_.src_step * size_, span.begin * row_.src_step * size_ + kAheadBytes);
      for (const char* at = base + span.begin * row_.src_step * size_; at < stop; at += kCacheLine) {
        __builtin_prefetch(at, 0, 3);
        asm volatile("" : : "r"(at));  // else gcc finds that this function does nothing, and drops every call of it
      }
    });
  }

  // Whether mixing sample i in place would leave the whole tile as it is: its box is elsewhere.
  bool untouched(const Cut& cut, const Scratch& s) const {
    if (!in_place_ || cut.outside.w != 1.0f) return false;
    if (cut.n == 1 && cut.inside[0].w == 1.0f) return true;
    for (int axis = 0; axis < 3; ++axis) {
      if (axis != row_.axis && (cut.mask->stop[axis] <= s.low[axis] || cut.mask->first[axis] > s.high[axis])) return true;
    }
    return cut.n == 0;
  }

  void mix_tile(Scratch& s) const {
    for (size_t c = 0; c + 1 < cycles_.start.size(); ++c) {
      const int64_t *first = &cycles_.order[cycles_.start[c]], *stop = first + (cycles_.start[c + 1] - cycles_.start[c]);
      if (stop - first == 1 && in_place_) continue;  // paired with itself
      if (stop - first == 2) {
        mix_pair(first[0], first[1], s);
      } else {
        mix_cycle(first, stop, s);
      }
    }
  }

  // Two samples that are each other's partners, a piece of a row of both at a time.
  void mix_pair(int64_t i, int64_t j, Scratch& s) const {
    const int64_t step = kSweepBytes / size_;
    for (int64_t begin = s.begin; begin < s.end; begin += step) {
      const int64_t end = std::min(s.end, begin + step);
      const Cut cut_i = cut(i, begin, end), cut_j = cut(j, begin, end);
      if (untouched(cut_i, s) && untouched(cut_j, s)) continue;
      for (size_t r = 0; r < s.rows.size(); ++r) {
        if (r + kRowsAhead < s.rows.size()) {
          prefetch(i, s.rows[r + kRowsAhead], cut_j, s.runs[0]);
          prefetch(j, s.rows[r + kRowsAhead], cut_i, s.runs[0]);
        }
        // The stretches in which both masks are one number, or vary.
        Spans of_i = spans(cut_i, s.rows[r], s.runs[0]), of_j = spans(cut_j, s.rows[r], s.runs[1]);
        for (Span both{begin, begin, 0.0f}; both.begin < end; both.begin = both.end) {
          both.end = std::min(of_i.at->end, of_j.at->end);
          mix_span_pair(i, j, s.rows[r], both, of_i.at->w, of_j.at->w, s);
          of_i.at += of_i.at->end == both.end;
          of_j.at += of_j.at->end == both.end;
        }
      }
    }
  }

  void mix_span_pair(int64_t i, int64_t j, const RowAt& row, const Span& span, float w_i, float w_j, Scratch& s) const {
    if (in_place_ && w_i == 1.0f && w_j == 1.0f) return;
    const int64_t length = span.end - span.begin;
    const char* a = read(src(i, row), row_.src_step, span.begin, span.end, s.lane.get() + tile_ * size_);
    const char* b = read(src(j, row), row_.src_step, span.begin, span.end, s.lane.get() + 2 * tile_ * size_);
    const bool packed = row_.dst_step == 1;
    char* to_i = dst(i, row) + span.begin * row_.dst_step * size_;
    char* to_j = dst(j, row) + span.begin * row_.dst_step * size_;
    if (packed && in_place_ && w_i == 0.0f && w_j == 0.0f) {
      std::swap_ranges(to_i, to_i + length * size_, to_j);
      return;
    }
    char *target_i = packed ? to_i : s.lane.get(), *target_j = packed ? to_j : s.lane.get() + tile_ * size_;
    const auto plain = [](float w) { return w > 0.0f && w < 1.0f; };
    if (plain(w_i) && plain(w_j)) {
      rows_.pair_uniform(target_i, target_j, a, b, length, w_i, w_j);
    } else {
      float *w = s.w.get(), *w_b = w + tile_;
      weights(i, row, span, w_i, w);
      weights(j, row, span, w_j, w_b);
      rows_.pair_weighted(target_i, target_j, a, b, length, w, w_b);
    }
    if (!packed) {
      copy_strided(to_i, row_.dst_step, target_i, 1, length);
      copy_strided(to_j, row_.dst_step, target_j, 1, length);
    }
  }

  void mix_cycle(const int64_t* first, const int64_t* stop, Scratch& s) const {
    const int64_t width = s.end - s.begin;
    const auto kept = [&](size_t r) { return s.saved.get() + (static_cast<int64_t>(r) * width - s.begin) * size_; };
    if (in_place_) {
      const Cut last = cut(stop[-1], s.begin, s.end);
      if (!untouched(last, s)) {
        for (size_t r = 0; r < s.rows.size(); ++r) save(*first, s.rows[r], last, kept(r), s.runs[0]);
      }
    }
    Cut now = cut(*first, s.begin, s.end), next{};
    for (const int64_t* i = first; i < stop; ++i, now = next) {
      const bool closes = i + 1 == stop;
      const bool more = i + 2 < stop;
      if (!closes) next = cut(i[1], s.begin, s.end);
      const bool ahead = more && !untouched(next, s), here = !untouched(now, s);
      if (!ahead && !here) continue;
      for (size_t r = 0; r < s.rows.size(); ++r) {
        const RowAt& row = s.rows[r];
        if (ahead) prefetch(i[2], row, next, s.runs[0]);
        if (!here) continue;
        if (closes && in_place_) {
          mix_row(*i, row, now, kept(r), 1, s);
        } else {
          mix_row(*i, row, now, src(closes ? *first : i[1], row), row_.src_step, s);
        }
      }
    }
  }

  // The gradient of sample j = p(i): M_j·g_j and what i lent, (1-M_i)·g_i.
  void adjoint_tile(Scratch& s) const {
    float *own = s.w.get(), *lent = own + tile_;
    for (size_t c = 0; c + 1 < cycles_.start.size(); ++c) {
      const int64_t *first = &cycles_.order[cycles_.start[c]], *stop = first + (cycles_.start[c + 1] - cycles_.start[c]);
      for (const int64_t* at = first; at < stop; ++at) {
        const int64_t i = *at, j = at + 1 == stop ? *first : at[1];
        const Cut cut_i = cut(i, s.begin, s.end), cut_j = cut(j, s.begin, s.end);
        for (const RowAt& row : s.rows) {
          const char* g = read(src(j, row), row_.src_step, s.begin, s.end, s.lane.get() + tile_ * size_);
          const char* h = read(src(i, row), row_.src_step, s.begin, s.end, s.lane.get() + 2 * tile_ * size_);
          const bool packed = row_.dst_step == 1;
          char* to = dst(j, row) + s.begin * row_.dst_step * size_;
          char* target = packed ? to : s.lane.get();
          if (mask(i).kind == kConstant && mask(j).kind == kConstant) {
            rows_.adjoint_uniform(target, g, h, s.end - s.begin, mask(j).outer, mask(i).outer);
          } else {
            mask_row(j, row, cut_j, s.runs[0], own - s.begin);
            mask_row(i, row, cut_i, s.runs[0], lent - s.begin);
            rows_.adjoint_weighted(target, g, h, s.end - s.begin, own, lent);
          }
          if (!packed) copy_strided(to, row_.dst_step, target, 1, s.end - s.begin);
        }
      }
    }
  }

  const MixArgs& args_;
  const Kernels& kernels_;
  const RowKernels& rows_;
  const int64_t size_;
  const Row row_;
  const Cycles cycles_;
  const bool in_place_;
  std::vector<Mask> masks_;
  std::unique_ptr<Tables> tables_;
  int64_t row_count_, rows_per_tile_, tile_, pieces_, tiles_;
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
  const Tables tables(plan, n, row, size, parallel);
  const int64_t pixels = size[0] * size[1] * size[2];
  parallel(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Mask mask = mask_at(plan, m);
      float* at = out + m * pixels;
      for (int64_t z = 0; z < size[0]; ++z) {
        for (int64_t y = 0; y < size[1]; ++y, at += size[2]) {
          const int64_t here[3] = {z, y, 0};
          if (is_fourier(mask.kind)) {
            const PixelsOf pixels(plan.pixels, m);
            for (int64_t x = 0; x < size[2]; ++x) at[x] = pixels.weight((z * size[1] + y) * size[2] + x);
          } else if (is_gaussian(mask.kind)) {
            kernels().gaussian(at, tables.row(m), size[2], tables.factors(m, here), mask.kind == kGaussianComplement);
          } else {
            for (int64_t x = 0; x < size[2]; ++x) at[x] = evaluate(mask, z, y, x);
          }
        }
      }
    }
  });
}

}  // namespace fusedmix::cpu
