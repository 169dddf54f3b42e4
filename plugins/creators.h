// SPDX-License-Identifier: Apache-2.0
// The creators that the library exports, and the interface that this TensorRT wants them to have.
#pragma once

#include <NvInferRuntime.h>

#ifndef FASTYOLO_PLUGIN_V2  // a test chooses it where the headers have both
#define FASTYOLO_PLUGIN_V2 (NV_TENSORRT_MAJOR < 10)
#endif

#if FASTYOLO_PLUGIN_V2
#include "plugin_v2.h"
#else
#include "plugin_v3.h"
#endif

namespace fastyolo {

#if FASTYOLO_PLUGIN_V2
using CreatorInterface = nvinfer1::IPluginCreator;
template <class Op>
using Creator = CreatorV2<Op>;
#else
using CreatorInterface = nvinfer1::IPluginCreatorInterface;
template <class Op>
using Creator = CreatorV3<Op>;
#endif

// Each from the file of its name.
CreatorInterface* batched_nms_creator();
CreatorInterface* decode_nms_creator();
CreatorInterface* dfl_decode_creator();
CreatorInterface* dw_sppf_creator();
CreatorInterface* eca_creator();
CreatorInterface* sppf_pool_creator();

}  // namespace fastyolo
