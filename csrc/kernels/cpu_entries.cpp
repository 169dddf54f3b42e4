// SPDX-License-Identifier: Apache-2.0
// The CPU entries: check the parameters, then call the kernels of the best instruction set that this machine has.
#include <cstdlib>
#include <string_view>

#include "batched_nms.h"
#include "batched_nms_workspace.h"
#include "decode_nms.h"
#include "detection_workspace.h"
#include "dfl_decode.h"
#include "dw_sppf.h"
#include "eca.h"
#include "eca_workspace.h"
#include "isa.h"
#include "sppf_pool.h"
#include "sppf_pool_workspace.h"

namespace fastyolo {

// What every instruction set's build of the kernel sources defines.
#define FASTYOLO_CPU_KERNELS(isa)                                             \
  namespace isa {                                                             \
  Status batched_nms_cpu(const BatchedNmsParams&, const ParallelFor&);        \
  Status multiclass_nms_cpu(const MulticlassNmsParams&, const ParallelFor&);  \
  Status decode_nms_cpu(const DecodeNmsParams&, const ParallelFor&);          \
  Status dfl_decode_cpu(const DflDecodeParams&, const ParallelFor&);          \
  Status dfl_decode_backward_cpu(const DflDecodeParams&, const ParallelFor&); \
  Status eca_cpu(const EcaParams&, const ParallelFor&);                       \
  Status eca_backward_cpu(const EcaParams&, const ParallelFor&);              \
  int64_t dw_sppf_cpu_workspace_bytes(const DwSppfParams&, int);              \
  int64_t dw_sppf_backward_cpu_workspace_bytes(const DwSppfParams&, int);     \
  Status dw_sppf_cpu(const DwSppfParams&, const ParallelFor&);                \
  Status dw_sppf_backward_cpu(const DwSppfParams&, const ParallelFor&);       \
  Status sppf_pool_cpu(const SppfPoolParams&, const ParallelFor&);            \
  Status sppf_pool_backward_cpu(const SppfPoolParams&, const ParallelFor&);   \
  constexpr CpuKernels kKernels = {#isa,                                      \
                                   batched_nms_cpu,                           \
                                   multiclass_nms_cpu,                        \
                                   decode_nms_cpu,                            \
                                   dfl_decode_cpu,                            \
                                   dfl_decode_backward_cpu,                   \
                                   eca_cpu,                                   \
                                   eca_backward_cpu,                          \
                                   dw_sppf_cpu_workspace_bytes,               \
                                   dw_sppf_backward_cpu_workspace_bytes,      \
                                   dw_sppf_cpu,                               \
                                   dw_sppf_backward_cpu,                      \
                                   sppf_pool_cpu,                             \
                                   sppf_pool_backward_cpu};                   \
  }

namespace {

struct CpuKernels {
  const char* name;
  Status (*batched_nms)(const BatchedNmsParams&, const ParallelFor&);
  Status (*multiclass_nms)(const MulticlassNmsParams&, const ParallelFor&);
  Status (*decode_nms)(const DecodeNmsParams&, const ParallelFor&);
  Status (*dfl_decode)(const DflDecodeParams&, const ParallelFor&);
  Status (*dfl_decode_backward)(const DflDecodeParams&, const ParallelFor&);
  Status (*eca)(const EcaParams&, const ParallelFor&);
  Status (*eca_backward)(const EcaParams&, const ParallelFor&);
  int64_t (*dw_sppf_workspace_bytes)(const DwSppfParams&, int);  // its tiles hold vectors
  int64_t (*dw_sppf_backward_workspace_bytes)(const DwSppfParams&, int);
  Status (*dw_sppf)(const DwSppfParams&, const ParallelFor&);
  Status (*dw_sppf_backward)(const DwSppfParams&, const ParallelFor&);
  Status (*sppf_pool)(const SppfPoolParams&, const ParallelFor&);
  Status (*sppf_pool_backward)(const SppfPoolParams&, const ParallelFor&);
};

}  // namespace

FASTYOLO_CPU_KERNELS(baseline)
#ifdef FASTYOLO_X86
FASTYOLO_CPU_KERNELS(avx2)
FASTYOLO_CPU_KERNELS(avx512)
#endif
#undef FASTYOLO_CPU_KERNELS

namespace {

const CpuKernels& select_kernels() {
#ifdef FASTYOLO_X86
  // A wish for a set that the CPU lacks falls to the best one it has: an illegal instruction helps nobody.
  const char* variable = std::getenv("FASTYOLO_CPU_ISA");
  const std::string_view wish = variable ? variable : "";
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && wish != "avx2" && wish != "baseline") return avx512::kKernels;
  if (has_avx2 && wish != "baseline") return avx2::kKernels;
#endif
  return baseline::kKernels;
}

const CpuKernels& kernels() {
  static const CpuKernels& selected = select_kernels();
  return selected;
}

Status check_host_thresholds(const NmsSettings& settings) {
  if (!settings.thresholds) return Status{};
  return Status::error("thresholds on the device are for CUDA; set score_threshold and iou_threshold on the CPU");
}

}  // namespace

const char* cpu_isa_name() { return kernels().name; }

int64_t batched_nms_cpu_workspace_bytes(const BatchedNmsParams& p, int) {
  const int64_t element_bytes = p.dtype == DType::kFloat64 ? 8 : 4;
  return BatchedNmsWorkspace(p.count, p.max_det, p.idxs != nullptr, element_bytes).bytes;
}

int64_t multiclass_nms_cpu_workspace_bytes(const MulticlassNmsParams& p, int num_threads) {
  return DetectionWorkspace(p.batch, p.count, p.classes, p.settings, num_threads).bytes();
}

int64_t decode_nms_cpu_workspace_bytes(const DecodeNmsParams& p, int num_threads) {
  return DetectionWorkspace(p.batch, p.anchors(), p.classes, p.settings, num_threads).bytes();
}

Status batched_nms_cpu(const BatchedNmsParams& params, const ParallelFor& parallel_for) {
  const Status status = check_batched_nms(params);
  return status.ok() ? kernels().batched_nms(params, parallel_for) : status;
}

Status multiclass_nms_cpu(const MulticlassNmsParams& params, const ParallelFor& parallel_for) {
  Status status = check_multiclass_nms(params);
  if (status.ok()) status = check_host_thresholds(params.settings);
  return status.ok() ? kernels().multiclass_nms(params, parallel_for) : status;
}

Status decode_nms_cpu(const DecodeNmsParams& params, const ParallelFor& parallel_for) {
  Status status = check_decode_nms(params);
  if (status.ok()) status = check_host_thresholds(params.settings);
  return status.ok() ? kernels().decode_nms(params, parallel_for) : status;
}

Status dfl_decode_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for) {
  const Status status = check_dfl_decode(params);
  return status.ok() ? kernels().dfl_decode(params, parallel_for) : status;
}

Status dfl_decode_backward_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for) {
  const Status status = check_dfl_decode(params);
  return status.ok() ? kernels().dfl_decode_backward(params, parallel_for) : status;
}

int64_t eca_cpu_workspace_bytes(const EcaParams& p, int) { return EcaWorkspace(p, false).bytes; }

Status eca_cpu(const EcaParams& params, const ParallelFor& parallel_for) {
  const Status status = check_eca(params);
  return status.ok() ? kernels().eca(params, parallel_for) : status;
}

int64_t eca_backward_cpu_workspace_bytes(const EcaParams& p, int) { return EcaWorkspace(p, true).bytes; }

Status eca_backward_cpu(const EcaParams& params, const ParallelFor& parallel_for) {
  const Status status = check_eca(params);
  return status.ok() ? kernels().eca_backward(params, parallel_for) : status;
}

int64_t dw_sppf_cpu_workspace_bytes(const DwSppfParams& params, int num_threads) {
  return kernels().dw_sppf_workspace_bytes(params, num_threads);
}

Status dw_sppf_cpu(const DwSppfParams& params, const ParallelFor& parallel_for) {
  const Status status = check_dw_sppf(params);
  return status.ok() ? kernels().dw_sppf(params, parallel_for) : status;
}

int64_t dw_sppf_backward_cpu_workspace_bytes(const DwSppfParams& params, int num_threads) {
  return kernels().dw_sppf_backward_workspace_bytes(params, num_threads);
}

Status dw_sppf_backward_cpu(const DwSppfParams& params, const ParallelFor& parallel_for) {
  const Status status = check_dw_sppf(params);
  return status.ok() ? kernels().dw_sppf_backward(params, parallel_for) : status;
}

int64_t sppf_pool_cpu_workspace_bytes(const SppfPoolParams& p, int num_threads) {
  return goes_by_pixels(p) ? SppfPoolPixels(p, num_threads).bytes() : SppfPoolWorkspace(p, false, num_threads).bytes;
}

Status sppf_pool_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for) {
  const Status status = check_sppf_pool(params);
  return status.ok() ? kernels().sppf_pool(params, parallel_for) : status;
}

int64_t sppf_pool_backward_cpu_workspace_bytes(const SppfPoolParams& p, int num_threads) {
  return SppfPoolWorkspace(p, true, num_threads).bytes;
}

Status sppf_pool_backward_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for) {
  const Status status = check_sppf_pool(params);
  return status.ok() ? kernels().sppf_pool_backward(params, parallel_for) : status;
}

}  // namespace fastyolo
