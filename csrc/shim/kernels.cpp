// The CUDA backend's host program (csrc/cuda/step.h) and kernels, run on the CPU, and the per-pixel headers, for pytest. Tensors
// are torch's, asked through Python where they lie; memory for a device is the shim's.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../cuda/borders.h"
#include "../cuda/grid_cut.h"
#include "../cuda/step.h"
#include "../include/fusedmix/blend.h"
#include "../include/fusedmix/losses.h"
#include "../tests/device_memory.h"
#include "bind_log.h"

namespace py = pybind11;
using namespace fusedmix;

namespace {

using test::Memory;

// What a kernel may be told of a tensor; of None nothing.
struct Tensor {
  char* data = nullptr;
  std::vector<int64_t> sizes, strides;
  LabelType label_type = kLabelInt64;

  Tensor(const py::object& t) {  // NOLINT: as a caster would
    if (t.is_none()) return;
    data = reinterpret_cast<char*>(t.attr("data_ptr")().cast<uintptr_t>());
    sizes = t.attr("shape").cast<std::vector<int64_t>>();
    strides = t.attr("stride")().cast<std::vector<int64_t>>();
    static const std::vector<std::string> names{"int64",  "int32",  "int16",   "int8",    "uint8",    "uint16",
                                                "uint32", "uint64", "float32", "float16", "bfloat16", "float64"};
    const auto name = py::str(t.attr("dtype")).cast<std::string>().substr(std::strlen("torch."));
    const auto found = std::find(names.begin(), names.end(), name == "bool" ? "uint8" : name);
    if (found == names.end()) throw py::value_error("a tensor of " + name);
    label_type = static_cast<LabelType>(found - names.begin());
  }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  ElementType type() const {
    if (label_type >= kLabelFloat) return static_cast<ElementType>(label_type - kLabelFloat);
    return label_type == kLabelInt16 ? ElementType::kInt16 : (label_type == kLabelUInt16 ? ElementType::kUInt16 : ElementType::kUInt8);
  }
  int64_t stride(size_t d) const { return d < strides.size() ? strides[d] : 0; }
};

template <class T>
T* data(const py::object& t) {
  return Tensor(t).as<T>();
}

void set_sides(const py::dict& plan, int64_t (&sides)[3]) {
  const auto given = plan["side"].cast<std::array<int64_t, 3>>();
  std::copy(given.begin(), given.end(), sides);
}

// (src, dst, how many dims are spatial, whether the adjoint is wanted, and the batch that partners are of if it is another one)
Images images_of(const py::tuple& images) {
  const Tensor src(images[0]), dst(images[1]), other(images.size() > 4 ? py::object(images[4]) : py::none());
  const Layout layout = make_layout(static_cast<int>(src.sizes.size()), src.sizes.data(), src.strides.data(),
                                    dst.strides.data(), images[2].cast<int>());
  const int64_t others = other.data == nullptr ? 0 : other.sizes[0];
  return {src.type(), src.data, dst.data, layout, images[3].cast<bool>(), other.data, other.stride(0), others};
}

cuda::GivenPlan plan_of(const py::dict& d) {
  const auto on_host = [&](const char* name) { return d["on_host"].contains(name); };
  cuda::GivenPlan plan{};
  plan.batch = d["batch"].cast<int64_t>();
  plan.families = d["families"].cast<int32_t>();
  plan.pairing = d["pairing"].cast<int32_t>();
  plan.shared = d["shared"].cast<bool>();
  plan.weight_shared = d["weight_shared"].cast<bool>();
  plan.partner = {data<int64_t>(d["partner"]), on_host("partner")};
  plan.masks = {data<Record>(d["masks"]), on_host("masks")};
  plan.weight = {data<double>(d["weight"]), on_host("weight")};
  const Tensor draws(d["draws"]);
  plan.draws = {draws.as<int32_t>(), on_host("draws")};
  plan.draw_words = draws.data == nullptr ? 0 : draws.sizes[1];
  const Tensor pixels(d["pixels"]);
  if (pixels.data == nullptr) return plan;
  const bool soft = pixels.label_type == kLabelInt16;
  plan.pixels = {soft ? nullptr : pixels.as<uint32_t>(), soft ? pixels.as<uint16_t>() : nullptr, pixels.sizes[1], {},
                 d["per"].cast<int32_t>(), plan.batch};
  set_sides(d, plan.pixels.side);
  plan.pixels_on_host = on_host("pixels");
  return plan;
}

// Several partners for each sample, and what is taken of them.
template <class T>
cuda::Part<T> part_of(const py::object& t, bool on_host) {
  return {data<T>(t), on_host};
}

void bind_gathers(py::module_& m) {
  m.def("paste", [](Memory& memory, const py::tuple& images, const py::object& partner, const py::object& boxes, const py::object& crops,
                    int resize, bool on_host) {
    const Tensor of(partner), sides(boxes);
    return cuda::paste(memory, images_of(images),
                       {of.sizes[0], static_cast<int32_t>(of.sizes[1]), static_cast<int32_t>(sides.sizes[2] / 2), static_cast<Resize>(resize),
                        part_of<int64_t>(partner, on_host), part_of<int32_t>(boxes, on_host), part_of<int32_t>(crops, on_host)});
  });
  m.def("blend", [](Memory& memory, const py::tuple& images, const py::object& partner, const py::object& weight, bool on_host) {
    const Tensor of(partner);
    return cuda::blend_terms(memory, images_of(images),
                             {of.sizes[0], static_cast<int32_t>(of.sizes[1]), part_of<int64_t>(partner, on_host), part_of<float>(weight, on_host)});
  });
}

Labels labels_of(const Tensor& y) { return {y.data, y.label_type, y.sizes.size() == 2, y.stride(0), y.stride(1)}; }

Targets targets_of(const py::object& labels, const py::object& out, double smoothing) {
  const Tensor to(out);
  Labels from = labels_of(labels);
  if (to.data == nullptr) from.data = nullptr;
  return {from, to.sizes[0], to.sizes[1], smoothing, to.data, to.type()};
}

// A seed in memory, or one that travels with the launch.
Seed seed_of(const py::object& seed) {
  if (!py::isinstance<py::int_>(seed)) return {data<int64_t>(seed), 0};
  return {nullptr, py::cast<uint64_t>(seed.attr("__mod__")(py::int_(1).attr("__lshift__")(64)))};
}

void set_rows(const py::object& spec, const MethodRow*& rows, int32_t& methods) {
  const Tensor t(spec);
  rows = t.as<MethodRow>();
  methods = static_cast<int32_t>(t.sizes[0]);
}

// The first fields of fusedmix/draws.py, Request; `made` is the plan to write.
Sampling sampling_of(const py::tuple& request, const py::object& seed, const py::dict& made) {
  Sampling s{};
  set_rows(request[0], s.rows, s.methods);
  s.batch = request[1].cast<int64_t>();
  s.extent.ndim = static_cast<int32_t>(py::len(request[2]));
  set_sides(made, s.extent.size);
  s.pairing = request[3].cast<int32_t>();
  s.per = request[4].cast<int32_t>();
  s.p = request[5].cast<double>();
  const Tensor lam(request[6]);
  s.lam = lam.as<float>();
  s.lam_each = !lam.sizes.empty();
  s.classes = data<int64_t>(request[7]);
  s.seed = seed_of(seed);
  s.out = {data<int64_t>(made["partner"]), data<float>(made["lam"]), data<double>(made["weight"]), data<Record>(made["masks"])};
  return s;
}

// Returns the shape.
cuda::Shape step(Memory& memory, const py::tuple& images, const py::object& request, const py::object& seed,
                const py::dict& made, const Targets& targets) {
  const Images x = images_of(images);
  const cuda::Pass pass(memory, &x, made["pairing"].cast<int32_t>(), made["families"].cast<int32_t>());
  const Sampling sampling = seed.is_none() ? Sampling{} : sampling_of(request, seed, made);
  pass.run(seed.is_none() ? nullptr : &sampling, plan_of(made), targets);
  return pass.shape;
}

void fourier(Memory& memory, const py::object& spec, const py::dict& plan, const py::object& seed, int32_t ndim, int32_t draws,
             int64_t most_scratch, const py::object& out) {
  const cuda::GivenPlan of = plan_of(plan);
  FourierMasks f{};
  set_rows(spec, f.rows, f.methods);
  f.extent.ndim = ndim;
  set_sides(plan, f.extent.size);
  f.batch = of.batch;
  f.per = plan["per"].cast<int32_t>();
  f.draws = draws;
  f.seed = seed_of(seed);
  f.masks = of.masks.data;
  const Tensor pixels(out);
  const bool soft = pixels.label_type == kLabelInt16;
  f.bits = soft ? nullptr : pixels.as<uint32_t>();
  f.levels = soft ? pixels.as<uint16_t>() : nullptr;
  cuda::fourier(memory, f, most_scratch);
}

// A batch (B, C, H, W) with the strides that it has, the new one, and FinishArguments but for the draws, which the plan has.
Finishing finishing_of(const py::object& x, const py::object& out, const py::dict& how, const cuda::GivenPlan& plan) {
  const Tensor from(x), to(out);
  Finishing f{};
  f.type = from.type(), f.made = to.type();
  f.src = from.data, f.dst = to.data;
  std::copy_n(from.strides.begin(), 4, f.step);
  f.channels_last = how["channels_last"].cast<bool>();
  f.batch = from.sizes[0], f.channels = from.sizes[1], f.height = from.sizes[2], f.width = from.sizes[3];
  f.affine = data<float>(how["affine"]);
  f.draws = plan.draws.data, f.draw_words = plan.draw_words;
  f.fill = static_cast<Fill>(how["fill"].cast<int>());
  f.constant = how["constant"].cast<bool>();
  return f;
}

void bind_finish(py::module_& m) {
  py::class_<cuda::FinishShape>(m, "FinishShape")
      .def_readonly("width", &cuda::FinishShape::width)
      .def_readonly("colours", &cuda::FinishShape::colours)
      .def_readonly("row", &cuda::FinishShape::row)
      .def_readonly("by_tile", &cuda::FinishShape::by_tile);
  m.def("finish", [](Memory& memory, const py::object& x, const py::object& out, const py::dict& how, const py::dict& plan, bool mixes) {
    const cuda::GivenPlan its = plan_of(plan);
    return cuda::finish(memory, finishing_of(x, out, how, its), its, mixes);
  });
  m.def("draw_finish", [](Memory& memory, const std::array<double, kFinishDrawWidth>& chances, const py::object& seed,
                          const std::array<int64_t, 2>& size, const py::object& out) {
    const Tensor records(out);
    FinishDraws draws{{}, seed_of(seed), records.sizes[0], size[0], size[1], records.as<int32_t>()};
    std::copy(chances.begin(), chances.end(), reinterpret_cast<double*>(&draws.draw));
    memory.check(cuda::draw_finish(draws, nullptr));
  });
}

Loss loss_of(const py::dict& d) {
  const Tensor z(d["logits"]);
  Loss loss{};
  loss.type = z.type();
  loss.logits = z.data;
  loss.row_stride = z.stride(0);
  loss.step = z.stride(1);
  loss.labels = labels_of(py::object(d["labels"]));
  loss.class_weight = data<void>(d["class_weight"]);
  loss.pos_weight = data<void>(d["pos_weight"]);
  loss.batch = z.sizes[0];
  loss.num_classes = z.sizes[1];
  loss.smoothing = d["smoothing"].cast<double>();
  loss.binary = d["ignore"].is_none();
  if (!loss.binary) loss.ignore = d["ignore"].cast<int64_t>();
  loss.thresholded = !d["threshold"].is_none();
  if (loss.thresholded) loss.threshold = d["threshold"].cast<double>();
  return loss;
}

// The per-pixel functions over flat arrays. 16-bit types travel as their bits.
template <class T, class Bits>
void bind_element(py::module_& m, const char* name) {
  const std::string suffix = name;
  m.def(("blend_" + suffix).c_str(), [](py::array_t<float> w, py::array_t<Bits> a, py::array_t<Bits> b) {
    py::array_t<Bits> out(w.size());
    for (py::ssize_t i = 0; i < w.size(); ++i) {
      const T mixed = blend<T>(w.at(i), bit_cast<T>(a.at(i)), bit_cast<T>(b.at(i)));
      out.mutable_at(i) = bit_cast<Bits>(mixed);
    }
    return out;
  });
  m.def(("to_compute_" + suffix).c_str(), [](py::array_t<Bits> x) {
    py::array_t<Compute<T>> out(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) out.mutable_at(i) = to_compute(bit_cast<T>(x.at(i)));
    return out;
  });
}

template <class T>
void bind_rounding(py::module_& m, const char* name) {
  m.def(name, [](py::array_t<float> x) {
    py::array_t<uint16_t> out(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) out.mutable_at(i) = from_compute<T>(x.at(i)).bits;
    return out;
  });
}

// A function of one number, in float64 and in float32.
template <class F>
void bind_function(py::module_& m, const char* name, const F& f) {
  m.def(name, [f](py::array_t<double> x) {
    py::array_t<double> wide(x.size());
    py::array_t<float> narrow(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      wide.mutable_at(i) = f(x.at(i));
      narrow.mutable_at(i) = f(static_cast<float>(x.at(i)));
    }
    return py::make_tuple(wide, narrow);
  });
}

// How launches go through images and through rows of losses.
void bind_shapes(py::module_& m) {
  py::enum_<cuda::Way>(m, "Way")
      .value("NONE", cuda::Way::kNone)
      .value("EACH", cuda::Way::kEach)
      .value("PAIRS", cuda::Way::kPairs)
      .value("ROLL", cuda::Way::kRoll)
      .value("TILE", cuda::Way::kTile)
      .value("SLICES", cuda::Way::kSlices);
  py::class_<cuda::Shape>(m, "Shape")
      .def_readwrite("way", &cuda::Shape::way)
      .def_readwrite("width", &cuda::Shape::width)
      .def_readwrite("columns", &cuda::Shape::columns)
      .def_readwrite("log_column", &cuda::Shape::log_column)
      .def_readwrite("by_tile", &cuda::Shape::by_tile)
      .def_readwrite("shared_bytes", &cuda::Shape::shared_bytes)
      .def_readwrite("slice", &cuda::Shape::slice);
  py::class_<cuda::LossShape>(m, "LossShape")
      .def_readonly("wide", &cuda::LossShape::wide)
      .def_readonly("log_lanes", &cuda::LossShape::log_lanes)
      .def_readonly("parts", &cuda::LossShape::parts)
      .def_readonly("length", &cuda::LossShape::length)
      .def_readonly("blocks", &cuda::LossShape::blocks);
}

void bind_losses(py::module_& m) {
  m.def("loss", [](Memory& memory, const py::dict& loss, const py::dict& plan, bool counted, double factor,
                   const std::array<py::object, 4>& out) {
    cuda::loss(memory, loss_of(loss), plan_of(plan), counted, factor,
               {data<void>(out[0]), data<void>(out[1]), data<void>(out[2]), data<void>(out[3])});
  });
  m.def("loss_shape", [](const py::dict& loss, const py::object& gradient, int multiprocessors) {
    return gradient.is_none() ? cuda::forward_shape(loss_of(loss), multiprocessors)
                              : cuda::backward_shape(loss_of(loss), data<void>(gradient), multiprocessors);
  });
  m.def("loss_gradient", [](Memory& memory, const py::dict& loss, const py::dict& plan, const py::object& grad, double factor,
                            const py::object& scale, const py::object& statistics, const py::object& out) {
    const Tensor g(grad);
    cuda::loss_gradient(memory, loss_of(loss), plan_of(plan),
                        {g.data, g.stride(0), factor, data<void>(scale), data<void>(statistics)}, data<void>(out));
  });
}

// The steps of logits (B, K, *S), or of their gradient. All numbers of pixels are contiguous.
PixelSteps steps_of(const Tensor& t) {
  PixelSteps by{t.stride(0), t.stride(1), {0, 0, 0}};
  std::copy(t.strides.begin() + 2, t.strides.end(), by.side + 5 - t.strides.size());
  return by;
}

PixelLoss pixel_loss_of(const py::dict& d) {
  const Tensor z(d["logits"]), maps(d["maps"]);
  PixelLoss loss{};
  loss.type = z.type();
  loss.logits = z.data;
  loss.by = steps_of(z);
  loss.maps = maps.data;
  loss.label = maps.label_type;
  loss.class_weight = data<void>(d["class_weight"]);
  loss.batch = z.sizes[0], loss.samples = maps.sizes[0], loss.classes = z.sizes[1];
  set_sides(d, loss.side);
  loss.pixels = loss.side[0] * loss.side[1] * loss.side[2];
  loss.smoothing = d["label_smoothing"].cast<double>();
  loss.ignore = d["ignore_index"].cast<int64_t>();
  return loss;
}

void bind_pixel_losses(py::module_& m) {
  m.def("pixel_loss", [](Memory& memory, const py::dict& loss, const py::dict& plan, bool mean, const std::array<py::object, 4>& out) {
    cuda::pixel_loss(memory, pixel_loss_of(loss), plan_of(plan), mean,
                     {data<void>(out[0]), data<void>(out[1]), data<void>(out[2]), data<void>(out[3])});
  });
  m.def("pixel_gradient", [](Memory& memory, const py::dict& loss, const py::dict& plan, const py::object& grad, const py::object& logsumexp,
                             const py::object& scale, const py::object& out) {
    const Tensor g(grad), to(out);
    cuda::pixel_gradient(memory, pixel_loss_of(loss), plan_of(plan),
                         {g.data, !g.sizes.empty(), data<void>(logsumexp), data<void>(scale), to.data, steps_of(to)});
  });
  py::class_<cuda::PixelShape>(m, "PixelShape")
      .def_readonly("wide", &cuda::PixelShape::wide)
      .def_readonly("row", &cuda::PixelShape::row)
      .def_readonly("blocks", &cuda::PixelShape::blocks);
  m.def("pixel_shape", [](const py::dict& loss, const py::object& gradient) {
    if (gradient.is_none()) return cuda::pixel_shape(pixel_loss_of(loss), nullptr);
    const Tensor to(gradient);
    const PixelGrad grad{nullptr, false, nullptr, nullptr, to.data, steps_of(to)};
    return cuda::pixel_shape(pixel_loss_of(loss), &grad);
  });
}

void bind_mathematics(py::module_& m) {
  bind_function(m, "exp_nonpositive", [](auto x) { return exp_nonpositive(x); });
  bind_function(m, "log1p_unit", [](auto u) { return log1p_unit(u); });
  bind_element<float, float>(m, "float32");
  bind_element<double, double>(m, "float64");
  bind_element<uint8_t, uint8_t>(m, "uint8");
  bind_element<Half, uint16_t>(m, "float16");
  bind_element<BFloat16, uint16_t>(m, "bfloat16");
  bind_rounding<Half>(m, "round_float16");
  bind_rounding<BFloat16>(m, "round_bfloat16");
  m.def("philox", [](std::array<uint32_t, 4> c, uint32_t k0, uint32_t k1) {
    const Words w = philox4x32({c[0], c[1], c[2], c[3]}, k0, k1);
    return std::array<uint32_t, 4>{w.a, w.b, w.c, w.d};
  });
  m.def("uniform", &uniform);
  m.def("below", &below);
  m.def("symmetric_beta", [](uint64_t seed, uint64_t index, double alpha) { return symmetric_beta(seed, index, alpha); });
}

}  // namespace

PYBIND11_MODULE(fusedmix_cuda_shim, m) {
  shim::bind_log(m);
  py::class_<Memory>(m, "Memory").def(py::init<int>());
  bind_shapes(m);
  py::class_<Targets>(m, "Targets").def(py::init(&targets_of));
  m.def("shape_of", [](Memory& memory, const py::tuple& images, int32_t pairing, int32_t families) {
    return cuda::shape_of(images_of(images), pairing, families, memory.chip);
  });
  m.def("apply", [](Memory& memory, const py::tuple& images, const py::dict& plan, bool permutation) {
    return cuda::apply(memory, images_of(images), plan_of(plan), permutation);
  });
  // By a shape that is given, instead of the one that apply() chooses.
  m.def("mix", [](Memory& memory, const py::tuple& images, const py::dict& plan, const cuda::Shape& shape) {
    const Images x = images_of(images);
    cuda::Pass(memory, &x, shape).mix(cuda::place(memory, plan_of(plan)), Targets{});
  });
  m.def("mix_labels", [](Memory& memory, const py::dict& plan, const Targets& targets) {
    memory.check(cuda::write_targets(cuda::place(memory, plan_of(plan)), targets, nullptr));
  });
  m.def("sample", [](Memory& memory, const py::tuple& request, const py::object& seed, const py::dict& made) {
    cuda::Pass(memory, nullptr, kRandom, 0).sample(sampling_of(request, seed, made));
  });
  m.def("step", &step);
  m.def("fourier", &fourier);
  m.def("border_costs", [](Memory& memory, const py::object& images, const py::object& partner, const py::object& scale,
                           std::array<int64_t, 2> cells, const py::object& right, const py::object& down) {
    const Tensor x(images);
    const auto &size = x.sizes, &step = x.strides;
    const BorderCosts args{x.type(), x.data, {step[0], step[1], step[2], step[3]}, size[0], size[1],
                           {block_side(size[2], cells[0]), block_side(size[3], cells[1])}, data<int64_t>(partner), data<float>(scale),
                           {data<float>(down), data<float>(right)}};
    memory.check(cuda::border_costs(args, nullptr));
  });
  m.def("label_grid", [](Memory& memory, const py::object& unary, const py::object& right, const py::object& down, const py::object& out) {
    const Tensor labels(out);
    memory.check(cuda::label_grid({data<int32_t>(unary), data<int32_t>(right), data<int32_t>(down), labels.as<int32_t>(),
                                   labels.sizes[0], static_cast<int32_t>(labels.sizes[1]), static_cast<int32_t>(labels.sizes[2])},
                                  nullptr));
  });
  m.def("masks", [](Memory& memory, const py::dict& plan, const py::object& out) {
    int64_t sides[3];
    set_sides(plan, sides);
    cuda::masks(memory, plan_of(plan), sides, data<float>(out));
  });
  bind_gathers(m);
  bind_finish(m);
  bind_losses(m);
  bind_pixel_losses(m);
  m.attr("INLINE_BYTES") = cuda::kInlineBytes;
  m.attr("THREADS") = cuda::kThreads;
  bind_mathematics(m);
}
