# SPDX-License-Identifier: AGPL-3.0-or-later
"""Turn the raw maps of a detection head into boxes with one operator, without ultralytics.

python examples/decode_maps.py

A head has one box map [B, 4 * bins, H, W] and one class map [B, classes, H, W] for each level. Here they are noise with
two objects of class 2 drawn into them: their distances to the left, top, right and bottom edge, in cells.
"""

import torch

from fastyolo.ops import decode_nms

BINS, CLASSES, STRIDES, IMAGE_SIZE = 16, 3, (8, 16, 32), 640


def main() -> None:
    torch.manual_seed(0)
    sizes = [IMAGE_SIZE // stride for stride in STRIDES]
    box_maps = [torch.randn(1, 4 * BINS, size, size) for size in sizes]
    cls_maps = [torch.randn(1, CLASSES, size, size) - 8 for size in sizes]
    draw(box_maps[1], cls_maps[1], label=2, row=10, column=20, edges=(3, 4, 3, 6), logit=2.0)
    draw(box_maps[1], cls_maps[1], label=2, row=10, column=21, edges=(4, 4, 2, 6), logit=1.0)  # the same object again
    draw(box_maps[2], cls_maps[2], label=2, row=5, column=3, edges=(2, 2, 2, 2), logit=0.5)

    found = decode_nms(box_maps, cls_maps, STRIDES, score_threshold=0.25, iou_threshold=0.7, max_det=100)

    first_anchor = [sum(size**2 for size in sizes[:level]) for level in range(len(sizes))]
    for i in range(int(found.num_dets[0])):
        anchor = int(found.indices[0, i])
        level = max(level for level, first in enumerate(first_anchor) if first <= anchor)
        row, column = divmod(anchor - first_anchor[level], sizes[level])
        left, top, right, bottom = found.boxes[0, i].round().int().tolist()
        print(
            f"class {int(found.labels[0, i])}, score {float(found.scores[0, i]):.2f}, {left},{top} - {right},{bottom}, "
            f"from row {row}, column {column} of the level with stride {STRIDES[level]}"
        )


def draw(
    box_map: torch.Tensor, cls_map: torch.Tensor, *, label: int, row: int, column: int, edges: tuple, logit: float
) -> None:
    """Let one cell see an object: a distribution with all its weight on the bin of each distance."""
    cls_map[0, label, row, column] = logit
    for side, cells in enumerate(edges):
        box_map[0, side * BINS : (side + 1) * BINS, row, column] = -20
        box_map[0, side * BINS + cells, row, column] = 20


if __name__ == "__main__":
    main()
