// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <atomic>
#include <cstdio>

namespace fastyolo {
namespace {

#if FASTYOLO_TENSORRT_8_5
nvinfer1::ILogger* find_logger() noexcept { return nullptr; }
#else
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// The interfaces to the logger promise no noexcept, and there is none outside of TensorRT's own calls.
nvinfer1::ILogger* find_logger() noexcept {
  try {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    return finder ? finder->findLogger() : nullptr;
  } catch (...) {
    return nullptr;
  }
}
#endif

}  // namespace

#if !FASTYOLO_TENSORRT_8_5
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }
#endif

void report(const char* plugin, const char* message) noexcept {
  char text[512];
  std::snprintf(text, sizeof(text), "%s: %s", plugin, message);
  if (nvinfer1::ILogger* logger = find_logger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, text);
  } else {
    std::fprintf(stderr, "%s\n", text);
  }
}

}  // namespace fastyolo
