// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: element types, vector loads, warp and block sums, launches.
//
// tests/simt runs these files as ordinary C++, so the CUDA that they use is kept to a small and portable set. Extend it
// together with tests/simt:
//   kernels     1-D grids of 1-D blocks of whole warps, static __shared__, shared_memory(), __launch_bounds__,
//               __grid_constant__
//   threads     __syncthreads; __ballot_sync, __any_sync, __shfl_sync, __shfl_up_sync, __shfl_xor_sync with all lanes
//   memory      __ldg of 2 to 16 bytes, atomicAdd, atomicOr, atomicExch, __threadfence
//   arithmetic  __popc, __ffs, min, max, fminf, fmaxf, fma, fmaf, nextafterf, exp2f, expf, __expf, __fadd_rn,
//               __fsub_rn, __fmul_rn, __fdiv_rn, __fdividef, __float_as_uint, __uint_as_float, conversions of __half
//               and __nv_bfloat16, __hmax2_nan
//   host        cudaLaunchKernelEx, cudaFuncSetAttribute, cudaMemsetAsync, cudaGetLastError, cudaGetErrorString
//   CUB         cub::DeviceRadixSort::SortPairsDescending, in cub.cuh alone
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common.h"

namespace fastyolo {
namespace {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// f(0), f(1), ... with constants: for indices into registers that a loop's variable would send to local memory.
template <int... Is, class F>
__device__ void unrolled(std::integer_sequence<int, Is...>, F&& f) {
  (f(std::integral_constant<int, Is>{}), ...);
}

// --- elements

template <DType D>
struct ElementOf;
template <>
struct ElementOf<DType::kFloat32> {
  using type = float;
};
template <>
struct ElementOf<DType::kFloat16> {
  using type = __half;
};
template <>
struct ElementOf<DType::kBFloat16> {
  using type = __nv_bfloat16;
};
template <DType D>
using Element = typename ElementOf<D>::type;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Consecutive elements that one instruction loads or stores.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

// Of the widest vector.
template <class T>
constexpr int kVectorElements = 16 / static_cast<int>(sizeof(T));

template <size_t kBytes>
struct RawOf;
template <>
struct RawOf<2> {
  using type = unsigned short;
};
template <>
struct RawOf<4> {
  using type = unsigned;
};
template <>
struct RawOf<8> {
  using type = uint2;
};
template <>
struct RawOf<16> {
  using type = uint4;
};

// The same as one register or a few. Vectors that wait for their use in arrays are kept like this: compilers make
// 16-bit registers of half-precision elements.
template <class T, int kWidth>
using Raw = typename RawOf<sizeof(T) * kWidth>::type;

template <class T, int kWidth>
__device__ Vector<T, kWidth> from_raw(const Raw<T, kWidth>& raw) {
  Vector<T, kWidth> vector;
  std::memcpy(&vector, &raw, sizeof(raw));
  return vector;
}

template <class T, int kWidth>
__device__ Raw<T, kWidth> to_raw(const Vector<T, kWidth>& vector) {
  Raw<T, kWidth> raw;
  std::memcpy(&raw, &vector, sizeof(raw));
  return raw;
}

// `p` is aligned to the whole vector, and nothing writes there during the kernel.
template <int kWidth, class T>
__device__ Raw<T, kWidth> load_raw(const T* p) {
  return __ldg(reinterpret_cast<const Raw<T, kWidth>*>(p));
}

// `p` is aligned to the whole vector, in memory that the kernel may write: shared memory above all.
template <int kWidth, class T>
__device__ Raw<T, kWidth> read_raw(const T* p) {
  return *reinterpret_cast<const Raw<T, kWidth>*>(p);
}

template <int kWidth, class T>
__device__ Vector<T, kWidth> load_vector(const T* p) {
  return from_raw<T, kWidth>(load_raw<kWidth>(p));
}

template <class T>
__device__ float load_float(const T* p) {
  return to_float(load_vector<1>(p).values[0]);
}

template <int kWidth, class T>
__device__ void store_vector(T* p, const Vector<T, kWidth>& vector) {
  *reinterpret_cast<Raw<T, kWidth>*>(p) = to_raw(vector);
}

// The block's dynamic shared memory: as much as launch_shared() was asked for.
template <class T>
__device__ T* shared_memory() {
#ifdef FASTYOLO_SIMT
  return static_cast<T*>(simt::dynamic_shared_memory());
#else
  extern __shared__ uint4 dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

// --- warps and blocks

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline uint32_t lanes_before() { return (1u << lane_index()) - 1; }

__device__ inline uint32_t warp_inclusive_sum(uint32_t value) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, value, offset);
    if (lane_index() >= offset) value += other;
  }
  return value;
}

// The sum over all lanes, in all lanes, in an order that depends on nothing.
__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// One slot for each lane whose flag is set, with one atomic for the warp. All lanes must call it.
__device__ inline uint32_t claim_slot(bool wanted, uint32_t* counter) {
  const uint32_t votes = __ballot_sync(kAllLanes, wanted);
  uint32_t first = 0;
  if (lane_index() == 0 && votes != 0) first = atomicAdd(counter, static_cast<uint32_t>(__popc(votes)));
  return __shfl_sync(kAllLanes, first, 0) + __popc(votes & lanes_before());
}

// --- host

inline Status check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status{};
  (void)cudaGetLastError();  // reported here, and not again by the caller's next check
  return Status::error("%s failed: %s", what, cudaGetErrorString(error));
}

// Lays out a workspace, region after region.
struct Regions {
  int64_t bytes = 0;

  int64_t add(int64_t size) {
    const int64_t offset = bytes;
    bytes += align_up(size);
    return offset;
  }
};

template <class T>
T* region(void* workspace, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(workspace) + offset);
}

// Blocks get this much shared memory without asking. Every architecture has kMaxSharedBytes for those that ask.
constexpr int64_t kDefaultSharedBytes = 48 << 10;
constexpr int64_t kMaxSharedBytes = 64 << 10;

// A kernel that takes dynamic shared memory has no other: __shared__ variables would count towards both limits. Those
// that ask always ask for the same, since what is asked for stays and holds for the launches of all threads.
template <class... Params, class... Args>
Status launch_shared(const char* name, void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
                     Stream stream, const Args&... args) {
  if (blocks == 0) return Status{};  // CUDA refuses an empty grid
  if (shared_bytes > kDefaultSharedBytes) {
    const Status status = check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMaxSharedBytes)),
        name);
    if (!status.ok()) return status;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return check_cuda(cudaLaunchKernelEx(&config, kernel, args...), name);
}

template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads, Stream stream,
              const Args&... args) {
  return launch_shared(name, kernel, blocks, threads, 0, stream, args...);
}

}  // namespace
}  // namespace fastyolo
