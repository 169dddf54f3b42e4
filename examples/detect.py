# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detect the objects of an image with an accelerated YOLO model.

python examples/detect.py yolov8n.pt bus.jpg
"""

import sys

from ultralytics import YOLO

import fastyolo


def main(weights: str, image: str) -> None:
    model = fastyolo.accelerate(YOLO(weights))
    (result,) = model(image, verbose=False)
    for box in result.boxes:
        left, top, right, bottom = (round(value) for value in box.xyxy[0].tolist())
        print(f"{result.names[int(box.cls)]:16} {float(box.conf):.2f}  {left},{top} - {right},{bottom}")
    print(f"post-processing took {result.speed['postprocess']:.2f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
