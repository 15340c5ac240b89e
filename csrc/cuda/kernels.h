// What the CUDA backend launches, free of torch. The host program (step.h) calls these; every function that launches returns
// a cudaError_t, 0 if all is well. Pointers of a request are to memory of the device.
#pragma once

#include "../include/fusedmix/division.h"
#include "../include/fusedmix/masks.h"
#include "../include/fusedmix/requests.h"

namespace fusedmix::cuda {

constexpr int kThreads = 128;
// The threads of a block, by the way through a batch (Way, below).
constexpr int kEachLog = 8, kEachThreads = 1 << kEachLog, kPairThreads = 256, kRollThreads = 256, kTileThreads = 512;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many blocks as one launch can have; throws where there are more.
int64_t launchable(int64_t blocks);
// Throws: a shape asks for a kernel that there is not.
[[noreturn]] void no_kernel();

// A plan as kernels get it: in memory, or, from the host, inside their arguments.
constexpr int kInlineBytes = 44 * (sizeof(Record) + sizeof(int64_t) + sizeof(double));  // of 44 samples
struct LaunchPlan {
  PlanView view;
  const double* weight;  // (B,), or one number if weight_shared
  const int32_t* draws;  // flips and holes of a batch that is finished
  bool weight_shared;
  bool travels;  // in `bytes`; the pointers to its parts are then not used
  struct {
    int32_t masks, draws, partner, weight;
  } offset;  // of each part in `bytes`
  alignas(16) char bytes[kInlineBytes];
};

// And patches to paste, and terms to sum.
struct LaunchPatches {
  Patches view;
  bool travels;
  struct {
    int32_t boxes, crops, partner;
  } offset;
  alignas(16) char bytes[kInlineBytes];
};
struct LaunchTerms {
  Terms view;
  bool travels;
  struct {
    int32_t partner, weight;
  } offset;
  alignas(16) char bytes[kInlineBytes];
};

// How a launch goes through a batch; mix_kernel.h has the kernels.
enum class Way : int32_t {
  kNone,    // there is nothing to do
  kEach,    // out of place, or by another batch: blocks have a tile of two samples, and read their partners as well
  kPairs,   // kFlip: blocks have a tile of both samples of a pair
  kRoll,    // in place, kRoll: blocks have a column of all samples, and go from the last to the first
  kTile,    // in place: blocks have a column of all samples, all of which they read before they write any
  kSlices,  // in place, where a column of all samples does not fit, and of 16-bit integers: kEach into scratch, and back, a part of
            // all samples at a time
};
struct Shape {
  Way way;
  int32_t width;         // elements that a thread moves at a time
  int64_t columns;       // vectors of that width in a sample
  int32_t log_column;    // kRoll, kTile: a block has 2^log_column vectors of every sample
  bool by_tile;          // kEach: blocks of one tile of all samples follow each other, not those of all tiles of a sample
  int64_t shared_bytes;  // kTile
  int64_t slice;         // kSlices: vectors of every sample at a time
};

// The sets of families that kernels are compiled for, by what they hold.
constexpr int32_t kConstantSet = kConstants, kCutSet = kCuts, kBoxSet = kConstants | kCuts | kBoxes,
                  kGaussianSet = kConstants | kGaussians, kFormulaSet = kBoxSet | kGaussianSet, kStoredSet = kStored | kLevels;
constexpr int32_t kAnySet = 255;  // all that there are: a part of kernels' names, and so the same when there are more
FUSEDMIX_HD bool within(int32_t families, int32_t set) { return (families & ~set) == 0; }
// Whether a kernel is compiled for a set that has all of the families, other than that of all that there are.
FUSEDMIX_HD bool is_in_a_set(int32_t families) {
  return within(families, kFormulaSet) || within(families, kStoredSet);
}

// Throws std::invalid_argument for a batch that no launch can address.
Shape shape_of(const Images& images, int32_t pairing, int32_t families, const device::Limits& chip);

// How a launch goes through a batch whose samples become something of several others. `by_tile`: as in a Shape.
Shape gather_shape(const Images& images, bool by_tile);

// How a launch goes through a batch that is finished.
struct FinishShape {
  int32_t width;    // pixels that a thread moves at a time, of a channel or, if `colours`, of three; 1: all channels of a pixel
  bool colours;     // bytes of three channels
  bool src_last;    // which lie together in the batch that comes
  int64_t row;      // pixels that lie behind each other: a row of the image, or all of it, where rows are treated alike
  int64_t columns;  // vectors in a sample
  int32_t log_column;
  bool by_tile;  // as those of a Shape
};
// Throws std::invalid_argument for a batch that no launch can address.
FinishShape shape_of(const Finishing& finishing, bool mixes, int32_t pairing, int32_t families);

// What the current device allows.
int limits(device::Limits& out);

// Launches that mix; `targets` that one launch can write besides are written by it. `inverse`: (B,) whose
// partner a sample is, for the adjoint, unless a formula has it. `scratch`: for kSlices. `after_sampler`: the launch before is
// sample(), which made the plan; the first that mixes may then begin before that has ended.
int mix(const Images& images, const LaunchPlan& plan, const Shape& shape, const int32_t* inverse, void* scratch,
        const Targets& targets, bool after_sampler, void* stream);
int64_t scratch_bytes(const Images& images, const Shape& shape);
// Launches that mix with another batch.
int mix_with(const Images& images, const LaunchPlan& plan, const Shape& shape, void* stream);
// Whether there is a kernel for 16 bytes of that type at a time.
FUSEDMIX_HD bool mixes_16_bytes_with(ElementType type, int32_t families) {
  return type < ElementType::kUInt8 || (type == ElementType::kUInt8 && (within(families, kConstantSet) || within(families, kCutSet)));
}
// Whether mix() writes the targets; others need a launch of their own.
bool beside_images(const Targets& targets);
int write_targets(const LaunchPlan& plan, const Targets& targets, void* stream);
// The inverse of the partners. Where these are no permutation it is made of numbers in [0, batch).
int invert(const LaunchPlan& plan, int64_t batch, int32_t* inverse, void* stream);

// Finishes a batch, and mixes it if `mixes`: else only the draws of the plan are there.
int finish(const Finishing& finishing, const LaunchPlan& plan, bool mixes, const FinishShape& shape, void* stream);
int draw_finish(const FinishDraws& draws, void* stream);

// Images with crops of others in them, and sums of images. (blend is the name of what a pixel is mixed by.)
int paste(const Images& images, const LaunchPatches& patches, const Shape& shape, void* stream);
int blend_terms(const Images& images, const LaunchTerms& terms, const Shape& shape, void* stream);

// Draws a plan, by one launch. `device_rows`: the rows of the spec on the device, where there are more than kInlineRows. `scratch`:
// a number for each sample, for kCrossClass.
constexpr int kInlineRows = 16;
int sample(const Sampling& sampling, const MethodRow* device_rows, int32_t* scratch, void* stream);

// Three launches for as many masks as the scratch holds, for each kind of FMix that may have been drawn; of images that a block
// cannot make, four (in 3-D five). Rows of other kinds become 0. `scratch`: fourier_scratch() bytes, at a multiple of 16.
int fourier(const FourierMasks& request, char* scratch, int64_t most_scratch, void* stream);
// No more than `most_scratch` bytes, which is for the masks that are made at a time; for one mask always enough.
int64_t fourier_scratch(const FourierMasks& request, int64_t most_scratch);
constexpr int64_t kMostScratch = int64_t{24} << 20;

// (n, D, H, W) float32 masks.
int masks(const PlanView& plan, int64_t n, const int64_t* size, float* out, void* stream);

}  // namespace fusedmix::cuda
