// What platform.h promises to kernels, run on the CPU: threads are fibers, and every access is checked and counted.
//
// For testing only. log.h has the rules and the record; run.cpp the order in which threads run. What bypasses load(),
// store() and shared arrays (a plain *p) is not seen; a thread that never ends is not stopped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <typeinfo>

#include "core.h"

#define FUSEDMIX_KERNEL(threads) void
#define FUSEDMIX_WIDE_KERNEL(threads, blocks) void
#define FUSEDMIX_DEVICE inline
// Arguments are a reference to the launch's one copy, so that its address range is known. A kernel's type is void(const Args&) here.
#define FUSEDMIX_ARGS(type, name) const type& name
#define FUSEDMIX_SHARED(type, name, count)                                                 \
  static constexpr ::fusedmix::shim::Site name##_declared_here{#name, __FILE__, __LINE__}; \
  const ::fusedmix::shim::Shared<type> name(&name##_declared_here, count)
#define FUSEDMIX_DYNAMIC_SHARED(type, name)                                                \
  static constexpr ::fusedmix::shim::Site name##_declared_here{#name, __FILE__, __LINE__}; \
  const ::fusedmix::shim::Shared<type> name(&name##_declared_here)
#define FUSEDMIX_UNROLL
#define FUSEDMIX_UNROLL_2
#define FUSEDMIX_UNROLL_4

namespace fusedmix::shim {

// A declaration of a shared array; its address tells it from the others.
struct Site {
  const char* name;
  const char* file;
  int line;
};

// One block's copy of a shared array.
struct SharedArray {
  const Site* site;
  size_t count, element_bytes;
  unsigned char* data;
  std::vector<Who> writer, readers, adders;  // of each element
};

SharedArray* shared_array(const Site* site, size_t count, size_t element_bytes, size_t alignment);
SharedArray* dynamic_shared_array(const Site* site, size_t element_bytes);
void read_shared(SharedArray* array, int64_t index);
void write_shared(SharedArray* array, int64_t index);
void add_to_shared(SharedArray* array, int64_t index);
void read_global(const void* p, size_t bytes, size_t alignment);
void write_global(const void* p, size_t bytes, size_t alignment);
void barrier(const char* file, int line);
int32_t count(bool mine, const char* file, int line);
void let_next_start();
void wait_for_launch_before();
void run(Launch launch, const void* arguments, size_t argument_bytes, const std::function<void()>& kernel);

// array[i]: reads where it becomes a T, writes where one is assigned. Only as a temporary: `auto x = array[i]` would
// read whenever x is used, so using such an x does not compile.
template <class T>
class SharedElement {
 public:
  SharedElement(SharedArray* array, int64_t index) : array_(array), index_(index) {}
  SharedElement(const SharedElement&) = delete;

  operator T() && { return read(); }  // NOLINT: as an element of an array would
  T operator=(const T& value) && { return write(value); }
  T operator=(SharedElement&& other) && { return write(other.read()); }
  T* operator&() && = delete;  // accesses through a pointer would not be seen

  T operator+=(const T& value) && { return write(static_cast<T>(read() + value)); }
  T operator-=(const T& value) && { return write(static_cast<T>(read() - value)); }
  T operator*=(const T& value) && { return write(static_cast<T>(read() * value)); }
  T operator/=(const T& value) && { return write(static_cast<T>(read() / value)); }
  T operator&=(const T& value) && { return write(static_cast<T>(read() & value)); }
  T operator|=(const T& value) && { return write(static_cast<T>(read() | value)); }
  T operator^=(const T& value) && { return write(static_cast<T>(read() ^ value)); }
  T operator++() && { return write(static_cast<T>(read() + 1)); }
  T operator--() && { return write(static_cast<T>(read() - 1)); }
  T operator++(int) && { return static_cast<T>(write(static_cast<T>(read() + 1)) - 1); }
  T operator--(int) && { return static_cast<T>(write(static_cast<T>(read() - 1)) + 1); }

 private:
  T* at() const { return reinterpret_cast<T*>(array_->data) + index_; }
  T read() const {
    read_shared(array_, index_);
    return *at();
  }
  T write(T value) const {
    write_shared(array_, index_);
    *at() = value;
    return value;
  }

  SharedArray* array_;
  int64_t index_;
};

template <class T>
class Shared {
  static_assert(std::is_trivially_copyable_v<T>, "shared memory has no constructors");

 public:
  Shared(const Site* site, size_t count) : array_(shared_array(site, count, sizeof(T), alignof(T))) {}
  explicit Shared(const Site* site) : array_(dynamic_shared_array(site, sizeof(T))) {
    static_assert(alignof(T) <= 16, "dynamic shared memory begins at a multiple of 16 bytes");
  }
  Shared(const Shared&) = delete;

  template <class Index>
  SharedElement<T> operator[](Index index) const {
    return SharedElement<T>(array_, static_cast<int64_t>(index));
  }
  // Adds as one access: what other threads add meanwhile is not lost.
  template <class Index>
  void add(Index index, T value) const {
    add_to_shared(array_, static_cast<int64_t>(index));
    reinterpret_cast<T*>(array_->data)[index] += value;
  }
  // Reads every element now, for functions that take a pointer.
  operator const T*() const {  // NOLINT: as an array would
    for (size_t i = 0; i < array_->count; ++i) read_shared(array_, static_cast<int64_t>(i));
    return reinterpret_cast<const T*>(array_->data);
  }

 private:
  SharedArray* array_;
};

}  // namespace fusedmix::shim

namespace fusedmix::device {

template <int kBytes>
struct RawOf {
  struct alignas(kBytes) type {
    unsigned char bytes[kBytes];
  };
};

inline uint32_t thread() { return shim::running.thread; }
inline uint32_t block() { return shim::running.block; }
inline uint32_t blocks() { return shim::running.blocks; }
// The caller's place is where threads wait: all of a block must wait at the same one.
inline void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { shim::barrier(file, line); }
inline int32_t count(bool mine, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return shim::count(mine, file, line);
}
inline void let_next_start() { shim::let_next_start(); }
inline void wait_for_plan() { shim::wait_for_launch_before(); }
inline int32_t opaque(int32_t x) { return x; }

template <class T>
inline T load(const T* p) {
  static_assert(std::is_trivially_copyable_v<T>);
  shim::read_global(p, sizeof(T), alignof(T));
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
inline void store(T* p, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  shim::write_global(p, sizeof(T), alignof(T));
  std::memcpy(p, &value, sizeof(T));
}

template <class T>
inline T load_far(const T* p) {
  static_assert(sizeof(T) == 16);
  return load(p);
}

template <class Array, class T>
inline void copy_to_shared(const Array& array, int32_t index, const T* from) {
  array[index] = load(from);
}
inline void copied() {}
template <class T>
inline T from_shared(const shim::Shared<T>& array, int32_t index) {
  return array[index];
}

template <class Array, class T>
inline void add(Array& array, int32_t index, T value) {
  array.add(index, value);
}

template <class T>
inline void store_whole(T* p, T value) {
  store(p, value);
}

inline int limits(Limits& out) {
  out = shim::limits();
  return 0;
}

// Runs the kernel to its end. Throws shim::Error if it broke a rule, or what the kernel threw.
template <class Args>
inline int run(void (*kernel)(const Args&), const shim::Launch& launch, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>, "kernel arguments are copied byte by byte");
  const Args copy = args;
  shim::run(launch, &copy, sizeof(Args), [&] { kernel(copy); });
  return 0;
}
template <class Args>
inline int launch(void (*kernel)(const Args&), int64_t blocks, int threads, void* /*stream*/, const Args& args,
                  int64_t shared_bytes = 0) {
  return run(kernel, {blocks, threads, typeid(Args).name(), static_cast<size_t>(shared_bytes), false}, args);
}
template <class Args>
inline int launch_dependent(void (*kernel)(const Args&), int64_t blocks, int threads, void* /*stream*/, const Args& args,
                            int64_t shared_bytes = 0) {
  return run(kernel, {blocks, threads, typeid(Args).name(), static_cast<size_t>(shared_bytes), true}, args);
}

}  // namespace fusedmix::device
