// SPDX-License-Identifier: Apache-2.0
// For test_plugins.py: what Python's interface to TensorRT lacks. Each plugin of a library is created from fields,
// serialised, made again from that as an engine does, and cloned; prints its fields and the ID of its times before and
// after, and what is refused. Reads no device: there is no GPU.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

// As a program has it that links TensorRT.
static int32_t version = NV_TENSORRT_VERSION;
extern "C" int32_t getInferLibVersion() noexcept { return version; }

namespace {

std::string text_of(const PluginFieldCollection& fields) {
  std::string text;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    text += std::string(" ") + field.name + "=";
    for (int32_t j = 0; j < field.length; ++j) {
      char value[32] = "?";
      if (field.type == PluginFieldType::kINT32) {
        std::snprintf(value, sizeof(value), "%d,", static_cast<const int32_t*>(field.data)[j]);
      } else if (field.type == PluginFieldType::kFLOAT32) {
        std::snprintf(value, sizeof(value), "%g,", static_cast<const float*>(field.data)[j]);
      } else if (field.type == PluginFieldType::kCHAR) {
        std::snprintf(value, sizeof(value), "%c", static_cast<const char*>(field.data)[j]);
      }
      text += value;
    }
  }
  return text;
}

const PluginFieldCollection& serialised(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME))
              ->getFieldsToSerialize();
}

std::string timing_id(IPluginV3& plugin) {
  return static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD))
      ->getTimingCacheID();
}

struct Log final : ILogger {
  void log(Severity severity, const char* message) noexcept override {
    std::printf("log %d %s\n", static_cast<int>(severity), message);
  }
};
struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
  Log logger;
};

}  // namespace

int main(int, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::puts(dlerror()), 1;
  const auto get_creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  const auto set_logger_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  if (!get_creators || !set_logger_finder) return std::puts("getCreators() or setLoggerFinder() is missing"), 1;

  const float strides[] = {8, 16, 32.5f};
  const int32_t classes[] = {0, 79}, five = 5, one = 1, seven = 7;
  const float score = 0.125f;
  const std::map<std::string, std::vector<PluginField>> given = {
      {"FastYoloDecodeNMS",
       {{"strides", strides, PluginFieldType::kFLOAT32, 3},
        {"classes", classes, PluginFieldType::kINT32, 2},
        {"max_det", &five, PluginFieldType::kINT32, 1},
        {"score_threshold", &score, PluginFieldType::kFLOAT32, 1}}},
      {"FastYoloBatchedNMS", {{"class_agnostic", &one, PluginFieldType::kINT32, 1}}},
      {"FastYoloDWSPPF", {{"activation", "silu\0", PluginFieldType::kCHAR, 5}}},  // with its NUL
      {"FastYoloSPPF", {{"kernel_size", &seven, PluginFieldType::kINT32, 1}}},
      {"FastYoloDFLDecode", {}},
      {"FastYoloECA", {}}};

  int32_t count = 0;
  IPluginCreatorInterface* const* creators = get_creators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    const std::vector<PluginField>& fields = given.at(creator->getPluginName());
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> built(creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD));
    std::unique_ptr<IPluginV3> loaded(creator->createPlugin("layer", &serialised(*built), TensorRTPhase::kRUNTIME));
    std::unique_ptr<IPluginV3> cloned(loaded->clone());
    const std::string before = text_of(serialised(*built));
    std::printf("timing %s: %s\n", creator->getPluginName(), timing_id(*built).c_str());
    built.reset();  // the others own their fields
    loaded.reset();
    std::printf("%s:%s\n", creator->getPluginName(), before.c_str());
    std::printf("clone %s:%s\n", creator->getPluginName(), text_of(serialised(*cloned)).c_str());
    std::printf("clone timing %s: %s\n", creator->getPluginName(), timing_id(*cloned).c_str());
  }

  Finder finder;
  set_logger_finder(&finder);
  auto* creator = static_cast<IPluginCreatorV3One*>(creators[0]);
  const PluginField unknown("nonsense", &five, PluginFieldType::kINT32, 1);
  const PluginFieldCollection collection{1, &unknown};
  std::printf("refused %d\n", creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD) == nullptr);
  set_logger_finder(nullptr);

  version += 10000;
  get_creators(count);
  std::printf("creators for the next TensorRT %d\n", count);
  return 0;
}
