// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name, which TensorRT's headers include.
#pragma once

#include "cuda_runtime.h"
