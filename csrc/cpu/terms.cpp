// Sums of samples in one pass: tile by tile, each for the whole batch, so that a sample which is a term of several is still in a
// cache when it is read again.
#include "gather.h"
#include "kernels.h"
#include "large_pages.h"
#include "strided.h"
#include "tiles.h"

namespace fusedmix::cpu {

void sum_terms(const Images& images, const Terms& terms, const Parallel& parallel) {
  constexpr int64_t kBatchBytes = 1 << 19, kLeastBytes = 1 << 12;  // of a tile of all samples, where it has so many of each
  const Layout& layout = images.layout;
  if (layout.batch == 0 || layout.elements == 0) return;
  const int64_t size = element_size(images.type);
  ask_for_large_pages(images.dst, layout.batch * layout.elements * size);
  const Row along = innermost_row(layout);
  const Tiling tiling = tiling_of(layout, along, size, 1, std::max(kLeastBytes, std::min(kTileBytes, kBatchBytes / layout.batch)));
  const GatherRows& rows = kernels().gather[static_cast<int>(images.type)];
  const bool packed = along.src_step == 1 && along.dst_step == 1;
  parallel(tiling.tiles * layout.batch, 1 + kWorthAThread / (tiling.rows * tiling.piece), [&](int64_t begin, int64_t end) {
    Tile tile;
    std::vector<char> lanes;  // blocks gathered from memory that is not contiguous
    const int64_t lane = kBlock * size;
    if (!packed) resize(lanes, (terms.count + 1) * lane, "the terms of a sum");
    for (int64_t task = begin, placed = -1; task < end; ++task) {
      const int64_t i = task % layout.batch;
      if (task / layout.batch != placed) place(tile, placed = task / layout.batch, tiling, layout, along, packed);
      int64_t partner[kMostTerms], count = 0;
      float weight[kMostTerms];
      for (int64_t k = i * terms.count; k < (i + 1) * terms.count; ++k) {
        if (terms.weight[k] == 0.0f) continue;
        partner[count] = terms.partner[k];
        weight[count++] = terms.weight[k];
      }
      for_blocks(tile, kTileBytes, kTileBytes, packed, [&](const Block& block) {
        const void* in[kMostTerms];
        for (int64_t k = 0; k < count; ++k) {
          const int64_t at = partner[k] * layout.src_batch + block.row->src + block.begin * along.src_step;
          const char* from = static_cast<const char*>(images.src) + at * size;
          in[k] = along.src_step == 1 ? from : lanes.data() + k * lane;
          if (along.src_step != 1) copy_strided(lanes.data() + k * lane, 1, from, along.src_step, block.elements(), size);
        }
        char* const to = static_cast<char*>(images.dst) + (i * layout.dst_batch + block.row->dst + block.begin * along.dst_step) * size;
        char* const out = along.dst_step == 1 ? to : lanes.data() + terms.count * lane;
        rows.sum(out, in, weight, count, block.elements());
        if (out != to) copy_strided(to, along.dst_step, out, 1, block.elements(), size);
      });
    }
  });
}

}  // namespace fusedmix::cpu
