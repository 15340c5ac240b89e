// Where kernels run and their memory lies: a GPU, or the shim that runs them on the CPU (FUSEDMIX_SHIM).
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/step.h"

#if defined(FUSEDMIX_SHIM)
#include "../shim/log.h"
#else
#include <cuda_runtime.h>
#endif

namespace fusedmix::test {

#if defined(FUSEDMIX_SHIM)

inline std::string no_device() { return ""; }
inline std::string device_name() { return "the shim"; }
inline int multiprocessors() { return 4; }
inline void check(int) {}  // the shim throws

// Memory that kernels may touch: exactly its bytes, which the shim sees to.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes, const std::string& name = "") : DeviceBuffer(nullptr, bytes, true, name) {}  // not initialised
  DeviceBuffer(const void* host, size_t bytes, bool writable = true, const std::string& name = "")
      : bytes_(bytes), name_(name.empty() ? "buffer " + std::to_string(++made) : name) {
    memory_ = static_cast<char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256));
    if (memory_ == nullptr) throw std::bad_alloc();
    if (host != nullptr) std::memcpy(memory_, host, bytes);
    shim::watch(memory_, bytes, name_, writable, host != nullptr);
  }
  ~DeviceBuffer() {
    shim::forget(name_);
    std::free(memory_);
  }
  void download(void* host) const { std::memcpy(host, memory_, bytes_); }

#else

inline void check(int error) {
  if (error == 0) return;
  const auto cuda = static_cast<cudaError_t>(error);
  throw std::runtime_error(std::string(cudaGetErrorName(cuda)) + ": " + cudaGetErrorString(cuda));
}

// Why there is no GPU to run on, or nothing.
inline std::string no_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count == 0 ? "there is none" : "";
}
inline std::string device_name() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}
inline int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// An allocation of exactly so many bytes, as compute-sanitizer wants it.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes, const char* = "") : bytes_(bytes) {  // not initialised
    if (bytes > 0) check(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes));
  }
  DeviceBuffer(const void* host, size_t bytes, bool = true, const char* = "") : DeviceBuffer(bytes) {
    if (bytes > 0) check(cudaMemcpy(memory_, host, bytes, cudaMemcpyHostToDevice));
  }
  ~DeviceBuffer() { cudaFree(memory_); }
  // Waits for the kernels before.
  void download(void* host) const {
    check(cudaDeviceSynchronize());
    if (bytes_ > 0) check(cudaMemcpy(host, memory_, bytes_, cudaMemcpyDeviceToHost));
  }

#endif

  template <class T>
  explicit DeviceBuffer(const std::vector<T>& host, bool writable = true)
      : DeviceBuffer(host.data(), host.size() * sizeof(T), writable) {}
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(memory_);
  }
  template <class T>
  std::vector<T> values() const {
    std::vector<T> host(bytes_ / sizeof(T));
    download(host.data());
    return host;
  }

 private:
  size_t bytes_;
  char* memory_ = nullptr;
#if defined(FUSEDMIX_SHIM)
  std::string name_;
  static inline int made = 0;
#endif
};

// For the host program, on a chip of so many multiprocessors.
struct Memory final : cuda::Memory {
  device::Limits chip{};
  std::vector<std::unique_ptr<DeviceBuffer>> kept;

  explicit Memory(int multiprocessors) {
    test::check(cuda::limits(chip));
    chip.multiprocessors = multiprocessors;
  }
  void* empty(const char* name, int64_t bytes) override {
    kept.push_back(std::make_unique<DeviceBuffer>(bytes, name));
    return kept.back()->as<void>();
  }
  const void* upload(const char* name, const void* bytes, int64_t size) override {
    kept.push_back(std::make_unique<DeviceBuffer>(bytes, size, false, name));
    return kept.back()->as<void>();
  }
  const device::Limits& limits() override { return chip; }
  void check(int error) override { test::check(error); }
};

}  // namespace fusedmix::test
