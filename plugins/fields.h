// SPDX-License-Identifier: Apache-2.0
// A plugin's fields. A struct that lists its members once, in visit(), gets from here the table that TensorRT asks for,
// reading of what a network or an engine gives, and serialisation:
//
//   struct Fields {
//     int32_t kernel_size = 5;                                  // the initialiser is the default
//     template <class Self, class F>
//     static void visit(Self& self, F&& f) { f("kernel_size", self.kernel_size); }
//     Status check() const;                                     // of the values, when all are read
//   };
//
// The ONNX parser makes INT and INTS attributes kINT32, FLOAT and FLOATS kFLOAT32 and STRING kCHAR, whatever the table
// says, and leaves out what the node does not have. An empty list or string counts as left out.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/common.h"

namespace fastyolo {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// What a member may be: int32_t, float, a vector of either, or a string.
template <class T>
struct FieldTraits {
  using Element = T;
  static constexpr bool kIsList = false;
};
template <class T>
struct FieldTraits<std::vector<T>> {
  using Element = T;
  static constexpr bool kIsList = true;
};
template <>
struct FieldTraits<std::string> {
  using Element = char;
  static constexpr bool kIsList = true;
};

template <class Element>
constexpr PluginFieldType field_type() {
  if constexpr (std::is_same_v<Element, int32_t>) return PluginFieldType::kINT32;
  if constexpr (std::is_same_v<Element, float>) return PluginFieldType::kFLOAT32;
  if constexpr (std::is_same_v<Element, char>) return PluginFieldType::kCHAR;
}

template <class T>
PluginField describe_field(const char* name, const T& value) {
  using Traits = FieldTraits<T>;
  constexpr PluginFieldType kType = field_type<typename Traits::Element>();
  if constexpr (Traits::kIsList) {
    return PluginField(name, value.data(), kType, static_cast<int32_t>(value.size()));
  } else {
    return PluginField(name, &value, kType, 1);
  }
}

inline const char* name_of(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT32: return "int32";
    case PluginFieldType::kFLOAT32: return "float32";
    case PluginFieldType::kCHAR: return "a string";
    case PluginFieldType::kFLOAT64: return "float64";
    case PluginFieldType::kFLOAT16: return "float16";
    default: return "another type";
  }
}

template <class T>
Status read_field(const PluginField& field, T& value) {
  using Traits = FieldTraits<T>;
  using Element = typename Traits::Element;
  constexpr PluginFieldType kType = field_type<Element>();
  if (field.type != kType) {
    return Status::error("field %s must be %s, got %s", field.name, name_of(kType), name_of(field.type));
  }
  if (field.length < 0 || (!Traits::kIsList && field.length != 1) || (!field.data && field.length > 0)) {
    return Status::error("field %s must hold %s, got %d%s", field.name, Traits::kIsList ? "elements" : "1 element",
                         static_cast<int>(field.length), field.data ? "" : " and no data");
  }
  if constexpr (Traits::kIsList) {
    value.resize(static_cast<size_t>(field.length));
    // The data of an engine's fields need not be aligned.
    if (field.length > 0) std::memcpy(value.data(), field.data, value.size() * sizeof(Element));
    if constexpr (std::is_same_v<T, std::string>) value.resize(std::strlen(value.c_str()));  // with or without its NUL
  } else {
    std::memcpy(&value, field.data, sizeof(Element));
  }
  return Status{};
}

// The members of `fields` as TensorRT's table, in the order of visit(). Names and values belong to `fields`.
template <class Fields>
std::vector<PluginField> describe_fields(const Fields& fields) {
  std::vector<PluginField> table;
  Fields::visit(fields, [&](const char* name, const auto& value) { table.push_back(describe_field(name, value)); });
  return table;
}

// The same without what is left out, which createPlugin() then finds left out again.
template <class Fields>
std::vector<PluginField> serialise_fields(const Fields& fields) {
  std::vector<PluginField> table = describe_fields(fields);
  std::vector<PluginField> present;
  for (const PluginField& field : table) {
    if (field.length > 0) present.push_back(field);
  }
  return present;
}

// Text that differs if a field does.
inline std::string text_of(const std::vector<PluginField>& fields) {
  std::string text;
  for (const PluginField& field : fields) {
    text += std::string(" ") + field.name + "=";
    for (int32_t i = 0; i < field.length; ++i) {
      char value[32] = "";
      if (field.type == PluginFieldType::kINT32) {
        std::snprintf(value, sizeof(value), "%d,", static_cast<const int32_t*>(field.data)[i]);
      } else if (field.type == PluginFieldType::kFLOAT32) {
        std::snprintf(value, sizeof(value), "%.9g,", static_cast<double>(static_cast<const float*>(field.data)[i]));
      } else if (field.type == PluginFieldType::kCHAR) {
        std::snprintf(value, sizeof(value), "%c", static_cast<const char*>(field.data)[i]);
      }
      text += value;
    }
  }
  return text;
}

inline PluginFieldCollection collection_of(const std::vector<PluginField>& fields) {
  return {static_cast<int32_t>(fields.size()), fields.data()};
}

// Fields from a collection, by name; those it lacks keep their defaults.
template <class Fields>
Status read_fields(const PluginFieldCollection* collection, Fields& fields) {
  for (int32_t i = 0; collection && i < collection->nbFields; ++i) {
    const PluginField& field = collection->fields[i];
    if (!field.name) return Status::error("field %d has no name", static_cast<int>(i));
    bool found = false;
    Status status;
    Fields::visit(fields, [&](const char* name, auto& value) {
      if (found || std::strcmp(name, field.name) != 0) return;
      found = true;
      status = read_field(field, value);
    });
    if (!found) return Status::error("there is no field %.100s; see getFieldNames()", field.name);
    if (!status.ok()) return status;
  }
  return fields.check();
}

}  // namespace fastyolo
