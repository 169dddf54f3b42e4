// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name: the part of the runtime and of the device functions that csrc/kernels uses,
// as ordinary C++ over the engine in ../simt.h. A kernel that needs more fails to compile; add it here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../simt.h"

#define FASTYOLO_SIMT  // for the few places of csrc/kernels/common.cuh that C++ cannot express
#define __CUDACC__

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// What the stand-in itself does with memory is not an access of the kernel.
#define SIMT_UNCHECKED __attribute__((no_sanitize_thread))
// Barriers and warp intrinsics know where they were called.
#define SIMT_SITE simt::Site site = simt::Site::here()

constexpr int warpSize = simt::kWarpSize;

// --- vector types, with the alignment that their loads and stores demand

#define SIMT_VECTORS(T, name)                                                   \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(float, float)
SIMT_VECTORS(double, double)
SIMT_VECTORS(int, int)
SIMT_VECTORS(unsigned, uint)
SIMT_VECTORS(short, short)
SIMT_VECTORS(unsigned short, ushort)
SIMT_VECTORS(unsigned char, uchar)
SIMT_VECTORS(long long, longlong)
SIMT_VECTORS(unsigned long long, ulonglong)
#undef SIMT_VECTORS

// --- barriers and fences

inline void __syncthreads(SIMT_SITE) { simt::block_barrier(true, site); }
inline int __syncthreads_count(int predicate, SIMT_SITE) { return simt::block_barrier(predicate, site); }
inline int __syncthreads_or(int predicate, SIMT_SITE) { return simt::block_barrier(predicate, site) > 0; }
inline int __syncthreads_and(int predicate, SIMT_SITE) { return simt::block_barrier(!predicate, site) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  simt::warp_exchange("__syncwarp", mask, 0, true, site);
}
inline void __threadfence() { simt::thread_fence(); }
inline void __threadfence_block() {}
inline unsigned __activemask() { return 1u << simt::lane_id(); }  // all that it promises: the caller is active
inline void __trap() { simt::fail("__trap"); }

// --- warp intrinsics: none orders memory

namespace simt {

template <class T>
T shuffle(const char* intrinsic, unsigned mask, T value, int source, bool in_segment, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const WarpValues values = warp_exchange(intrinsic, mask, bits, false, site);
  if (!in_segment) return value;
  if (!(values.present >> source & 1)) {
    fail(std::string(intrinsic) + " reads lane " + std::to_string(source) + ", which does not take part");
  }
  std::memcpy(&value, &values.of[source], sizeof(T));
  return value;
}

inline unsigned ballot(const char* intrinsic, unsigned mask, bool predicate, Site site, unsigned* present = nullptr) {
  const WarpValues values = warp_exchange(intrinsic, mask, predicate, false, site);
  unsigned lanes = 0;
  for (int i = 0; i < kWarpSize; ++i) lanes |= static_cast<unsigned>(values.of[i]) << i;
  if (present) *present = values.present;
  return lanes;
}

template <class T, class F>
T reduce(const char* intrinsic, unsigned mask, T value, Site site, F f) {
  const WarpValues values = warp_exchange(intrinsic, mask, static_cast<uint32_t>(value), false, site);
  T result = value;
  bool first = true;
  for (int i = 0; i < kWarpSize; ++i) {
    if (!(values.present >> i & 1)) continue;
    result = first ? static_cast<T>(values.of[i]) : f(result, static_cast<T>(values.of[i]));
    first = false;
  }
  return result;
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, SIMT_SITE) {
  const int segment = simt::lane_id() & -width;
  return simt::shuffle("__shfl_sync", mask, value, segment + (source & (width - 1)), true, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, SIMT_SITE) {
  const int source = simt::lane_id() - static_cast<int>(delta);
  return simt::shuffle("__shfl_up_sync", mask, value, source, source >= (simt::lane_id() & -width), site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, SIMT_SITE) {
  const int source = simt::lane_id() + static_cast<int>(delta);
  return simt::shuffle("__shfl_down_sync", mask, value, source, source < (simt::lane_id() & -width) + width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, SIMT_SITE) {
  const int source = simt::lane_id() ^ lane_mask;
  return simt::shuffle("__shfl_xor_sync", mask, value, source, source < (simt::lane_id() & -width) + width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::ballot("__all_sync", mask, !predicate, site) == 0;
}

#define SIMT_REDUCE(T, name, expression)                                                                         \
  inline T __reduce_##name##_sync(unsigned mask, T value, SIMT_SITE) {                                           \
    return simt::reduce("__reduce_" #name "_sync", mask, value, site, [](T a, T b) -> T { return expression; }); \
  }
SIMT_REDUCE(unsigned, add, a + b)
SIMT_REDUCE(int, add, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
SIMT_REDUCE(unsigned, min, a < b ? a : b)
SIMT_REDUCE(int, min, a < b ? a : b)
SIMT_REDUCE(unsigned, max, a > b ? a : b)
SIMT_REDUCE(int, max, a > b ? a : b)
SIMT_REDUCE(unsigned, and, a& b)
SIMT_REDUCE(unsigned, or, a | b)
SIMT_REDUCE(unsigned, xor, a ^ b)
#undef SIMT_REDUCE

template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const simt::WarpValues values = simt::warp_exchange("__match_any_sync", mask, bits, false, site);
  unsigned lanes = 0;
  for (int i = 0; i < warpSize; ++i)
    lanes |= static_cast<unsigned>((values.present >> i & 1) && values.of[i] == bits) << i;
  return lanes;
}

// --- atomics

namespace simt {
template <class T, class F>
SIMT_UNCHECKED T atomic(T* address, F f) {
  before_atomic(address, sizeof(T));
  const T old = *address;
  *address = f(old);
  return old;
}
}  // namespace simt

template <class T>
using SimtValue = std::common_type_t<T>;  // the address alone decides the type

#define SIMT_ATOMIC(name, expression)                                                \
  template <class T>                                                                 \
  T name(T* address, SimtValue<T> value) {                                           \
    return simt::atomic(address, [=](T old) { return static_cast<T>(expression); }); \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicMin, value < old ? value : old)
SIMT_ATOMIC(atomicMax, value > old ? value : old)
SIMT_ATOMIC(atomicAnd, old& value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicXor, old ^ value)
SIMT_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
SIMT_ATOMIC(atomicExch, ((void)old, value))
#undef SIMT_ATOMIC
template <class T>
T atomicCAS(T* address, SimtValue<T> compare, SimtValue<T> value) {
  return simt::atomic(address, [=](T old) { return old == compare ? value : old; });
}

// --- loads and stores with cache hints

template <class T>
T __ldg(const T* address) {
  simt::before_read_only(address, sizeof(T));
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, SimtValue<T> value) {
  *address = value;
}
template <class T>
void __stcs(T* address, SimtValue<T> value) {
  *address = value;
}

// --- arithmetic. Compiled with -ffp-contract=off, so that each operation rounds once; the approximate functions are
// exact.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return 1.f / a; }
// Fast functions at their worst, as the CUDA C++ Programming Guide bounds them: dividing by more than 2^126 gives 0, or
// NaN of an infinity, and an exponential is 2 + floor(|1.173 x|) units in the last place away.
inline float __fdividef(float a, float b) {
  const bool huge = std::fabs(b) > 0x1p126f && !std::isinf(b);
  return huge ? (std::isinf(a) ? NAN : std::copysign(0.f, a) * std::copysign(1.f, b)) : a / b;
}
inline float __expf(float a) {
  const double error = std::isfinite(a) ? (2 + std::floor(std::fabs(1.173 * a))) * 0x1p-23 : 0;
  return static_cast<float>(std::exp(static_cast<double>(a)) * (1 + error));
}
inline float __logf(float a) { return std::log(a); }
inline float __saturatef(float a) { return a > 0.f ? (a < 1.f ? a : 1.f) : 0.f; }
inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }

#define SIMT_MIN_MAX(T)                            \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64; }
inline unsigned __brev(unsigned a) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (a >> i & 1u) << (31 - i);
  return reversed;
}

namespace simt {
template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace simt
inline int __float_as_int(float a) { return simt::bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return simt::bit_cast<unsigned>(a); }
inline float __int_as_float(int a) { return simt::bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return simt::bit_cast<float>(a); }

// --- runtime. Everything on a stream happens at the call. Work on one stream while another's has not been waited for
// is reported.

enum [[nodiscard]] cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
enum { cudaStreamNonBlocking = 1 };
cudaError_t cudaStreamCreate(cudaStream_t* stream);  // in order with the null stream: the same here
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaDeviceSynchronize();

// Graphs: a program that asks is told that there are none.
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0 };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t*, cudaGraph_t, unsigned long long) {
  return cudaErrorNotSupported;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaErrorNotSupported; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaErrorNotSupported; }

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
cudaError_t cudaMalloc(void** address, size_t bytes);
template <class T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(address), bytes);
}
cudaError_t cudaFree(void* address);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream = nullptr);

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
  int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

namespace simt {

cudaError_t launch(const Launch& launch);  // after the checks of the device's limits

template <class... P>
struct KernelCall {
  void (*kernel)(P...);
  std::tuple<P...> arguments;

  template <size_t... I>
  SIMT_UNCHECKED void operator()(std::index_sequence<I...>) const {
    kernel(std::get<I>(arguments)...);
  }
  SIMT_UNCHECKED static void run(const void* call) {
    (*static_cast<const KernelCall*>(call))(std::index_sequence_for<P...>{});
  }
};

}  // namespace simt

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const simt::KernelCall<P...> call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  return simt::launch({reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                       config->dynamicSmemBytes, config->stream, call.run, &call});
}
