// SPDX-License-Identifier: Apache-2.0
// Errors at the edge to TensorRT: one sentence to its logger, and a status that its interfaces can return.
#pragma once

#include <NvInferRuntime.h>

#include "kernels/common.h"

// It has neither loadLibrary() nor logger finders.
#define FASTYOLO_TENSORRT_8_5 (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 6)

namespace fastyolo {

#if !FASTYOLO_TENSORRT_8_5
// Where the library was loaded by TensorRT itself, which then provides a finder; null: messages go to stderr.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;
#endif

// "FastYoloECA: weight must have ..." as an error.
void report(const char* plugin, const char* message) noexcept;

// True if the status is ok; otherwise its message is reported.
inline bool succeeds(const char* plugin, const Status& status) noexcept {
  if (!status.ok()) report(plugin, status.message);
  return status.ok();
}

}  // namespace fastyolo
