// A batch as loops over memory: dims that lie behind each other are merged, the rest sorted by stride. Host code.
#pragma once

#include <cstdint>
#if !defined(__CUDACC__)  // kernels' files call nothing that needs them
#include <algorithm>
#include <stdexcept>
#endif

namespace fusedmix {

constexpr int kMaxDims = 12;

// One dim of a sample. Strides are in elements.
struct Dim {
  int64_t size;
  int64_t src, dst;
  int32_t axis;  // 0, 1, 2 = z, y, x where masks depend on it, else -1
};

// A sample's dims from the outermost to the innermost in the memory of the destination.
struct Layout {
  int64_t batch;
  int64_t src_batch, dst_batch;  // strides from sample to sample
  int64_t elements;              // of one sample
  int32_t rank;
  Dim dims[kMaxDims];
};

#if !defined(__CUDACC__)
// The layout of two tensors of one shape. The last `spatial` dims are the axes that masks depend on; 0 if all masks of
// the plan are constant, which leaves more to merge.
inline Layout make_layout(int ndim, const int64_t* sizes, const int64_t* src, const int64_t* dst, int spatial) {
  Layout layout{sizes[0], src[0], dst[0], 1, 0, {}};
  if (ndim - 1 > 64) throw std::invalid_argument("more than 64 dims");
  Dim dims[64];
  int n = 0;
  for (int d = 1; d < ndim; ++d) {
    layout.elements *= sizes[d];
    const int from_last = ndim - 1 - d;
    if (sizes[d] != 1) dims[n++] = {sizes[d], src[d], dst[d], from_last < spatial ? 2 - from_last : -1};
  }
  std::stable_sort(dims, dims + n,
                   [](const Dim& a, const Dim& b) { return a.dst != b.dst ? a.dst > b.dst : a.src > b.src; });
  int merged = 0;
  for (int d = 0; d < n; ++d) {
    Dim* last = merged > 0 ? &dims[merged - 1] : nullptr;
    const Dim& next = dims[d];
    if (last && last->axis < 0 && next.axis < 0 && last->src == next.src * next.size && last->dst == next.dst * next.size) {
      *last = {last->size * next.size, next.src, next.dst, -1};
    } else {
      dims[merged++] = next;
    }
  }
  if (merged == 0) dims[merged++] = {1, 1, 1, -1};
  if (merged > kMaxDims) throw std::invalid_argument("a sample whose memory is in more than 12 separate dims");
  layout.rank = merged;
  std::copy(dims, dims + merged, layout.dims);
  return layout;
}
#endif

// The innermost loop: `length` elements at a constant step, `inner` of which share a pixel along `axis` (the channels of
// channels_last). Axis -1: all of them share one.
struct Row {
  int64_t length, inner;
  int64_t src_step, dst_step;
  int32_t axis;
  int32_t outer_rank;  // the first so many dims of the layout are outside the row
};

inline Row innermost_row(const Layout& layout) {
  const Dim& last = layout.dims[layout.rank - 1];
  if (layout.rank > 1 && last.axis < 0) {
    const Dim& above = layout.dims[layout.rank - 2];
    if (above.axis >= 0 && above.src == last.src * last.size && above.dst == last.dst * last.size) {
      return {above.size * last.size, last.size, last.src, last.dst, above.axis, layout.rank - 2};
    }
  }
  return {last.size, last.axis < 0 ? last.size : 1, last.src, last.dst, last.axis, layout.rank - 1};
}

}  // namespace fusedmix
