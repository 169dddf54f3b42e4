// SPDX-License-Identifier: Apache-2.0
// The host side of include/cuda_runtime.h: a configurable device, and the errors of launches.
#include <cstdio>
#include <map>

#include "include/cuda_runtime.h"

namespace simt {

Device device;

namespace {

std::map<const void*, size_t> dynamic_shared_limits;  // of kernels that asked for more than the default
cudaError_t last_error = cudaSuccess;
const void* unchecked_kernel = nullptr;  // its launch failed, and nobody has looked yet
int launches_before_failure = -1;

// The stream that has work which nobody has waited for. There is one at most: work on a second is reported.
bool is_busy = false;
const CUstream_st* busy_stream = nullptr;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refuse_launch(const void* kernel) {
  unchecked_kernel = kernel;
  return remember(cudaErrorInvalidConfiguration);
}

// Null if work on this stream comes after all the work before it.
const char* take_stream(const CUstream_st* stream) {
  if (is_busy && busy_stream != stream) {
    return "work on one stream while another stream's has not been waited for";
  }
  is_busy = true;
  busy_stream = stream;
  return nullptr;
}

// Whether a copy or a fill may go ahead.
bool begin_transfer(cudaStream_t stream) {
  check_launch_error();
  const char* problem = take_stream(stream);
  if (problem) fail(problem);
  return !problem;
}

// What the device cannot run, or null.
const char* beyond_limits(const Launch& launch) {
  const auto [gx, gy, gz] = launch.grid;
  const auto [bx, by, bz] = launch.block;
  if (gx == 0 || gy == 0 || gz == 0 || bx == 0 || by == 0 || bz == 0) return "an empty grid or block";
  if (gx > 0x7fffffffu || gy > 65535 || gz > 65535) return "a grid beyond 2147483647 x 65535 x 65535 blocks";
  if (bz > 64 || uint64_t{bx} * by * bz > device.block_threads) return "more threads in a block than the device has";
  const auto asked = dynamic_shared_limits.find(launch.kernel);
  const size_t limit = asked == dynamic_shared_limits.end() ? device.shared_bytes : asked->second;
  if (launch.dynamic_shared_bytes > limit) return "more dynamic shared memory than the kernel was allowed";
  return nullptr;
}

}  // namespace

void fail_launch_after(int count) { launches_before_failure = count; }

void check_launch_error() {
  if (!unchecked_kernel) return;
  fail_launch(unchecked_kernel, "the error of this kernel's launch was not checked");
  unchecked_kernel = nullptr;
}

cudaError_t launch(const Launch& launch) {
  check_launch_error();
  if (const char* problem = beyond_limits(launch)) {
    char text[256];
    std::snprintf(text, sizeof(text),
                  "launch with %s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of dynamic shared memory", problem,
                  launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z,
                  launch.dynamic_shared_bytes);
    fail_launch(launch.kernel, text);
    return refuse_launch(launch.kernel);
  }
  if (const char* problem = take_stream(launch.stream)) {
    fail_launch(launch.kernel, problem);
    return remember(cudaErrorLaunchFailure);
  }
  if (launches_before_failure >= 0 && launches_before_failure-- == 0) return refuse_launch(launch.kernel);
  return execute(launch) ? cudaSuccess : remember(cudaErrorLaunchFailure);
}

}  // namespace simt

using namespace simt;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorNotSupported: return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() {
  unchecked_kernel = nullptr;
  return last_error;
}

cudaError_t cudaGetLastError() {
  unchecked_kernel = nullptr;
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = flags & cudaStreamNonBlocking ? new CUstream_st : nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == busy_stream) is_busy = false;
  check_launch_error();
  return last_error;
}
// Whatever the event is of: it is taken to stand for all the work so far.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return busy_stream = stream, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
cudaError_t cudaDeviceSynchronize() {
  is_busy = false;
  check_launch_error();
  return last_error;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
  *address = allocate(bytes);
  return remember(*address ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* address) { return remember(release(address) ? cudaSuccess : cudaErrorInvalidValue); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return remember(begin_transfer(stream) && copy(to, from, bytes) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return remember(begin_transfer(stream) && fill(to, value, bytes) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = static_cast<int>(device.block_threads); return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(device.shared_bytes); return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(device.shared_bytes_optin);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = device.multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = device.capability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = device.capability % 10; return cudaSuccess;
  }
  return remember(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > device.shared_bytes_optin) return remember(cudaErrorInvalidValue);
  dynamic_shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
