// Batches that are finished (fusedmix/finishing.py): the operators as torch calls them, for both bindings. What they are called with
// is checked and becomes the records that backends read; functions that the binding defines do the work.
#pragma once

#include "operators.h"

namespace fusedmix {

// The arguments of _FINISH in fusedmix/ops.py.
struct GivenFinish {
  Tensor affine;
  Maybe draws;
  int64_t fill;
  bool nhwc;
  ScalarType dtype;
  bool channels_last;
};

// ---- what each binding defines ----

// Without masks each sample by itself.
Tensor finished(const Tensor& x, const GivenFinish& how, const GivenMasks* masks);
Tensor draw_finish(Tensor chances, int64_t holes, Tensor seed, int64_t batch_size, int64_t height, int64_t width, Device device);

// ---- records ----

// What a batch is finished by, but for a plan. The tensors live as long as `args` is used.
struct FinishTensors {
  Tensor affine, draws;  // without `draws` in args there are none
  int64_t sides[3]{1, 1, 1};
  Finishing args{};

  // Of draws that are on a GPU only their shape is checked: kernels look at no more holes than there is room for.
  FinishTensors(const Tensor& x, const GivenFinish& how) : dtype_(how.dtype) {
    if (x.dim() != 4) refuse("x", x, how.nhwc ? "(B, H, W, C)" : "(B, C, H, W)");
    const int64_t c = how.nhwc ? 3 : 1, h = how.nhwc ? 1 : 2, w = how.nhwc ? 2 : 3;
    args.batch = x.size(0), args.channels = x.size(c), args.height = x.size(h), args.width = x.size(w);
    sides[1] = args.height, sides[2] = args.width;
    check_sides(sides, 0);
    args.type = element_type(x);
    if (is_short(args.type)) refuse("x must be uint8 or floating point, but is " + name_of(x.scalar_type()));
    if (args.type == ElementType::kFloat64) refuse("x must not be float64: such batches are finished by the reference backend");
    if (how.dtype != ScalarType::Float && how.dtype != ScalarType::Half && how.dtype != ScalarType::BFloat16) {
      refuse("dtype must be float32, float16 or bfloat16, but is " + name_of(how.dtype));
    }
    args.src = x.const_data_ptr();
    args.step[0] = x.stride(0), args.step[1] = x.stride(c), args.step[2] = x.stride(h), args.step[3] = x.stride(w);
    args.channels_last = how.channels_last;
    affine = packed("affine", how.affine, ScalarType::Float, {3, args.channels});
    args.affine = const_data<float>(affine);
    check_number("fill", how.fill, kFillNumber, kFillEachPixel);
    args.fill = static_cast<Fill>(how.fill);
    if (how.draws) add_draws(*how.draws);
  }
  FinishTensors(const FinishTensors&) = delete;

  // The new batch.
  Tensor allocate(int32_t device_type, int32_t device_index) {
    const int64_t sizes[4] = {args.batch, args.channels, args.height, args.width};
    const auto least = [](int64_t n) { return std::max<int64_t>(1, n); };
    const int64_t c = least(args.channels), h = least(args.height), w = least(args.width);
    const int64_t planar[4] = {c * h * w, h * w, w, 1}, last[4] = {c * h * w, 1, w * c, c};
    const int64_t* strides = args.channels_last ? last : planar;
    const Tensor out = fusedmix::allocate("the finished images", 4, sizes, strides, dtype_, device_type, device_index);
    args.made = element_type(out);
    args.dst = out.mutable_data_ptr();
    return out;
  }

 private:
  void add_draws(const Tensor& given) {
    args.draw_words = given.dim() == 2 ? given.size(1) : 0;
    const int64_t most = holes_of_words(args.draw_words);
    if (args.draw_words < kFinishHead || args.draw_words != finish_words(most) || most > kMostHoles) {
      refuse("draws", given, "int32 of shape (B, 4 + 4·holes), of at most 16 holes");
    }
    draws = packed("draws", given, ScalarType::Int, {args.batch, args.draw_words});
    args.draws = const_data<int32_t>(draws);
    for (int64_t i = 0; !draws.is_cuda() && i < args.batch; ++i) {
      check_number("the holes of a record in draws", args.draws[i * args.draw_words + kWordHoles], 0, most);
    }
  }

  ScalarType dtype_;
};

// What draw_finish is asked for, without the records that it is to write.
inline FinishDraws finish_draws(const Tensor& chances, int64_t holes, const Tensor& seed, int64_t batch_size, int64_t height,
                                int64_t width) {
  if (chances.is_cuda()) refuse("chances must be on the CPU");
  const Tensor numbers = packed("chances", chances, ScalarType::Double, {kFinishDrawWidth});
  packed_number("seed", seed, ScalarType::Long, true);
  check_number("the batch size", batch_size, 0, INT64_MAX);
  const int64_t sides[3] = {1, height, width};
  check_sides(sides, 0);
  check_number("holes", holes, 0, kMostHoles);
  FinishDraws args{};
  std::copy_n(const_data<double>(numbers), kFinishDrawWidth, reinterpret_cast<double*>(&args.draw));
  const FinishDraw& d = args.draw;
  const auto within = [](double x, double low, double high) { return x >= low && x <= high; };  // no NaN
  const bool areas = within(d.area_low, 0, 1) && within(d.area_high, 0, 1);
  if (!(within(d.flip, 0, 1) && within(d.erase, 0, 1) && areas && within(d.ratio_low, 1e-6, 1e6) && within(d.ratio_log, 0, 28))) {
    refuse("chances must be probabilities and areas in [0, 1], and ratios in [1e-6, 1e6]");
  }
  const double least = d.least, most = d.most;
  if (!(least >= 0 && least <= most && most == static_cast<double>(holes))) {
    refuse("chances must be of as many holes as they are said to be");
  }
  args.seed = seed_of(seed);
  args.batch = batch_size, args.height = height, args.width = width;
  return args;
}

// ---- the operators ----

template <class... Fields>
struct FinishOperators {
  static Tensor finish(Tensor x, Tensor affine, Maybe draws, int64_t fill, bool nhwc, ScalarType dtype, bool channels_last) {
    return finished(x, {affine, draws, fill, nhwc, dtype, channels_last}, nullptr);
  }
  static Tensor finish_mix(Tensor x, Tensor affine, Maybe draws, int64_t fill, bool nhwc, ScalarType dtype, bool channels_last,
                           Fields... fields) {
    const GivenMasks masks{std::move(fields)...};
    if (masks.ndim != 0 && masks.ndim != 2) refuse("ndim must be 0 or 2, but is " + std::to_string(masks.ndim));
    check_hints(masks.pairing, masks.per);
    return finished(x, {affine, draws, fill, nhwc, dtype, channels_last}, &masks);
  }
};
using OfFinish = FinishOperators<Tensor, Tensor, int64_t, int64_t, int64_t, int64_t, Maybe>;

// All but `draw_finish`, whose tensors may be elsewhere.
inline void implement_finish(torch::stable::detail::StableLibrary& m) {
  m.impl("finish", TORCH_BOX(&OfFinish::finish));
  m.impl("finish_mix", TORCH_BOX(&OfFinish::finish_mix));
}

}  // namespace fusedmix
