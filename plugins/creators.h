// SPDX-License-Identifier: Apache-2.0
// The creators that the library exports, and the interface that this TensorRT wants them to have.
#pragma once

#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR >= 10
#include "plugin_v3.h"
#else
#include "plugin_v2.h"
#endif

namespace fastyolo {

#if NV_TENSORRT_MAJOR >= 10
using CreatorInterface = nvinfer1::IPluginCreatorInterface;
template <class Op>
using Creator = CreatorV3<Op>;
#else
using CreatorInterface = nvinfer1::IPluginCreator;
template <class Op>
using Creator = CreatorV2<Op>;
#endif

// Each from the file of its name.
CreatorInterface* batched_nms_creator();
CreatorInterface* decode_nms_creator();
CreatorInterface* dfl_decode_creator();
CreatorInterface* dw_sppf_creator();
CreatorInterface* eca_creator();
CreatorInterface* sppf_pool_creator();

}  // namespace fastyolo
