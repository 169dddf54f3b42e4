// SPDX-License-Identifier: Apache-2.0
// Arguments of the NumPy entries. They are taken as objects and converted here, so that a wrong one is answered with
// one sentence that names it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "kernels/common.h"

namespace fastyolo {

namespace py = pybind11;

inline void require(const Status& status) {
  if (!status.ok()) throw py::value_error(status.message);
}

inline std::string type_of(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

// `implicit` allows what Python allows: an int, or anything with __float__, for a float; __index__ for an int.
template <class T>
T convert(py::handle value, const std::string& name, const char* expected, bool implicit = true) {
  py::detail::make_caster<T> caster;
  if (!caster.load(value, implicit)) throw py::type_error(name + " must be " + expected + ", got " + type_of(value));
  return py::detail::cast_op<T>(caster);
}

inline double to_number(py::handle value, const std::string& name) { return convert<double>(value, name, "a number"); }
inline int64_t to_integer(py::handle value, const std::string& name) {
  return convert<int64_t>(value, name, "a 64-bit integer");
}
inline bool to_bool(py::handle value, const std::string& name) {
  return convert<bool>(value, name, "True or False", /*implicit=*/false);
}

inline std::string to_text(py::handle value, const std::string& name) {
  return convert<std::string>(value, name, "a string");
}

inline std::string element(const char* name, size_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

inline std::vector<py::object> to_list(py::handle value, const char* name, const char* expected) {
  if (!py::isinstance<py::sequence>(value) || py::isinstance<py::str>(value)) {
    throw py::type_error(std::string(name) + " must be a sequence of " + expected + ", got " + type_of(value));
  }
  std::vector<py::object> items;
  for (py::handle item : value) items.push_back(py::reinterpret_borrow<py::object>(item));
  return items;
}

// A float32 or float64 array that the kernels can read in place.
class Input {
 public:
  Input(py::handle value, std::string name, const char* shape, int ndim) : name_(std::move(name)), shape_(shape) {
    constexpr const char* kAccepted = " must be a NumPy array of float32 or float64, got ";
    if (!py::isinstance<py::array>(value)) throw py::type_error(name_ + kAccepted + type_of(value));
    array_ = py::reinterpret_borrow<py::array>(value);
    if (py::isinstance<py::array_t<float>>(array_)) {
      dtype_ = DType::kFloat32;
    } else if (py::isinstance<py::array_t<double>>(array_)) {
      dtype_ = DType::kFloat64;
    } else {
      throw py::type_error(name_ + kAccepted + std::string(py::str(array_.dtype())));
    }
    if (array_.ndim() != ndim) refuse_shape();
    bool aligned = reinterpret_cast<uintptr_t>(data()) % array_.itemsize() == 0;
    for (int axis = 0; axis < ndim; ++axis) {
      aligned = aligned && (array_.shape(axis) <= 1 || array_.strides(axis) % array_.itemsize() == 0);
    }
    if (!aligned) {
      throw py::value_error(name_ + " must have strides and an address that are multiples of " +
                            std::to_string(array_.itemsize()) + " bytes, got strides " +
                            std::string(py::str(array_.attr("strides"))) + "; pass a copy");
    }
  }

  DType dtype() const { return dtype_; }
  py::dtype numpy_dtype() const { return array_.dtype(); }
  const void* data() const { return array_.data(); }
  int64_t size(int axis) const { return array_.shape(axis); }
  int64_t stride(int axis) const { return array_.strides(axis) / array_.itemsize(); }

  void require_size(int axis, int64_t expected) const {
    if (size(axis) != expected) refuse_shape();
  }

  void require_size(int axis, const char* what, const Input& like, int like_axis) const {
    if (size(axis) == like.size(like_axis)) return;
    throw py::value_error(name_ + " must have " + what + " " + std::to_string(like.size(like_axis)) + " like " +
                          like.name_ + ", got shape " + shape_text());
  }

  void require_dtype_of(const Input& like) const {
    if (dtype_ == like.dtype_) return;
    throw py::type_error(name_ + " must be " + name_of(like.dtype_) + " like " + like.name_ + ", got " +
                         name_of(dtype_));
  }

  // Bins of each of the 4 sides, from the channels.
  int64_t bins() const {
    if (size(1) % 4 != 0) refuse_shape();
    return size(1) / 4;
  }

  // For entries that take no strides: the array itself if it is contiguous, else a copy.
  void make_contiguous() {
    array_ = py::array::ensure(array_, py::array::c_style);
    if (!array_) throw py::error_already_set();
  }

 private:
  std::string shape_text() const { return py::str(array_.attr("shape")); }

  [[noreturn]] void refuse_shape() const {
    throw py::value_error(name_ + " must have shape " + shape_ + ", got " + shape_text());
  }

  std::string name_;
  const char* shape_;
  py::array array_;
  DType dtype_ = DType::kFloat32;
};

}  // namespace fastyolo
