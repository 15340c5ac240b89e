// What differs between nvcc, g++ and the shim that runs CUDA kernels on the CPU, and nothing else.
//
// Mathematics (every other header of this folder) uses FUSEDMIX_HD and the functions of `fm`. Kernels (csrc/cuda/*.cu)
// also use the second half: no kernel names a CUDA keyword, reads memory or waits but through it, so csrc/shim/ can run
// the very same source on a CPU, log every byte each block touches and find races.
#pragma once

#include <cmath>
#include <cstdint>

#include "limits.h"

#if defined(__CUDACC__)
#define FUSEDMIX_HD __host__ __device__ __forceinline__
#define FUSEDMIX_NO_UNROLL _Pragma("unroll 1")
#else
// Always inlined: csrc/cpu compiles these for several instruction sets, and the linker must not share one copy.
#define FUSEDMIX_HD inline __attribute__((always_inline))
#define FUSEDMIX_NO_UNROLL
#endif

namespace fusedmix {

// One rounding, whatever the compiler would contract.
FUSEDMIX_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

FUSEDMIX_HD double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// cos(2πx). On a GPU cos() itself has a path for large arguments that takes a stack.
FUSEDMIX_HD double cos_turns(double x) {
#if defined(__CUDA_ARCH__)
  return cospi(2.0 * x);
#else
  return cos(2.0 * 3.141592653589793 * x);
#endif
}

// e^(-rate·x), neither being negative. On a GPU within two units in the last place of 1, and 0 below the normal numbers: two
// instructions for each x, not ten.
FUSEDMIX_HD float near_exp(float rate, float x) {
#if defined(__CUDA_ARCH__)
  constexpr float kMost = 0x1.fffffep127f;  // a rate that is infinite would make NaN of 0
  const float binary = rate * 1.4426950408889634f;
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"((binary > kMost ? -kMost : -binary) * x));
  return power;
#else
  return expf(-rate * x);
#endif
}

// √x and a / b of normal numbers. On a GPU within two units in the last place: rounded rightly they have branches and are called.
FUSEDMIX_HD float near_root(float x) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return sqrtf(x);
#endif
}
FUSEDMIX_HD float near_quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
FUSEDMIX_HD double near_quotient(double a, double b) { return a / b; }

}  // namespace fusedmix

#if defined(FUSEDMIX_SHIM)
#include "../../shim/device.h"  // the same names as below, run by fibers
#elif defined(__CUDACC__)

// Three blocks of 128 threads at least must fit on a multiprocessor (csrc/cuda/mix_kernel.h). Without that number ptxas aims at
// some more, and for it spills a few bytes of the kernels that need few registers.
#define FUSEDMIX_KERNEL(threads) __global__ void __launch_bounds__(threads, 3)
// For kernels whose blocks are few and large: how many must fit. Here too ptxas aims at more if it is not said.
#define FUSEDMIX_WIDE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FUSEDMIX_DEVICE __device__ __forceinline__
// An argument struct by value that may be indexed and pointed to without a copy to local memory.
#define FUSEDMIX_ARGS(type, name) const __grid_constant__ type name
#define FUSEDMIX_SHARED(type, name, count) __shared__ type name[count]
// An array of as many as the launch gave bytes for, at a multiple of 16 bytes. One in a kernel.
#define FUSEDMIX_DYNAMIC_SHARED(type, name)          \
  extern __shared__ uint4 fusedmix_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(fusedmix_dynamic_shared)
#define FUSEDMIX_UNROLL _Pragma("unroll")
#define FUSEDMIX_UNROLL_2 _Pragma("unroll 2")
#define FUSEDMIX_UNROLL_4 _Pragma("unroll 4")

namespace fusedmix::device {

// What one load or store instruction moves. The built-in vectors: of a struct nvcc may move the members one by one.
template <int kBytes>
struct RawOf;
template <>
struct RawOf<16> {
  using type = uint4;
};
template <>
struct RawOf<8> {
  using type = uint2;
};
template <>
struct RawOf<4> {
  using type = uint32_t;
};
template <>
struct RawOf<2> {
  using type = uint16_t;
};
template <>
struct RawOf<1> {
  using type = uint8_t;
};

__device__ __forceinline__ uint32_t thread() { return threadIdx.x; }
__device__ __forceinline__ uint32_t block() { return blockIdx.x; }
__device__ __forceinline__ uint32_t blocks() { return gridDim.x; }
// Waits for all threads of the block, and makes what they wrote visible to each other.
__device__ __forceinline__ void sync() { __syncthreads(); }
// Waits as sync() does, and returns how many of the threads say yes.
__device__ __forceinline__ int32_t count(bool mine) { return __syncthreads_count(mine ? 1 : 0); }

// Of two launches that overlap, the first says let_next_start(), and launch_dependent() starts the second, which may touch what
// the first touches only when it has waited. Nothing may be loaded as constant across the wait.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_plan() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A number of which the compiler is to know nothing: what follows is then compiled once, and not once for each value.
__device__ __forceinline__ int32_t opaque(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// One access of sizeof(T) bytes to global memory (or to the kernel's arguments); p is aligned to alignof(T).
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  *p = value;
}
// Loads 16 bytes out of the L2 cache: before wait_for_plan() what the caches nearer by hold may be older than what the
// stream has written.
template <class T>
__device__ __forceinline__ T load_far(const T* p) {
  return __ldcg(p);
}
// A store as one instruction even where values come from several branches: there nvcc may store 16 bytes in parts.
template <class T>
__device__ __forceinline__ void store_whole(T* p, T value) {
  if constexpr (sizeof(T) == 16) {
    __stcg(p, value);
  } else {
    *p = value;
  }
}

// array[index] = *from, in 4, 8 or 16 bytes, which do not pass through registers: any number of them may be under way until
// copied() waits for those of this thread. Others see them after sync().
template <class T>
__device__ __forceinline__ void copy_to_shared(T* array, int32_t index, const T* from) {
  if constexpr (sizeof(T) >= 4) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(array + index));
    if constexpr (sizeof(T) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from)) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "n"(sizeof(T)) : "memory");
    }
  } else {
    array[index] = *from;
  }
}
// array[index] as one access: nvcc may load the members of a vector one by one.
template <class T>
__device__ __forceinline__ T from_shared(const T* array, int32_t index) {
  if constexpr (sizeof(T) == 16) {
    T value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(array + index))));
    return value;
  } else {
    return array[index];
  }
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Adds to an element of a shared array, whatever other threads add to it at the same time.
template <class Array, class T>
__device__ __forceinline__ void add(Array& array, int32_t index, T value) {
  atomicAdd(&array[index], value);
}

// The limits of the current device. Like all that follows it returns a cudaError_t, 0 if all is well.
inline int limits(Limits& out) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(out.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(out.threads, cudaDevAttrMaxThreadsPerMultiProcessor);
  ask(out.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(out.all_shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(out.reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock);
  return static_cast<int>(error);
}

// What went wrong, which CUDA otherwise keeps as its last error and says again after the next launch.
inline int taken(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
}

// What launches must know of a kernel on the current device, found out once for each.
struct Prepared {
  bool done = false;
  bool waits = false;  // wait_for_plan() is in its code
};

// Also lets launches of the kernel have all the dynamic shared memory that there is, where they may by themselves have 48 KiB.
// No operation of a stream, and so allowed while one is captured. Defined by mix.cu: it takes headers that are long to read.
int prepare(const void* kernel, Prepared& out);

// Lets launches of `kernel` on the current device have so much dynamic shared memory.
template <class Args>
inline int allow_shared(void (*kernel)(Args), int64_t bytes) {
  Prepared its;
  return bytes == 0 ? 0 : prepare(reinterpret_cast<const void*>(kernel), its);
}

// Starts `kernel` on `blocks` one-dimensional blocks, each with so many bytes for FUSEDMIX_DYNAMIC_SHARED.
template <class Args>
inline int launch(void (*kernel)(Args), int64_t blocks, int threads, void* stream, const Args& args, int64_t shared_bytes = 0) {
  if (const int error = allow_shared(kernel, shared_bytes); error != 0) return error;
  kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(threads), static_cast<size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
}

// Launches right after a launch that lets this one start before it has ended.
template <class Args>
inline int launch_dependent(void (*kernel)(Args), int64_t blocks, int threads, void* stream, const Args& args,
                            int64_t shared_bytes = 0) {
  Prepared its;
  if (const int error = prepare(reinterpret_cast<const void*>(kernel), its); error != 0) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = its.waits ? 1 : 0;
  return taken(cudaLaunchKernelEx(&config, kernel, args));
}

}  // namespace fusedmix::device
#endif
