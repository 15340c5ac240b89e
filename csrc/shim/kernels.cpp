// The CUDA kernels, run on the CPU, and the per-pixel headers, for pytest. Memory comes as addresses: the caller's tensors.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../cuda/kernels.h"
#include "../cuda/losses.h"
#include "../include/fusedmix/blend.h"
#include "../include/fusedmix/losses.h"
#include "bind_log.h"

namespace py = pybind11;
using namespace fusedmix;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cuda::Images images_of(const py::dict& x) {
  const auto sizes = x["sizes"].cast<std::vector<int64_t>>();
  const auto src = x["src_strides"].cast<std::vector<int64_t>>(), dst = x["dst_strides"].cast<std::vector<int64_t>>();
  return {static_cast<ElementType>(x["type"].cast<int>()),
          at<void>(x["src"].cast<uintptr_t>()),
          at<void>(x["dst"].cast<uintptr_t>()),
          make_layout(static_cast<int>(sizes.size()), sizes.data(), src.data(), dst.data(), x["spatial"].cast<int>()),
          x["adjoint"].cast<bool>()};
}

PlanView plan_of(const py::dict& p) {
  PlanView plan{at<int64_t>(p["partner"].cast<uintptr_t>()), at<int32_t>(p["kind"].cast<uintptr_t>()),
          at<int32_t>(p["geometry"].cast<uintptr_t>()), at<float>(p["value"].cast<uintptr_t>()), p["pairing"].cast<int32_t>(),
          p["shared"].cast<bool>(), {}};
  if (!p.contains("pixels")) return plan;
  const auto d = p["pixels"].cast<py::dict>();
  const auto side = d["side"].cast<std::array<int64_t, 3>>();
  plan.pixels = {at<uint32_t>(d["bits"].cast<uintptr_t>()), at<uint16_t>(d["levels"].cast<uintptr_t>()), d["stride"].cast<int64_t>(),
                 {side[0], side[1], side[2]}, d["per"].cast<int32_t>(), d["batch"].cast<int64_t>()};
  return plan;
}

py::dict walk_dict(const cuda::Walk& w) {
  py::dict d;
  d["width"] = w.width;
  d["columns"] = w.columns;
  d["tiles"] = w.tiles;
  d["units"] = w.units;
  d["span"] = w.span;
  d["heads"] = w.heads;
  d["staged_bytes"] = w.staged_bytes;
  return d;
}

cuda::Walk walk_of(const py::dict& d) {
  return {d["width"].cast<int32_t>(), d["columns"].cast<int64_t>(), d["tiles"].cast<int64_t>(), d["units"].cast<int64_t>(),
          d["span"].cast<int64_t>(),  d["heads"].cast<bool>(),      d["staged_bytes"].cast<int64_t>()};
}

// None: no targets.
cuda::Targets targets_of(const py::object& o) {
  cuda::Targets t{};
  if (o.is_none()) return t;
  const auto d = o.cast<py::dict>();
  t.labels = at<void>(d["labels"].cast<uintptr_t>());
  t.label_type = d["label_type"].cast<int32_t>();
  t.soft = d["soft"].cast<bool>();
  t.row_stride = d["row_stride"].cast<int64_t>();
  t.step = d["step"].cast<int64_t>();
  t.weight = at<double>(d["weight"].cast<uintptr_t>());
  t.weight_shared = d["weight_shared"].cast<bool>();
  t.batch = d["batch"].cast<int64_t>();
  t.num_classes = d["num_classes"].cast<int64_t>();
  t.smoothing = d["smoothing"].cast<double>();
  t.out = at<void>(d["out"].cast<uintptr_t>());
  t.out_type = static_cast<ElementType>(d["out_type"].cast<int>());
  return t;
}

cuda::InlinePlan inlined(const std::optional<py::bytes>& travelling) {
  cuda::InlinePlan inline_plan{};
  if (travelling) {
    const std::string bytes = *travelling;
    if (bytes.size() > sizeof(inline_plan)) throw py::value_error("too large to travel");
    std::memcpy(inline_plan.bytes, bytes.data(), bytes.size());
  }
  return inline_plan;
}

// `travelling`: the plan inside the kernel's arguments, as bytes; its addresses are then offsets into them.
void mix(const py::object& images, const py::dict& plan, const std::optional<py::bytes>& travelling, const py::dict& walk,
         uintptr_t staged, const py::object& targets) {
  cuda::Images x{};
  if (!images.is_none()) x = images_of(images.cast<py::dict>());
  const cuda::InlinePlan inline_plan = inlined(travelling);
  cuda::mix(images.is_none() ? nullptr : &x, plan_of(plan), travelling ? &inline_plan : nullptr, walk_of(walk), at<void>(staged),
            targets_of(targets), nullptr);
}

void sample(const py::dict& d, const py::object& images, const py::dict& walk, uintptr_t staged) {
  cuda::Sampling s{};
  s.rows = at<MethodRow>(d["rows"].cast<uintptr_t>());
  s.methods = d["methods"].cast<int32_t>();
  s.device_rows = at<MethodRow>(d["device_rows"].cast<uintptr_t>());
  s.batch = d["batch"].cast<int64_t>();
  s.ndim = d["ndim"].cast<int32_t>();
  const auto size = d["size"].cast<std::array<int64_t, 3>>();
  std::copy(size.begin(), size.end(), s.size);
  s.pairing = d["pairing"].cast<int32_t>();
  s.per = d["per"].cast<int32_t>();
  s.p = d["p"].cast<double>();
  s.lam = at<float>(d["lam"].cast<uintptr_t>());
  s.lam_each = d["lam_each"].cast<bool>();
  s.classes = at<int64_t>(d["classes"].cast<uintptr_t>());
  s.seed = at<int64_t>(d["seed"].cast<uintptr_t>());
  s.seed_value = d["seed_value"].cast<uint64_t>();
  s.scratch = at<int32_t>(d["scratch"].cast<uintptr_t>());
  const auto out = d["out"].cast<std::array<uintptr_t, 6>>();
  s.out = {at<int64_t>(out[0]), at<float>(out[1]), at<double>(out[2]), at<int32_t>(out[3]), at<int32_t>(out[4]), at<float>(out[5])};
  cuda::Images x{};
  if (!images.is_none()) x = images_of(images.cast<py::dict>());
  cuda::sample(s, images.is_none() ? nullptr : &x, walk_of(walk), at<void>(staged), nullptr);
}

cuda::Fourier fourier_of(const py::dict& d) {
  cuda::Fourier f{};
  f.rows = at<MethodRow>(d["rows"].cast<uintptr_t>());
  f.methods = d["methods"].cast<int32_t>();
  f.ndim = d["ndim"].cast<int32_t>();
  const auto size = d["size"].cast<std::array<int64_t, 3>>();
  std::copy(size.begin(), size.end(), f.size);
  f.batch = d["batch"].cast<int64_t>();
  f.per = d["per"].cast<int32_t>();
  f.draws = d["draws"].cast<int32_t>();
  f.seed = at<int64_t>(d["seed"].cast<uintptr_t>());
  f.seed_value = d["seed_value"].cast<uint64_t>();
  f.kind = at<int32_t>(d["kind"].cast<uintptr_t>());
  f.geometry = at<int32_t>(d["geometry"].cast<uintptr_t>());
  f.value = at<float>(d["value"].cast<uintptr_t>());
  f.bits = at<uint32_t>(d["bits"].cast<uintptr_t>());
  f.levels = at<uint16_t>(d["levels"].cast<uintptr_t>());
  f.scratch = at<char>(d["scratch"].cast<uintptr_t>());
  f.most_scratch = d["most_scratch"].cast<int64_t>();
  return f;
}

cuda::Loss loss_of(const py::dict& d) {
  cuda::Loss loss{};
  loss.type = static_cast<ElementType>(d["type"].cast<int>());
  loss.logits = at<void>(d["logits"].cast<uintptr_t>());
  loss.row_stride = d["row_stride"].cast<int64_t>();
  loss.step = d["step"].cast<int64_t>();
  loss.labels = at<void>(d["labels"].cast<uintptr_t>());
  loss.label_type = d["label_type"].cast<int32_t>();
  loss.soft = d["soft"].cast<bool>();
  loss.label_stride = d["label_stride"].cast<int64_t>();
  loss.label_step = d["label_step"].cast<int64_t>();
  loss.weight = at<double>(d["weight"].cast<uintptr_t>());
  loss.weight_shared = d["weight_shared"].cast<bool>();
  loss.class_weight = at<void>(d["class_weight"].cast<uintptr_t>());
  loss.pos_weight = at<void>(d["pos_weight"].cast<uintptr_t>());
  loss.batch = d["batch"].cast<int64_t>();
  loss.num_classes = d["num_classes"].cast<int64_t>();
  loss.smoothing = d["smoothing"].cast<double>();
  loss.ignore = d["ignore"].cast<int64_t>();
  loss.thresholded = !d["threshold"].is_none();
  if (loss.thresholded) loss.threshold = d["threshold"].cast<double>();
  loss.binary = d["binary"].cast<bool>();
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

}  // namespace

PYBIND11_MODULE(fusedmix_cuda_shim, m) {
  shim::bind_log(m);
  m.def("plan_walk", [](const py::dict& images, int32_t pairing, int multiprocessors) {
    return walk_dict(cuda::plan_walk(images_of(images), pairing, multiprocessors));
  });
  m.def("stage", [](const py::dict& images, const py::dict& walk, uintptr_t staged) {
    cuda::stage(images_of(images), walk_of(walk), at<void>(staged), nullptr);
  });
  m.def("mix", &mix);
  m.def("sample", &sample);
  m.def("fourier_scratch", [](const py::dict& f) { return cuda::fourier_scratch(fourier_of(f)); });
  m.def("fourier", [](const py::dict& f) { cuda::fourier(fourier_of(f), nullptr); });
  m.def("masks", [](const py::dict& plan, int64_t n, std::array<int64_t, 3> size, uintptr_t out) {
    cuda::masks(plan_of(plan), n, size.data(), at<float>(out), nullptr);
  });
  m.def("loss_rows", [](const py::dict& loss, const py::dict& plan, const std::optional<py::bytes>& travelling,
                        uintptr_t losses, uintptr_t statistics) {
    const cuda::InlinePlan bytes = inlined(travelling);
    cuda::loss_rows(loss_of(loss), plan_of(plan), travelling ? &bytes : nullptr, at<void>(losses), at<void>(statistics), nullptr);
  });
  m.def("finish_loss", [](const py::dict& loss, uintptr_t losses, bool counted, double factor, uintptr_t out, uintptr_t scale) {
    cuda::finish_loss(loss_of(loss), at<void>(losses), counted, factor, at<void>(out), at<void>(scale), nullptr);
  });
  m.def("loss_gradient", [](const py::dict& loss, const py::dict& plan, const std::optional<py::bytes>& travelling,
                            uintptr_t grad, int64_t grad_step, double factor, uintptr_t scale, uintptr_t statistics,
                            uintptr_t out) {
    const cuda::InlinePlan bytes = inlined(travelling);
    cuda::loss_gradient(loss_of(loss), plan_of(plan), travelling ? &bytes : nullptr, at<void>(grad), grad_step, factor,
                        at<void>(scale), at<void>(statistics), at<void>(out), nullptr);
  });
  m.attr("INLINE_BYTES") = cuda::kInlineBytes;
  m.attr("THREADS") = cuda::kThreads;

  m.def("exp_nonpositive", [](py::array_t<double> x) {
    py::array_t<double> wide(x.size());
    py::array_t<float> narrow(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) {
      wide.mutable_at(i) = exp_nonpositive(x.at(i));
      narrow.mutable_at(i) = exp_nonpositive(static_cast<float>(x.at(i)));
    }
    return py::make_tuple(wide, narrow);
  });
  m.def("log1p_unit", [](py::array_t<double> u) {
    py::array_t<double> wide(u.size());
    py::array_t<float> narrow(u.size());
    for (py::ssize_t i = 0; i < u.size(); ++i) {
      wide.mutable_at(i) = log1p_unit(u.at(i));
      narrow.mutable_at(i) = log1p_unit(static_cast<float>(u.at(i)));
    }
    return py::make_tuple(wide, narrow);
  });
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
  m.def("symmetric_beta", &symmetric_beta);
}
