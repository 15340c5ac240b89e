// Flips, normalises, erases and mixes a batch in one pass: row by row, all channels of a row together, so that what a row
// needs (weights, holes, the noise in them) is found once. A row is cut where its mask or its holes begin or end; in each
// stretch every channel is one loop.
#include "finish.h"

#include <algorithm>
#include <memory>

#include "../include/fusedmix/partners.h"
#include "kernels.h"
#include "large_pages.h"

namespace fusedmix::cpu {
namespace {

constexpr int64_t kWorthAThread = 32768;  // elements
constexpr int64_t kRowsEach = 16;         // at least, of those that a thread takes at once

// A stretch of a row: the holes of the sample and of its partner that it is in, or -1; and the weight, if it is one.
struct Span {
  int64_t begin, end;
  int32_t own, lent;
  bool varies;
  float w;
};

class Finisher {
 public:
  Finisher(const Finishing& args, const PlanView* plan, const Parallel& parallel)
      : args_(args),
        plan_(plan),
        kernels_(kernels().finish),
        bytes_(args.type == ElementType::kUInt8),
        rows_(kernels_.rows[bytes_ ? 1 : 0][static_cast<int>(args.made)]),
        filled_(kernels_.rows[0][static_cast<int>(args.made)]),
        out_size_(element_size(args.made)) {
    if (plan != nullptr) {
      check_partners(plan->partner, args.batch);
      evaluate_masks(parallel);
    }
    // Rows that are treated alike are one row: of a channel all that lie behind each other.
    rows_in_one_ = 1;
    const bool alike = args.draws == nullptr && (plan == nullptr || args.constant);
    if (alike && !args.channels_last && args.step[3] == 1 && args.step[2] == args.width) {
      const int64_t parts = args.batch >= 4 * parallel.threads ? 1 : 4 * parallel.threads;
      rows_in_one_ = std::max<int64_t>(1, args.height / parts);
    }
    const int64_t elements = args.channels * args.width;
    const int64_t grain = std::max(rows_in_one_, std::max(kRowsEach, kWorthAThread / std::max<int64_t>(1, elements)));
    const int64_t each = (std::min(grain, args.height) + rows_in_one_ - 1) / rows_in_one_ * rows_in_one_;
    const int64_t pieces = (args.height + each - 1) / std::max<int64_t>(1, each);
    const bool alone = args.batch * args.height * elements < kWorthAThread;
    const Parallel one{nullptr, 1};
    (alone ? one : parallel)(args.batch * pieces, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t sample = task / pieces, first = task % pieces * each;
        const int64_t last = std::min(args_.height, first + each);
        for (int64_t y = first; y < last; y += rows_in_one_) row(sample, y, std::min(rows_in_one_, last - y), scratch);
      }
    });
  }

 private:
  // Of one thread.
  struct Scratch {
    explicit Scratch(const Finisher& f) {
      const int64_t n = f.rows_in_one_ * f.args_.width;
      row = f.args_.channels * n;
      for (int side = 0; side < 2; ++side) {
        loaded[side] = unwritten<float>(row, kWhat);
        turned[side] = unwritten<float>(row, kWhat);
        if (f.args_.draws != nullptr) noise[side] = unwritten<float>(row, kWhat), alone[side] = unwritten<float>(n, kWhat);
      }
      if (f.args_.channels_last) made = unwritten<float>(row, kWhat);
    }
    static constexpr char kWhat[] = "a row of a batch";
    int64_t row;
    std::unique_ptr<float[]> loaded[2], turned[2], noise[2], alone[2], made;
  };

  // A row of a sample: each channel's elements, as bytes or as floats.
  struct Source {
    const char* first;
    int64_t step;  // bytes from channel to channel
    FinishRecord record;
    const char* channel(int64_t c) const { return first + c * step; }
  };

  void evaluate_masks(const Parallel& parallel) {
    const PlanView& plan = *plan_;
    if (args_.constant) return;
    bool general = false;
    const int64_t masks = plan.shared ? std::min<int64_t>(1, args_.batch) : args_.batch;
    for (int64_t i = 0; i < masks; ++i) general = general || !is_boxed(plan.masks[i]);
    if (!general) return;
    const int64_t size[3] = {1, args_.height, args_.width};
    weights_ = unwritten<float>(masks * args_.height * args_.width, "the masks");
    cpu::masks(plan, masks, size, weights_.get(), parallel);
  }
  static bool is_boxed(const Record& record) {
    return of_kind(record, [](const auto& mask) { return mask.kHasBox; });
  }

  // The row at `at`, n pixels of every channel, read from one side or the other.
  Source load(int side, int64_t sample, int64_t y, int64_t n, Scratch& scratch) const {
    const int size = element_size(args_.type);
    const FinishRecord record{args_.draws == nullptr ? nullptr : args_.draws + sample * args_.draw_words};
    const bool flip = record.flip();
    const char* at = static_cast<const char*>(args_.src) + (sample * args_.step[0] + y * args_.step[2]) * size;
    int64_t step = args_.step[1] * size;
    const int64_t channels = args_.channels;
    char* to = reinterpret_cast<char*>(scratch.loaded[side].get());
    const bool joined = args_.step[1] == 1 && args_.step[3] == channels && channels > 1;
    int64_t pixel = args_.step[3];
    if (joined) {
      kernels_.planes(to, at, channels, n, size);
      at = to, step = n * size, pixel = 1;
      to = reinterpret_cast<char*>(scratch.turned[side].get());
    }
    if (flip || pixel != 1) {
      const char* from = flip ? at + (n - 1) * pixel * size : at;
      for (int64_t c = 0; c < channels; ++c) kernels_.gather(to + c * n * size, from + c * step, n, flip ? -pixel : pixel, size);
      at = to, step = n * size;
      to = reinterpret_cast<char*>(to == reinterpret_cast<char*>(scratch.turned[side].get()) ? scratch.loaded[side].get()
                                                                                              : scratch.turned[side].get());
    }
    if (size == 2) {
      auto* wide = reinterpret_cast<float*>(to);
      for (int64_t c = 0; c < channels; ++c) kernels_.widen(wide + c * n, at + c * step, n, args_.type);
      at = to, step = n * static_cast<int64_t>(sizeof(float));
    }
    return {at, step, record};
  }

  // The last hole that a pixel of row y is in, or -1.
  static int32_t hole_at(const FinishRecord& record, int32_t y, int32_t x) {
    for (int32_t k = record.holes() - 1; k >= 0; --k) {
      if (record.hole(k).has(y, x)) return k;
    }
    return -1;
  }

  // Cuts row y into stretches; returns how many.
  int cut(int64_t sample, int64_t y, int64_t n, const FinishRecord& own, const FinishRecord& lent, Span* spans) const {
    int64_t cuts[4 + 4 * kMostHoles];
    int count = 0;
    cuts[count++] = 0;
    cuts[count++] = n;
    const auto add = [&](int64_t x) {
      if (x > 0 && x < n) cuts[count++] = x;
    };
    for (const FinishRecord* record : {&own, &lent}) {
      for (int32_t k = 0; k < record->holes(); ++k) {
        const Hole hole = record->hole(k);
        if (hole.has_row(static_cast<int32_t>(y))) add(hole.left), add(int64_t{hole.left} + hole.width);
      }
    }
    const bool mixed = plan_ != nullptr;
    const bool varies = weights_ != nullptr;
    Box::Row weight{0, 0, 1.0f, 1.0f};
    if (mixed && !varies) {
      of_kind(plan_->masks[plan_->shared ? 0 : sample], [&](const auto& mask) {
        if constexpr (std::decay_t<decltype(mask)>::kHasBox) {
          const int32_t at[3] = {0, static_cast<int32_t>(y), 0};
          weight = mask.box().along(at, 2);
        }
      });
      add(weight.begin), add(weight.end);
    }
    std::sort(cuts, cuts + count);
    int made = 0;
    for (int k = 0; k + 1 < count; ++k) {
      if (cuts[k] == cuts[k + 1]) continue;
      const auto x = static_cast<int32_t>(cuts[k]), row = static_cast<int32_t>(y);
      spans[made++] = {cuts[k], cuts[k + 1], hole_at(own, row, x), hole_at(lent, row, x), varies, weight(x)};
    }
    return made;
  }

  // The noise of all channels in the stretches of row y that are in holes of one side.
  void fill_noise(const Source& source, int side, int64_t y, int64_t n, const Span* spans, int count, Scratch& scratch) const {
    for (int s = 0; s < count; ++s) {
      const Span& span = spans[s];
      const int32_t hole = side == 0 ? span.own : span.lent;
      if (hole < 0) continue;
      for (int64_t c = 0; c < args_.channels; c += 4) {
        float* to = scratch.noise[side].get() + c * n + span.begin;
        const int64_t channels = std::min<int64_t>(4, args_.channels - c), length = span.end - span.begin;
        if (args_.fill == kFillEachPixel) {
          kernels_.noise(to, n, channels, length, source.record.seed(), static_cast<uint64_t>(y * args_.width + span.begin),
                         static_cast<uint32_t>(c / 4));
          continue;
        }
        const Words w = fill_words(source.record.seed(), static_cast<uint64_t>(hole), c);
        for (int64_t k = 0; k < channels; ++k) std::fill_n(to + k * n, length, normal_fill(w, c + k));
      }
    }
  }

  // A stretch of a channel of one side by itself: normalised, or the fill of its hole.
  const float* finished(const Source& source, int side, int32_t hole, int64_t c, int64_t n, const Span& span, Scratch& scratch) const {
    const float *scale = args_.affine, *shift = scale + args_.channels, *fill = shift + args_.channels;
    if (hole >= 0 && args_.fill != kFillNumber) return scratch.noise[side].get() + c * n + span.begin;
    float* to = scratch.alone[side].get();
    const int64_t length = span.end - span.begin;
    if (hole >= 0) {
      std::fill_n(to, length, fill[c]);
    } else {
      kernels_.rows[bytes_ ? 1 : 0][static_cast<int>(ElementType::kFloat32)].alone(
          to, source.channel(c) + span.begin * (bytes_ ? 1 : 4), length, scale[c], shift[c]);
    }
    return to;
  }

  void row(int64_t sample, int64_t y, int64_t rows, Scratch& scratch) const {
    const int64_t n = rows * args_.width, partner = plan_ == nullptr ? sample : plan_->partner[sample];
    const Source own = load(0, sample, y, n, scratch);
    const Source lent = partner == sample ? own : load(1, partner, y, n, scratch);
    Span spans[4 + 4 * kMostHoles];
    const int count = cut(sample, y, n, own.record, lent.record, spans);
    if (args_.fill != kFillNumber) {
      fill_noise(own, 0, y, n, spans, count, scratch);
      fill_noise(lent, 1, y, n, spans, count, scratch);
    }
    const float* weights = weights_ == nullptr
                               ? nullptr
                               : weights_.get() + ((plan_->shared ? 0 : sample) * args_.height + y) * args_.width;
    const float *scale = args_.affine, *shift = scale + args_.channels;
    char* out = static_cast<char*>(args_.dst);
    const int64_t pixels = args_.height * args_.width;
    for (int64_t c = 0; c < args_.channels; ++c) {
      char* to = args_.channels_last ? reinterpret_cast<char*>(scratch.made.get()) + c * n * out_size_
                                     : out + ((sample * args_.channels + c) * pixels + y * args_.width) * out_size_;
      for (int s = 0; s < count; ++s) {
        const Span& span = spans[s];
        const int64_t length = span.end - span.begin, at = span.begin * (bytes_ ? 1 : 4);
        char* here = to + span.begin * out_size_;
        const bool keeps = !span.varies && span.w == 1.0f, takes = !span.varies && span.w == 0.0f;
        if (keeps || takes) {
          const Source& source = keeps ? own : lent;
          const int32_t hole = keeps ? span.own : span.lent;
          if (hole < 0) {
            rows_.alone(here, source.channel(c) + at, length, scale[c], shift[c]);
          } else {
            filled_.alone(here, finished(source, keeps ? 0 : 1, hole, c, n, span, scratch), length, 1.0f, kNoShift);
          }
          continue;
        }
        const bool erased = span.own >= 0 || span.lent >= 0;
        const void* a = erased ? static_cast<const void*>(finished(own, 0, span.own, c, n, span, scratch)) : own.channel(c) + at;
        const void* b = erased ? static_cast<const void*>(finished(lent, 1, span.lent, c, n, span, scratch)) : lent.channel(c) + at;
        const FinishRows& loops = erased ? filled_ : rows_;
        const float by = erased ? 1.0f : scale[c], plus = erased ? kNoShift : shift[c];
        if (span.varies) {
          loops.weighted(here, a, b, length, weights + span.begin, by, plus);
        } else {
          loops.uniform(here, a, b, length, span.w, by, plus);
        }
      }
    }
    if (args_.channels_last) {
      kernels_.pixels(out + (sample * pixels + y * args_.width) * args_.channels * out_size_, scratch.made.get(), args_.channels, n,
                      static_cast<int>(out_size_));
    }
  }

  static constexpr float kNoShift = -0.0f;  // which leaves every number as it is, -0 too

  const Finishing& args_;
  const PlanView* plan_;  // null: no sample is mixed
  const FinishKernels& kernels_;
  const bool bytes_;
  const FinishRows &rows_, &filled_;
  const int64_t out_size_;
  int64_t rows_in_one_;
  std::unique_ptr<float[]> weights_;  // of masks that are more than a box: (masks, H, W)
};

}  // namespace

void finish(const Finishing& args, const PlanView* plan, const Parallel& parallel) {
  const int64_t elements = args.batch * args.channels * args.height * args.width;
  if (elements == 0) return;
  ask_for_large_pages(args.dst, elements * element_size(args.made));
  Finisher(args, plan, parallel);
}

void draw_finish(const FinishDraws& args, const Parallel& parallel) {
  const int64_t words = finish_words(static_cast<int64_t>(args.draw.most));
  parallel(args.batch, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int32_t* const record = args.records + i * words;
      flip_and_holes(args.draw, args.seed.value, static_cast<uint64_t>(i), args.height, args.width,
                     [=](int32_t k, int32_t word) { record[k] = word; });
    }
  });
}

}  // namespace fusedmix::cpu
