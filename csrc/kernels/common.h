// SPDX-License-Identifier: Apache-2.0
// What every kernel shares: element types, errors as values, and the parallel_for that the caller injects.
// Nothing here allocates, throws or synchronises.
#pragma once

#include <cstddef>
#include <cstdint>

// The CUDA entries are declared for every build, so that callers compile once; only a CUDA build defines them.
struct CUstream_st;

// For what both sides of a CUDA source call.
#ifdef __CUDACC__
#define FASTYOLO_HOST_DEVICE __host__ __device__
#else
#define FASTYOLO_HOST_DEVICE
#endif

namespace fastyolo {

using Stream = CUstream_st*;  // the type behind cudaStream_t

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat64: return "float64";
  }
  return "unknown";
}

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kFloat16: return 2;
    case DType::kBFloat16: return 2;
    case DType::kFloat64: return 8;
  }
  return 0;
}

// Success, or one sentence that names the argument, what was expected and what came. The edge (torch, NumPy,
// TensorRT) turns it into an exception or a status of its own.
struct Status {
  char message[256] = {0};

  bool ok() const { return message[0] == 0; }

  static Status error(const char* format, ...) __attribute__((format(printf, 1, 2)));
};

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Workspace regions start on cache lines.
constexpr int64_t kWorkspaceAlignment = 256;

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

constexpr int64_t align_up(int64_t bytes) { return ceil_div(bytes, kWorkspaceAlignment) * kWorkspaceAlignment; }

Status check_workspace(const void* workspace, int64_t bytes, int64_t needed);

// Indices inside a tensor are 32-bit on the GPU; the edge refuses anything larger with a sentence.
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;

// Bins of a distance's distribution (reg_max); YOLOv8 has 16. The CPU kernels keep a tile of them on the stack.
constexpr int64_t kMaxBins = 256;

// The CPU side runs on the caller's threads: torch's pool under torch, the module's own under NumPy.
// `run` calls body(arg, begin, end) on disjoint ranges that cover [0, count), each at least `grain` long except
// the last, and returns when all are done.
class ParallelFor {
 public:
  using Body = void (*)(void* arg, int64_t begin, int64_t end);
  using Run = void (*)(void* context, int64_t count, int64_t grain, Body body, void* arg);

  ParallelFor() = default;  // serial
  ParallelFor(Run run, void* context, int num_threads) : run_(run), context_(context), num_threads_(num_threads) {}

  int num_threads() const { return num_threads_; }

  template <class F>
  void operator()(int64_t count, int64_t grain, F&& f) const {
    if (count <= 0) return;
    if (!run_ || num_threads_ <= 1 || count <= grain) {
      f(int64_t{0}, count);
      return;
    }
    run_(
        context_, count, grain, [](void* arg, int64_t begin, int64_t end) { (*static_cast<F*>(arg))(begin, end); }, &f);
  }

 private:
  Run run_ = nullptr;
  void* context_ = nullptr;
  int num_threads_ = 1;
};

}  // namespace fastyolo
