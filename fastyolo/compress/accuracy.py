# SPDX-License-Identifier: AGPL-3.0-or-later
"""mAP of exported models on the validation images of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastyolo.runtime.detector import Detector
from fastyolo.runtime.engines import Engine, EngineName
from fastyolo.runtime.letterbox import Float32, Placement

if TYPE_CHECKING:
    from fastyolo.integrations.ultralytics.labelled import Accuracy, LabelledImages

# As ultralytics validates.
_VALIDATION: dict[str, Any] = {"conf": 0.001, "iou": 0.7, "max_det": 300, "multi_label": True}


def measure(
    file: Path,
    labelled: LabelledImages,
    on_image: Callable[[], None] = lambda: None,
    *,
    engine: EngineName | type[Engine] = "onnxruntime",
) -> Accuracy:
    """How well an exported file finds the objects of labelled images; `on_image` is called after each of them."""
    detector = Detector(file, engine=engine)
    if not detector.metadata.nms:  # whose settings are built in
        detector = Detector(file, engine=engine, **_VALIDATION)

    def find(image: Float32) -> npt.NDArray[Any]:
        size = (image.shape[2], image.shape[3])
        outputs = detector.run(np.repeat(image, detector.batch_size or 1, 0))
        (rows, *_) = detector.postprocess(outputs, [Placement(size, size, 0, 0)])
        return np.column_stack(list(rows))

    return labelled.measure(find, on_image)
