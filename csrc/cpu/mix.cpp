// Mixes a batch in one pass over memory, in place or not.
//
// The batch is cut into tiles: up to 64 KiB at the same place of every sample. A tile is mixed for the whole batch at once,
// walking the cycles of the permutation: out[i] needs x[i] and x[p(i)], out[p(i)] needs x[p(i)] and x[p(p(i))], and so on.
// A few samples of the walk are a chain, mixed together element by element. So every byte is read from memory once and
// written once, in a few long streams, which is what the hardware foresees best; the last sample of a chain is still in the
// cache when the next chain begins with it. In place, only the tile of the first sample of a cycle is kept aside, for the
// last one. Tiles do not depend on each other: threads take different ones. Samples of one tile are not cut for that: there
// threads take different parts of the walk, and the sample that each part begins with is kept aside for the one before it.
//
// Where partners are of another batch there is nothing to walk along, nor to keep.
#include "large_pages.h"
#include "mix.h"

#include <atomic>
#include <utility>

#include "strided.h"
#include "tables.h"

namespace fusedmix::cpu {
namespace {

bool is_hard(float w) { return w == 0.0f || w == 1.0f; }

// Whether a sample is mixed by copying: where each pixel of its mask is 0 or 1. Where everything is read and written anyway,
// as out of place, or what is copied is in many pieces, blending in long streams is faster, unless types are converted.
bool copies(const Mask& m, int64_t size, bool in_place) {
  if (m.bits || m.grid) return size < 4;
  return m.boxed && (size < 4 || in_place) && is_hard(m.box.outer) && is_hard(m.box.inner);
}

// Samples that are mixed together, each the partner of the one before it, and last a partner that is only read.
struct Chain {
  int links;  // how many are mixed
  int64_t sample[kLinks + 1];
  bool closes;  // it ends where its cycle begins
  bool whole;   // and begins there
  int64_t next;  // the sample that is mixed after it
};

constexpr int64_t kNear = 5 << 20;  // bytes of a batch, of which its share of a third-level cache may hold most

enum class By { kNothing, kBlending, kCopying, kCopyingBoxes };

// What one thread needs while it walks a tile.
struct Scratch {
  Tile tile;
  std::vector<Span> runs;         // of a row of a Fourier mask or a grid
  std::vector<CopiedRows> ahead;  // those of the box that is copied next
  float *w, *shared_w;            // of a block of each sample of a chain; of the tile, where all samples have one mask
  char *lane, *saved;             // blocks gathered from memory that is not contiguous; the tile of the first sample of a cycle
};

// A call, and how its batch is gone through.
struct Mixer {
  const Images& images;
  const PlanView& plan;
  const Kernels& kernels;
  const RowKernels& rows;
  const int64_t size;    // the bytes of an element
  const bool in_place;
  const Row along;
  const bool packed;          // the elements of a row lie behind each other
  const bool far;             // the batch is likely to come from memory: boxes are asked for ahead
  const bool is_lent;         // partners are of another batch
  const char* const lenders;  // the batch that they are of
  const int64_t lender_batch;
  const Cycles& cycles;
  const Masks& masks;
  const Tables& tables;
  const Tiling& tiling;
  const Parts& parts;
  std::unique_ptr<char[]> kept;  // the samples that parts begin with

  void keep_heads(const Parallel& parallel) {
    if (parts.heads.empty()) return;
    const auto count = static_cast<int64_t>(parts.heads.size());
    kept = unwritten<char>(count * sample_bytes(), "the samples that parts of a batch begin with");
    parallel(count, 1 + kWorthAThread / images.layout.elements, [&](int64_t begin, int64_t end) {
      Scratch s = scratch();
      place(s.tile, 0, tiling, images.layout, along, packed);
      for (int64_t h = begin; h < end; ++h) {
        s.saved = kept.get() + h * sample_bytes();
        save(parts.heads[h].sample, parts.heads[h].needed_by, s);
      }
    });
  }

  void mix_tiles(const Parallel& parallel) const {
    std::atomic<int64_t> next{0};
    parallel(tiling.threads, 1, [&](int64_t begin, int64_t end) {
      Scratch s = scratch();
      int64_t placed = -1;
      for (; begin < end; ++begin) {
        for (int64_t t = next++; t < tiling.tiles * tiling.parts; t = next++) {
          if (t / tiling.parts != placed) place(s.tile, placed = t / tiling.parts, tiling, images.layout, along, packed);
          const int64_t first = parts.start[t % tiling.parts], stop = parts.start[t % tiling.parts + 1];
          images.adjoint ? adjoint_tile(first, stop, s) : mix_tile(first, stop, s);
        }
      }
    });
  }

 private:
  int64_t sample_bytes() const { return images.layout.elements * size; }

  // Kept by the thread: memory given back to the system costs a page fault for each 4 KiB of it the next time.
  Scratch scratch() const {
    thread_local std::vector<char> memory;
    const int64_t elements = tiling.rows * tiling.piece;
    int64_t bytes = 0;
    const auto next = [&](int64_t n) { return std::exchange(bytes, bytes + ceil_div(n, kCacheLine) * kCacheLine); };
    const int64_t w = next(kLinks * kBlock * sizeof(float)), shared_w = next(elements * sizeof(float));
    const int64_t lane = next(packed ? 0 : (2 * kLinks + 1) * kBlock * size), saved = next(in_place ? elements * size : 0);
    if (static_cast<int64_t>(memory.size()) < bytes) resize(memory, bytes, "the tiles that are mixed at a time");
    char* const at = memory.data();
    return {{}, {}, {}, reinterpret_cast<float*>(at + w), reinterpret_cast<float*>(at + shared_w), at + lane, at + saved};
  }

  const char* src(int64_t i, const RowAt& row) const {
    return static_cast<const char*>(images.src) + (i * images.layout.src_batch + row.src) * size;
  }
  char* dst(int64_t i, const RowAt& row) const {
    return static_cast<char*>(images.dst) + (i * images.layout.dst_batch + row.dst) * size;
  }
  // A sample of the batch that partners are of.
  const char* lender(int64_t i) const { return lenders + i * lender_batch * size; }

  // ---- How a mask is mixed ----

  // How a sample is mixed. In place, a box that does not reach into the tile leaves that as it is.
  By way_of(const Mask& m, const Tile& tile) const {
    if (only_box(m) && (m.box.inner == 1.0f || masks.is_number(m, tile))) return By::kNothing;
    if (!copies(m, size, in_place)) return By::kBlending;
    return packed && only_box(m) ? By::kCopyingBoxes : By::kCopying;
  }

  // Whether mixing a sample in place leaves what is outside of a box as it is.
  bool only_box(const Mask& m) const { return in_place && m.boxed && m.box.outer == 1.0f; }

  // Whether a mask is one number in the whole tile, and both samples show.
  bool is_share(const Mask& m, const Tile& tile) const { return masks.is_number(m, tile) && !is_hard(m.box.outer); }

  // ---- Memory ----

  // A block of a row: contiguous memory as it is, other memory gathered into lane `lane`.
  const char* read(const char* row, const Block& block, int lane, Scratch& s) const {
    const char* from = row + block.begin * along.src_step * size;
    if (along.src_step == 1) return from;
    char* to = s.lane + lane * kBlock * size;
    copy_strided(to, 1, from, along.src_step, block.elements(), size);
    return to;
  }

  // Where to write the block of sample i, and what to call then.
  char* target(int64_t i, const Block& block, int lane, Scratch& s) const {
    return along.dst_step == 1 ? dst(i, *block.row) + block.begin * size : s.lane + lane * kBlock * size;
  }
  void written(int64_t i, const Block& block, const char* from) const {
    if (along.dst_step == 1) return;
    copy_strided(dst(i, *block.row) + block.begin * along.dst_step * size, along.dst_step, from, 1, block.elements(), size);
  }

  // ---- Mixing ----

  // The walk from `first` to `stop`.
  void mix_tile(int64_t first, int64_t stop, Scratch& s) const {
    if (plan.shared) {
      const By way = way_of(masks[0], s.tile);
      if (way == By::kNothing) return;
      if (way == By::kBlending && !is_share(masks[0], s.tile)) {
        for_blocks(s.tile, kBlock, kBlock, packed, [&](const Block& block) {
          tables.weights(0, block, s.runs, s.shared_w + block.offset);
        });
      }
    }
    Chain pair{};
    auto end = std::upper_bound(cycles.start.begin(), cycles.start.end(), first);  // of the cycle that `first` is in
    for (int64_t at = first, next; at < stop; at = next, ++end) {
      next = std::min(stop, *end);
      is_lent ? mix_lent(&cycles.order[at], s) : mix_cycle(&cycles.order[at], next - at, pair, s);
    }
    if (pair.links != 0) blend(Links::kTwo, pair, s);
  }

  // A cycle, or what a part of the walk has of it. `pair`: of samples that are each other's partners, waiting for another such
  // pair; without links there is none.
  void mix_cycle(const int64_t* order, int64_t length, Chain& pair, Scratch& s) const {
    const int64_t after = plan.partner[order[length - 1]];
    if (in_place && after == order[length - 1]) return;  // paired with itself
    const auto way_at = [&](int64_t k) { return way_of(masks[order[k]], s.tile); };
    By way = way_at(0);
    bool whole = length <= kLinks && after == order[0] && way != By::kNothing;
    for (int64_t k = 1; k < length && whole; ++k) whole = way_at(k) == way;
    char* const own = s.saved;
    if (in_place && !whole) {
      if (char* const head = kept_head(after)) {
        s.saved = head;
      } else {
        save(order[0], order[length - 1], s);
      }
    }
    for (int64_t k = 0, links; k < length; k += links) {
      links = 1;
      if (k > 0) way = way_at(k);
      if (way == By::kNothing) continue;
      while (links < kLinks && k + links < length && (whole || way_at(k + links) == way)) ++links;
      Chain chain{static_cast<int>(links), {}, k + links == length, whole, next_of(order + k, links)};
      for (int64_t l = 0; l <= links; ++l) chain.sample[l] = k + l == length ? after : order[k + l];
      if (way != By::kBlending || !whole || length != 2) {
        mix_chain(way, chain, s);
      } else if (pair.links == 0) {
        pair = chain;
      } else {
        blend(Links::kTwoPairs, {kLinks, {pair.sample[0], pair.sample[1], order[0], order[1]}, true, true, order[0]}, s);
        pair.links = 0;
      }
    }
    s.saved = own;
  }

  // A sample whose partner is of another batch: a chain of one, of which nothing is needed again.
  void mix_lent(const int64_t* order, Scratch& s) const {
    const By way = way_of(masks[*order], s.tile);
    if (way != By::kNothing) mix_chain(way, {1, {*order, plan.partner[*order]}, false, false, next_of(order, 1)}, s);
  }

  void mix_chain(By way, const Chain& chain, Scratch& s) const {
    if (way == By::kCopyingBoxes) {
      copy_boxes(chain, s);
    } else if (way == By::kCopying) {
      copy_rows(chain, s);
    } else {
      blend(Links{chain.links}, chain, s);
    }
  }

  // The sample that is mixed after some; of the last ones their first.
  int64_t next_of(const int64_t* order, int64_t links) const {
    return order + links == cycles.order.data() + cycles.order.size() ? order[0] : order[links];
  }

  // The sample as it was, if it is one that parts begin with.
  char* kept_head(int64_t sample) const {
    const auto is_it = [&](const Parts::Head& head) { return head.sample == sample; };
    const auto found = std::find_if(parts.heads.begin(), parts.heads.end(), is_it);
    return found == parts.heads.end() ? nullptr : kept.get() + (found - parts.heads.begin()) * sample_bytes();
  }

  // Keeps what `last` will need of its partner `first`: of a box that is copied what that holds, else all.
  void save(int64_t first, int64_t last, Scratch& s) const {
    constexpr int64_t kCopied = 2048;  // bytes: what is longer memcpy() copies by an instruction that takes long to start
    const Mask& m = masks[last];
    const By way = way_of(m, s.tile);
    if (way == By::kNothing) return;
    if (way == By::kCopyingBoxes) return save_box(first, m.box, window(s.tile), s.saved);
    for_blocks(s.tile, kCopied / size, kCopied, packed, [&](const Block& block) {
      copy_strided(s.saved + block.offset * size, 1, src(first, *block.row) + block.begin * along.src_step * size, along.src_step,
                   block.elements(), size);
    });
  }

  void blend(Links links, const Chain& chain, Scratch& s) const {
    float one[kLinks];
    bool numbers = true;  // other than 0 and 1, one for each sample
    bool tabled = !plan.shared, complements = false;
    for (int l = 0; l < chain.links; ++l) {
      const Mask& m = masks[chain.sample[l]];
      one[l] = m.box.outer;
      numbers = numbers && is_share(m, s.tile);
      tabled = tabled && tables.has(chain.sample[l]);
      complements = complements || m.complement;
    }
    const int64_t most = numbers || tabled || plan.shared ? kTileBytes : kBlock;
    for_blocks(s.tile, most, tabled && !numbers ? kScaledRows : most, packed, [&](const Block& block) {
      const void* in[kLinks + 1];
      void* out[kLinks];
      for (int l = 0; l < chain.links; ++l) out[l] = target(chain.sample[l], block, l, s);
      for (int l = 0; l < chain.links; ++l) in[l] = read(src(chain.sample[l], *block.row), block, kLinks + l, s);
      if (in_place && chain.closes && !chain.whole) {
        in[chain.links] = s.saved + block.offset * size;
      } else if (links != Links::kTwoPairs) {
        in[chain.links] = read(lender(chain.sample[chain.links]) + block.row->src * size, block, kLinks + chain.links, s);
      }
      if (numbers) {
        rows.uniform(links, out, in, block.elements(), one);
      } else if (tabled) {
        ScaledRow scaled[kScaledRows];
        for (int l = 0; l < chain.links; ++l) tables.scale(chain.sample[l], block, l, scaled);
        rows.scaled(links, out, in, block.end - block.begin, scaled, block.rows, complements);
      } else {
        const float* w[kLinks];
        for (int l = 0; l < chain.links; ++l) {
          w[l] = plan.shared ? s.shared_w + block.offset : s.w + l * kBlock;
          if (!plan.shared) tables.weights(chain.sample[l], block, s.runs, s.w + l * kBlock);
        }
        rows.weighted(links, out, in, block.elements(), w);
      }
      for (int l = 0; l < chain.links; ++l) written(chain.sample[l], block, static_cast<const char*>(out[l]));
    });
  }

  // ---- Copying ----

  // Row by row, so that what a sample takes of the next one is taken before that is overwritten.
  void copy_rows(const Chain& chain, Scratch& s) const {
    const Tile& tile = s.tile;
    const int64_t width = tile.end - tile.begin, skipped = tile.begin * along.src_step * size;
    Cut cuts[kLinks];
    for (int l = 0; l < chain.links; ++l) cuts[l] = masks.cut(chain.sample[l], tile.begin, tile.end);
    char* kept = s.saved;
    for (const RowAt& row : tile.rows) {
      if (in_place && chain.whole) copy_strided(kept, 1, src(chain.sample[0], row) + skipped, along.src_step, width, size);
      for (int l = 0; l < chain.links; ++l) {
        const bool last = in_place && chain.closes && l == chain.links - 1;
        const char* partner = last ? kept - tile.begin * size : giver(chain, l) + row.src * size;
        copy_row(chain.sample[l], row, cuts[l], partner, last ? 1 : along.src_step, s.runs);
      }
      if (!chain.whole) kept += width * size;
    }
  }

  // One row of sample i. `b` is the partner's row, at its own step.
  void copy_row(int64_t i, const RowAt& row, const Cut& cut, const char* b, int64_t b_step, std::vector<Span>& runs) const {
    masks.for_spans(cut, row, runs, [&](const Span& span) {
      const bool own = span.w == 1.0f;
      if (own && in_place) return;
      const int64_t step = own ? along.src_step : b_step;
      copy_strided(dst(i, row) + span.begin * along.dst_step * size, along.dst_step, (own ? src(i, row) : b) + span.begin * step * size,
                   step, span.end - span.begin, size);
    });
  }
  // What a sample of a chain takes from: the next one of the chain, or its partner at the end.
  const char* giver(const Chain& chain, int l) const {
    const int64_t i = chain.sample[l + 1];
    return l + 1 < chain.links ? static_cast<const char*>(images.src) + i * images.layout.src_batch * size : lender(i);
  }

  // In place, boxes of partners: a few rows at a time, of which those of two samples fit a first-level cache.
  void copy_boxes(const Chain& chain, Scratch& s) const {
    constexpr int64_t kStripBytes = 1 << 14;
    const Window tile = window(s.tile);
    const int64_t row_bytes = (tile.end - tile.begin) * size, strip = even_groups(tile.stop - tile.first, kStripBytes / row_bytes);
    for (int64_t first = tile.first; first < tile.stop; first += strip) {
      const Window part{first, std::min(tile.stop, first + strip), tile.begin, tile.end};
      if (plan.shared && chain.whole && chain.links == 2) {
        look_ahead(chain.next, part, s.ahead);
        std::for_each(s.ahead.begin(), s.ahead.end(), kernels.ask_for_rows);
        for_box(masks, images.layout, masks[0].box, part, [&](const BoxRows& box) { swap(chain, box); });
        continue;
      }
      char* const kept = s.saved + (chain.whole ? 0 : (first - tile.first) * row_bytes);
      if (chain.whole) save_box(chain.sample[0], masks[chain.sample[chain.links - 1]].box, part, kept);
      for (int l = 0; l < chain.links; ++l) {
        const bool last = chain.closes && l == chain.links - 1;
        look_ahead(l + 1 < chain.links ? chain.sample[l + 1] : chain.next, part, s.ahead);
        static constexpr CopiedRows kNone{};
        auto next = s.ahead.cbegin();
        for_box(masks, images.layout, masks[chain.sample[l]].box, part, [&](const BoxRows& box) {
          const char* from = last ? kept + box.packed * size : giver(chain, l) + box.place * size;
          kernels.copy_rows({sample(chain.sample[l]) + box.place * size, box.step * size, from, last ? row_bytes : box.step * size,
                             box.rows, box.length * size},
                            next == s.ahead.cend() ? kNone : *next++);
        });
        std::for_each(next, s.ahead.cend(), kernels.ask_for_rows);
      }
    }
  }
  void swap(const Chain& chain, const BoxRows& box) const {
    char *x = sample(chain.sample[0]) + box.place * size, *y = sample(chain.sample[1]) + box.place * size;
    const int64_t step = box.step * size;
    for (int64_t r = 0; r < box.rows; ++r, x += step, y += step) std::swap_ranges(x, x + box.length * size, y);
  }
  // The box of the sample that is mixed next, there and in its partner: it can be on its way while another one is copied.
  void look_ahead(int64_t next, const Window& part, std::vector<CopiedRows>& found) const {
    found.clear();
    if (!far) return;
    for_box(masks, images.layout, masks[next].box, part, [&](const BoxRows& box) {
      found.push_back({sample(next) + box.place * size, box.step * size, lender(plan.partner[next]) + box.place * size, box.step * size,
                       box.rows, box.length * size});
    });
  }
  void save_box(int64_t i, const Box& mask, const Window& part, char* to) const {
    for_box(masks, images.layout, mask, part, [&](const BoxRows& box) {
      const CopiedRows rows{to + box.packed * size, (part.end - part.begin) * size, sample(i) + box.place * size, box.step * size,
                            box.rows, box.length * size};
      if (far) kernels.ask_for_rows(rows);
      kernels.copy_rows(rows, {});
    });
  }
  char* sample(int64_t i) const { return static_cast<char*>(images.dst) + i * images.layout.dst_batch * size; }
  static Window window(const Tile& t) { return {t.first, t.first + static_cast<int64_t>(t.rows.size()), t.begin, t.end}; }

  // ---- The adjoint ----

  // The gradient of sample j = p(i): M_j·g_j and what i lent, (1-M_i)·g_i.
  void adjoint_tile(int64_t first, int64_t stop, Scratch& s) const {
    float *own = s.w, *lent = own + kBlock;
    for (int64_t at = first; at < stop; ++at) {
      const int64_t i = cycles.order[at], j = plan.partner[i];
      const bool numbers = masks.is_number(masks[i], s.tile) && masks.is_number(masks[j], s.tile);
      for_blocks(s.tile, kBlock, kBlock, packed, [&](const Block& block) {
        char* out = target(j, block, 0, s);
        const char *g = read(src(j, *block.row), block, 1, s), *h = read(src(i, *block.row), block, 2, s);
        if (numbers) {
          rows.adjoint_uniform(out, g, h, block.elements(), masks[j].box.outer, masks[i].box.outer);
        } else {
          tables.weights(j, block, s.runs, own);
          tables.weights(i, block, s.runs, lent);
          rows.adjoint_weighted(out, g, h, block.elements(), own, lent);
        }
        written(j, block, out);
      });
    }
  }
};

}  // namespace

void mix(const Images& images, const PlanView& plan, const Parallel& parallel) {
  const Layout& layout = images.layout;
  if (layout.batch == 0 || layout.elements == 0) return;
  const int64_t size = element_size(images.type);
  const bool in_place = images.src == images.dst;
  if (!in_place) ask_for_large_pages(images.dst, layout.batch * layout.elements * size);
  const Row along = innermost_row(layout);
  int64_t sides[3] = {1, 1, 1};
  for (int d = 0; d < layout.rank; ++d) {
    if (layout.dims[d].axis >= 0) sides[layout.dims[d].axis] = layout.dims[d].size;
  }
  const bool is_lent = images.other != nullptr;
  const Cycles cycles = is_lent ? alone(plan.partner, layout.batch, images.others)
                                : cycles_of(plan.partner, layout.batch, !in_place && !images.adjoint);
  const Masks masks = masks_of(plan, along, sides, layout.batch);
  const Tiling tiling = tiling_of(layout, along, size, parallel.threads);
  const Parts parts = parts_of(cycles, tiling.parts, in_place);
  const auto is_table = [&](const Mask& m) { return m.boxed && !m.box.is_empty() && !copies(m, size, in_place); };
  const bool boxes = !plan.shared && !images.adjoint && std::any_of(masks.all.begin(), masks.all.end(), is_table);
  const Tables tables = tables_of(masks, boxes, parallel);
  Mixer mixer{images, plan, kernels(), kernels().rows[static_cast<int>(images.type)], size, in_place, along,
              along.src_step == 1 && along.dst_step == 1, layout.batch * layout.elements * size > kNear, is_lent,
              static_cast<const char*>(is_lent ? images.other : images.src), is_lent ? images.other_batch : layout.src_batch, cycles, masks,
              tables, tiling, parts, nullptr};
  mixer.keep_heads(parallel);
  mixer.mix_tiles(parallel);
}

}  // namespace fusedmix::cpu
