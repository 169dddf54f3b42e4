// SPDX-License-Identifier: Apache-2.0
// From run-time dtypes and small integers to template arguments: the only dispatch code in the project.
#pragma once

#include <cstdio>
#include <type_traits>

#include "common.h"

namespace fastyolo {

template <DType D>
using DTypeConstant = std::integral_constant<DType, D>;

// Calls f(DTypeConstant<D>{}) for the D that equals dtype; an error that names the argument if none does.
template <DType... Supported, class F>
Status dispatch_dtype(const char* argument, DType dtype, F&& f) {
  Status status;
  if (((dtype == Supported && ((status = f(DTypeConstant<Supported>{})), true)) || ...)) return status;
  constexpr const char* kFormats[] = {"%s", "%s or %s", "%s, %s or %s"};
  static_assert(sizeof...(Supported) <= 3, "no format for that many");
  char names[64];
  std::snprintf(names, sizeof(names), kFormats[sizeof...(Supported) - 1], name_of(Supported)...);
  return Status::error("%s must be %s on this device, got %s", argument, names, name_of(dtype));
}

// Calls f(integral_constant<int, V>{}) for the V that equals value, and f(integral_constant<int, 0>{}) if none does:
// 0 means "known at run time only".
template <int... Values, class F>
Status dispatch_int(int64_t value, F&& f) {
  Status status;
  const bool found = ((value == Values && ((status = f(std::integral_constant<int, Values>{})), true)) || ...);
  return found ? status : f(std::integral_constant<int, 0>{});
}

}  // namespace fastyolo
