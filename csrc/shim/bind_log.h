// log.h for Python. Call it once in a pybind11 module that holds the kernels; the record is that module's own.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "log.h"

namespace fusedmix::shim {

inline pybind11::dict launch_as_dict(const Launch& launch) {
  namespace py = pybind11;
  py::dict buffers;
  for (const Use& use : launch.uses) {
    py::dict entry;
    entry["read_bytes"] = use.read_bytes;
    entry["written_bytes"] = use.written_bytes;
    entry["distinct_read_bytes"] = use.distinct_read_bytes;
    entry["distinct_written_bytes"] = use.distinct_written_bytes;
    entry["max_reads"] = use.max_reads;
    entry["max_writes"] = use.max_writes;
    entry["read_widths"] = use.read_widths;
    entry["write_widths"] = use.write_widths;
    buffers[py::str(use.name)] = entry;
  }
  py::dict made;
  made["blocks"] = launch.blocks;
  made["threads"] = launch.threads;
  made["arguments"] = launch.arguments;
  made["shared_bytes"] = launch.shared_bytes;
  made["dependent"] = launch.dependent;
  made["buffers"] = buffers;
  made["error"] = launch.error.empty() ? py::object(py::none()) : py::str(launch.error);
  return made;
}

inline pybind11::array_t<uint32_t> as_array(const std::vector<uint32_t>& values) {
  return pybind11::array_t<uint32_t>(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

inline void bind_log(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace pybind11::literals;  // NOLINT: how pybind11 names arguments
  // Local: every module that is built with the shim has a ShimError of its own.
  py::register_local_exception<Error>(m, "ShimError", PyExc_RuntimeError);
  m.def(
      "watch",
      [](uintptr_t pointer, size_t bytes, const std::string& name, bool writable, bool initialised) {
        watch(reinterpret_cast<const void*>(pointer), bytes, name, writable, initialised);
      },
      "pointer"_a, "bytes"_a, "name"_a, "writable"_a = true, "initialised"_a = true);
  m.def("exchange", &exchange, "name"_a);
  m.def("forget", &forget, "name"_a);
  m.def("forget_all", &forget_all);
  m.def("reset_log", &reset_log);
  py::class_<device::Limits>(m, "Limits", py::module_local())
      .def(py::init([](int multiprocessors, int threads, int shared_bytes, int all_shared_bytes, int reserved_bytes) {
             return device::Limits{multiprocessors, threads, shared_bytes, all_shared_bytes, reserved_bytes};
           }),
           py::kw_only(), "multiprocessors"_a, "threads"_a, "shared_bytes"_a, "all_shared_bytes"_a, "reserved_bytes"_a)
      .def_readwrite("multiprocessors", &device::Limits::multiprocessors)
      .def_readwrite("threads", &device::Limits::threads)
      .def_readwrite("shared_bytes", &device::Limits::shared_bytes)
      .def_readwrite("all_shared_bytes", &device::Limits::all_shared_bytes)
      .def_readwrite("reserved_bytes", &device::Limits::reserved_bytes);
  m.def("limits", [] { return limits(); });
  m.def("set_limits", &set_limits, "limits"_a);
  m.def("seed", &seed, "value"_a);
  m.def("set_yield_probability", &set_yield_probability, "p"_a);
  m.def("launches", [] {
    py::list made;
    for (const Launch& launch : launches()) made.append(launch_as_dict(launch));
    return made;
  });
  m.def(
      "counts",
      [](const std::string& name) {
        const Counts made = counts(name);
        return py::make_tuple(as_array(made.reads), as_array(made.writes));
      },
      "name"_a);
}

}  // namespace fusedmix::shim
