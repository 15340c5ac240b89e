// Paints crops of partners over copies of the samples. A row is cut where boxes begin and end, and each stretch of it is written
// once: copied from the sample or from a partner, or resampled. Samples one after another, in tiles, of which threads take some.
#include "gather.h"
#include "kernels.h"
#include "large_pages.h"
#include "strided.h"
#include "tiles.h"

namespace fusedmix::cpu {
namespace {

// What one thread paints.
class Painter {
 public:
  Painter(const Images& images, const Patches& patches, const Row& along)
      : images_(images),
        patches_(patches),
        along_(along),
        rows_(kernels().gather[static_cast<int>(images.type)]),
        size_(element_size(images.type)) {
    for (int d = 0; d < along.outer_rank; ++d) {
      const Dim& dim = images.layout.dims[d];
      if (dim.axis >= 0) step_[dim.axis] = dim.src;
    }
    if (along.dst_step != 1) resize(lane_, kBlock * size_, "a row of a patch");
  }

  // One tile of a sample.
  void paint(int64_t i, const Tile& tile) {
    if (i != sample_) read_patches(i);
    const auto count = static_cast<int64_t>(tile.rows.size());
    for (int64_t r = 0, same = 1; r < count; r += same) {
      const uint32_t reached = patches_at(tile.rows[r], tile);
      same = 1;
      if (reached != 0) {
        cut(reached, tile);
        for (int s = 0; s < stretches_; ++s) write(tile.rows[r], stretch_[s]);
        continue;
      }
      while (r + same < count && patches_at(tile.rows[r + same], tile) == 0) ++same;
      const int64_t together = tile.adjoin ? same : 1, width = tile.end - tile.begin;
      for (int64_t k = 0; k < same; k += together) {
        const RowAt& row = tile.rows[r + k];
        copy_strided(dst(row, tile.begin), along_.dst_step, src(sample_, row.src + tile.begin * along_.src_step), along_.src_step,
                     together * width, size_);
      }
    }
  }

 private:
  struct Patch {
    int64_t partner;
    Side box[3], crop[3];
    int64_t begin, end;  // of the box in every row that crosses it
    // Of each element in the box, where it is not as wide as the crop: what PatchRow has of it.
    bool resized;
    std::vector<int32_t> first, second;
    std::vector<float> share;
  };
  // A part of a row, of a patch, or of the sample itself: -1.
  struct Stretch {
    int64_t begin, end;
    int patch;
  };

  const char* src(int64_t i, int64_t at) const {
    return static_cast<const char*>(images_.src) + (i * images_.layout.src_batch + at) * size_;
  }
  char* dst(const RowAt& row, int64_t begin) const {
    return static_cast<char*>(images_.dst) + (sample_ * images_.layout.dst_batch + row.dst + begin * along_.dst_step) * size_;
  }

  void read_patches(int64_t i) {
    const auto load = [](const int32_t* at) { return *at; };
    sample_ = i;
    shown_ = 0;
    cut_for_ = 0;
    for (int64_t k = i * patches_.count; k < (i + 1) * patches_.count; ++k) {
      Patch& p = patch_[shown_];
      bool shown = true;
      for (int axis = 0; axis < 3; ++axis) {
        p.box[axis] = patches_.side_of(patches_.boxes, k, axis, load);
        p.crop[axis] = patches_.side_of(patches_.crops, k, axis, load);
        shown = shown && p.box[axis].length() > 0 && p.crop[axis].length() > 0;
      }
      if (!shown) continue;
      p.partner = patches_.partner[k];
      const bool across = along_.axis >= 0;
      p.begin = across ? p.box[along_.axis].first * along_.inner : 0;
      p.end = across ? p.box[along_.axis].stop * along_.inner : along_.length;
      p.resized = across && p.box[along_.axis].length() != p.crop[along_.axis].length();
      if (p.resized) find_places(p);
      ++shown_;
    }
  }

  void find_places(Patch& p) const {
    constexpr char kWhat[] = "where the pixels of a row are";
    const int64_t n = p.end - p.begin;
    const bool linear = patches_.resize != Resize::kNearest;
    resize(p.first, n, kWhat);
    resize(p.second, linear ? n : 0, kWhat);
    resize(p.share, linear ? n : 0, kWhat);
    const auto inner = static_cast<int32_t>(along_.inner);
    for (int32_t c = 0, e = 0; e < n; ++c) {
      const Tap tap = tap_along(p, along_.axis, c);
      for (int32_t channel = 0; channel < inner; ++channel, ++e) {
        p.first[e] = tap.first * inner + channel;
        if (linear) p.second[e] = tap.second * inner + channel, p.share[e] = tap.share;
      }
    }
  }

  // Of a pixel of the box, which is the c-th along an axis.
  Tap tap_along(const Patch& p, int axis, int32_t c) const {
    constexpr int32_t kNarrow = 32767;  // half the time, where 32 bits do
    const int32_t n = p.box[axis].length(), m = p.crop[axis].length();
    if (n <= kNarrow && m <= kNarrow) return tap_at<uint32_t>(patches_.resize, c, n, m);
    return tap_at<uint64_t>(patches_.resize, c, n, m);
  }

  // Bit k: the k-th patch that shows is in that part of the row.
  uint32_t patches_at(const RowAt& row, const Tile& tile) const {
    uint32_t found = 0;
    for (int k = 0; k < shown_; ++k) {
      const Patch& p = patch_[k];
      bool inside = p.begin < tile.end && p.end > tile.begin;
      for (int axis = 0; axis < 3; ++axis) inside = inside && (axis == along_.axis || p.box[axis].has(row.at[axis]));
      found |= static_cast<uint32_t>(inside) << k;
    }
    return found;
  }

  // Cuts rows where patches begin and end: later ones are over earlier ones.
  void cut(uint32_t reached, const Tile& tile) {
    if (reached == cut_for_ && tile.begin == stretch_begin_) return;
    cut_for_ = reached;
    stretch_begin_ = tile.begin;
    stretches_ = 0;
    stretch_[stretches_++] = {tile.begin, tile.end, -1};
    for (int k = 0; k < shown_; ++k) {
      if ((reached >> k & 1u) == 0) continue;
      const Stretch over{std::max(tile.begin, patch_[k].begin), std::min(tile.end, patch_[k].end), k};
      const int before = stretches_;
      Stretch kept[kMostStretches];
      std::copy(stretch_, stretch_ + before, kept);
      stretches_ = 0;
      for (int s = 0; s < before; ++s) {
        const Stretch left{kept[s].begin, std::min(kept[s].end, over.begin), kept[s].patch};
        const Stretch right{std::max(kept[s].begin, over.end), kept[s].end, kept[s].patch};
        if (left.begin < left.end) stretch_[stretches_++] = left;
        if (right.begin < right.end) stretch_[stretches_++] = right;
      }
      stretch_[stretches_++] = over;
    }
  }

  void write(const RowAt& row, const Stretch& s) {
    const int64_t n = s.end - s.begin;
    char* const to = dst(row, s.begin);
    if (s.patch < 0) {
      copy_strided(to, along_.dst_step, src(sample_, row.src + s.begin * along_.src_step), along_.src_step, n, size_);
      return;
    }
    const Patch& p = patch_[s.patch];
    PatchRow made{};
    made.axis = along_.axis;
    made.step = along_.src_step;
    int64_t from = row.src;
    for (int axis = 0; axis < 3; ++axis) {
      if (axis == along_.axis) continue;
      const Tap tap = tap_along(p, axis, row.at[axis] - p.box[axis].first);
      from += (p.crop[axis].first + tap.first - row.at[axis]) * step_[axis];
      made.outside[axis] = {step_[axis], tap.share};
      made.mixed = made.mixed || !tap.is_one();
    }
    if (along_.axis >= 0) from += p.crop[along_.axis].first * along_.inner * along_.src_step;
    const int64_t skipped = s.begin - p.begin;
    if (p.resized) {
      made.first = p.first.data() + skipped;
      if (!p.second.empty()) made.second = p.second.data() + skipped, made.share = p.share.data() + skipped, made.mixed = true;
    } else {
      from += skipped * along_.src_step;
    }
    made.from = src(p.partner, from);
    if (!p.resized && !made.mixed) {
      copy_strided(to, along_.dst_step, static_cast<const char*>(made.from), along_.src_step, n, size_);
    } else if (along_.dst_step == 1) {
      rows_.patch(to, made, n);
    } else {
      write_apart(to, made, n);
    }
  }

  // To memory that is not contiguous.
  void write_apart(char* to, PatchRow made, int64_t n) {
    for (int64_t k = 0; k < n; k += kBlock) {
      const int64_t m = std::min(kBlock, n - k);
      rows_.patch(lane_.data(), made, m);
      copy_strided(to + k * along_.dst_step * size_, along_.dst_step, lane_.data(), 1, m, size_);
      if (made.first == nullptr) {
        made.from = static_cast<const char*>(made.from) + m * along_.src_step * size_;
        continue;
      }
      made.first += m;
      if (made.second != nullptr) made.second += m, made.share += m;
    }
  }

  static constexpr int kMostStretches = 1 + 2 * kMostPatches;

  const Images& images_;
  const Patches& patches_;
  const Row& along_;
  const GatherRows& rows_;
  const int64_t size_;
  int64_t step_[3] = {};  // of the source, along the axes that rows do not run along
  int64_t sample_ = -1;
  int shown_ = 0;
  Patch patch_[kMostPatches];
  uint32_t cut_for_ = 0;
  int64_t stretch_begin_ = 0;
  int stretches_ = 0;
  Stretch stretch_[kMostStretches];
  std::vector<char> lane_;
};

// Rows of pixels with all their channels have a table of places in 32 bits.
Row row_of(const Layout& layout) {
  const Row along = innermost_row(layout);
  const Dim& last = layout.dims[layout.rank - 1];
  return along.inner > 1 && along.length > INT32_MAX ? Row{last.size, last.size, last.src, last.dst, -1, layout.rank - 1} : along;
}

}  // namespace

void paste(const Images& images, const Patches& patches, const Parallel& parallel) {
  const Layout& layout = images.layout;
  if (layout.batch == 0 || layout.elements == 0) return;
  const int64_t size = element_size(images.type);
  ask_for_large_pages(images.dst, layout.batch * layout.elements * size);
  const Row along = row_of(layout);
  const Tiling tiling = tiling_of(layout, along, size, 1);
  std::vector<Tile> tiles;
  resize(tiles, tiling.tiles, "the tiles of a sample");
  for (int64_t t = 0; t < tiling.tiles; ++t) place(tiles[t], t, tiling, layout, along, along.src_step == 1 && along.dst_step == 1);
  parallel(tiling.tiles * layout.batch, 1 + kWorthAThread / (tiling.rows * tiling.piece), [&](int64_t begin, int64_t end) {
    Painter painter(images, patches, along);
    for (int64_t task = begin; task < end; ++task) painter.paint(task / tiling.tiles, tiles[task % tiling.tiles]);
  });
}

}  // namespace fusedmix::cpu
