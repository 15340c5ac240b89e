// The heads of a batch, copied aside before it is mixed in place (walk.h). A launch of its own, or blocks of the sampler's.
#pragma once

#include "vector.h"

namespace fusedmix::cuda {

struct StageArgs {
  const char* src;
  char* staged;  // (heads, columns) vectors
  Loops loops;
  int64_t tiles, span, heads;
  int32_t element_bytes, vector_bytes;
};

inline Loops loops_of(const Layout& layout, const Walk& walk) {
  const Row row = innermost_row(layout);
  Loops loops{row.outer_rank + 1,     row.axis, static_cast<int32_t>(row.axis < 0 ? 1 : row.inner), walk.columns < INT32_MAX,
              walk.columns,           layout.src_batch, layout.dst_batch,                           {}};
  std::copy(layout.dims, layout.dims + row.outer_rank, loops.dims);
  loops.dims[row.outer_rank] = {row.length / walk.width, row.src_step * walk.width, row.dst_step * walk.width, row.axis};
  return loops;
}

inline StageArgs stage_args(const Images& images, const Walk& walk, void* staged) {
  const int64_t heads = walk.heads ? (images.layout.batch + walk.span - 1) / walk.span : 0;
  const int32_t size = element_size(images.type);
  return {static_cast<const char*>(images.src), static_cast<char*>(staged), loops_of(images.layout, walk), walk.tiles,
          walk.span, heads, size, size * walk.width};
}

inline int64_t stage_blocks(const StageArgs& args) { return args.tiles * args.heads; }

FUSEDMIX_DEVICE void stage_block(const StageArgs& args, int64_t block) {
  const int64_t k = block / args.tiles, column = block % args.tiles * kThreads + device::thread();
  if (column >= args.loops.columns) return;
  const Place<1> place = place_of<1>(args.loops, column);  // a copy: only where the vector starts matters
  const char* from = args.src + (k * args.span * args.loops.src_batch + place.src) * args.element_bytes;
  char* to = args.staged + (k * args.loops.columns + column) * args.vector_bytes;
  switch (args.vector_bytes) {
    case 16: return store_vector<uint8_t, 16>(to, load_vector<uint8_t, 16>(from));
    case 8: return store_vector<uint8_t, 8>(to, load_vector<uint8_t, 8>(from));
    case 4: return store_vector<uint8_t, 4>(to, load_vector<uint8_t, 4>(from));
    case 2: return store_vector<uint8_t, 2>(to, load_vector<uint8_t, 2>(from));
    default: return store_vector<uint8_t, 1>(to, load_vector<uint8_t, 1>(from));
  }
}

}  // namespace fusedmix::cuda
