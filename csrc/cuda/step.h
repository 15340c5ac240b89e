// The host program of the CUDA backend, free of torch: how a plan gets to where kernels can read it, which way through a batch
// is taken, and what is launched in which order. The binding (csrc/binding/cuda.cpp) calls it with torch's memory; the tests run
// the same code with the shim's. What is refused is thrown, before anything is launched.
#pragma once

#include "losses.h"
#include "pixel_losses.h"

namespace fusedmix::cuda {

// Where memory comes from and where things run. What it gave lives as long as it does.
struct Memory {
  void* stream = nullptr;
  virtual ~Memory() = default;
  // Memory of the device, at a multiple of 16 bytes. The error names it if there is too little.
  virtual void* empty(const char* name, int64_t bytes) = 0;
  // Bytes of the host on the device, in stream order.
  virtual const void* upload(const char* name, const void* bytes, int64_t size) = 0;
  virtual const device::Limits& limits() = 0;
  // Throws where a launch returned an error.
  virtual void check(int error) = 0;
};

// A tensor of a plan, contiguous. Null: no kernel reads it.
template <class T>
struct Part {
  const T* data;
  bool on_host;
};

// A plan as the caller has it: on the device, or on the host.
struct GivenPlan {
  int64_t batch;
  int32_t families, pairing;
  bool shared;         // row 0 of the masks serves every sample
  bool weight_shared;  // so does the first weight
  Part<int64_t> partner;
  Part<Record> masks;  // at a multiple of 16 bytes
  Part<double> weight;
  Pixels pixels;  // apart from the others: masks that are stored exceed a kernel's arguments
  bool pixels_on_host;
  Part<int32_t> draws;  // flips and holes of a batch that is finished, so many words each; at a multiple of 16 bytes
  int64_t draw_words;
  int64_t others = 0;  // partners are samples of another batch, which has so many
};

// Several partners for each sample: patches and terms that have been checked as far as the host can read them. All parts are contiguous.
struct GivenPatches {
  int64_t batch;
  int32_t count, ndim;
  Resize resize;
  Part<int64_t> partner;
  Part<int32_t> boxes, crops;
};
struct GivenTerms {
  int64_t batch;
  int32_t count;
  Part<int64_t> partner;
  Part<float> weight;
};

// A plan where kernels can read it: as it is, in their arguments, or in one upload if it is too large for these. Partners that
// the host can read are checked, and left out where a formula has them.
LaunchPlan place(Memory& memory, const GivenPlan& given);

// One batch on its way through the kernels. Its shape is chosen, by the pairing and the families that the plan will have, and its memory had,
// before anything is drawn. Without images, or elements in them, there are only targets.
class Pass {
 public:
  Pass(Memory& memory, const Images* images, int32_t pairing, int32_t families);
  Pass(Memory& memory, const Images* images, const Shape& shape);
  // A plan that is drawn on the device.
  void sample(const Sampling& sampling) const;
  // `after_sampler`: sample() was called just now, and nothing else was launched since.
  void mix(const LaunchPlan& plan, const Targets& targets, bool after_sampler = false) const;
  // A whole step. A kernel draws what `sampling` asks for (null: it was drawn on the host) before others read `made`.
  void run(const Sampling* sampling, const GivenPlan& made, const Targets& targets) const;

  const Shape shape;

 private:
  Memory& memory_;
  const Images* images_;
  void* scratch_;
};

// Images by a plan that is there, with another batch if there is one. `permutation`: partners must be one, as in place and for gradients.
Shape apply(Memory& memory, const Images& images, const GivenPlan& given, bool permutation);

// Images with crops of others in them, and sums of images.
Shape paste(Memory& memory, const Images& images, const GivenPatches& given);
Shape blend_terms(Memory& memory, const Images& images, const GivenTerms& given);

// Finishes a batch by a plan, or, if it is not to be mixed, by the draws of one that has nothing else.
FinishShape finish(Memory& memory, const Finishing& finishing, const GivenPlan& given, bool mixes);

// The functions of kernels.h and losses.h, with the memory that they need.
void masks(Memory& memory, const GivenPlan& given, const int64_t* size, float* out);
void fourier(Memory& memory, const FourierMasks& request, int64_t most_scratch = kMostScratch);

// factor, counted: as finish_loss has them.
void loss(Memory& memory, const Loss& loss, const GivenPlan& given, bool counted, double factor, const LossOut& out);
void loss_gradient(Memory& memory, const Loss& loss, const GivenPlan& given, const LossGrad& grad, void* out);

// The cross entropy of mixed label maps. `mean`: as finish_pixel_losses has it.
void pixel_loss(Memory& memory, const PixelLoss& loss, const GivenPlan& given, bool mean, const PixelOut& out);
void pixel_gradient(Memory& memory, const PixelLoss& loss, const GivenPlan& given, const PixelGrad& grad);

}  // namespace fusedmix::cuda
