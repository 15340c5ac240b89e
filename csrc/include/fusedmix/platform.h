// What differs between nvcc, g++ and the shim that runs CUDA kernels on the CPU, and nothing else.
//
// Mathematics (every other header of this folder) uses FUSEDMIX_HD and the functions of `fm`. Kernels (csrc/cuda/*.cu)
// also use the second half: no kernel names a CUDA keyword, reads memory or waits but through it, so csrc/shim/ can run
// the very same source on a CPU, log every byte each block touches and find races.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FUSEDMIX_HD __host__ __device__ __forceinline__
#else
// Always inlined: csrc/cpu compiles these for several instruction sets, and the linker must not share one copy.
#define FUSEDMIX_HD inline __attribute__((always_inline))
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
#define FUSEDMIX_UNROLL _Pragma("unroll")
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

// One access of sizeof(T) bytes to global memory (or to the kernel's arguments); p is aligned to alignof(T).
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  *p = value;
}
// The same, as one instruction even where values come from several branches: there nvcc may store 16 bytes in parts.
template <class T>
__device__ __forceinline__ void store_whole(T* p, T value) {
  if constexpr (sizeof(T) == 16) {
    __stcg(p, value);
  } else {
    *p = value;
  }
}

// Adds to an element of a shared array, whatever other threads add to it at the same time.
template <class Array, class T>
__device__ __forceinline__ void add(Array& array, int32_t index, T value) {
  atomicAdd(&array[index], value);
}

// Starts `kernel` on `blocks` one-dimensional blocks; returns a cudaError_t, 0 if all is well.
template <class Args>
inline int launch(void (*kernel)(Args), int64_t blocks, int threads, void* stream, const Args& args) {
  kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(threads), 0, static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fusedmix::device
#endif
