# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detection with exported models on machines without torch: ONNX Runtime or OpenVINO, OpenCV and the NumPy kernels."""

from fastyolo.runtime.detector import Detector
from fastyolo.runtime.metadata import Metadata
from fastyolo.runtime.results import Detections, Frame

__all__ = ["Detections", "Detector", "Frame", "Metadata"]
