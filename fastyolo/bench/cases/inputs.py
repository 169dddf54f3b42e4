# SPDX-License-Identifier: AGPL-3.0-or-later
"""The inputs of the cases: the same numbers in every run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Maps = tuple[list[Tensor], list[Tensor]]  # box maps [B, 4R, H_l, W_l], class maps [B, C, H_l, W_l]

STRIDES = (8.0, 16.0, 32.0)
IMAGE_SIZE = 640


class Inputs:
    """Makes the inputs of the cases on a device; the same numbers in every run.

    Args:
        device: where the cases run.
        dtype: of head maps and logits, unless another one is asked for; boxes are float32.
        maps: head maps of real images in float32, at least one; None: synthetic ones.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, maps: Maps | None) -> None:
        self.device = device
        self.dtype = dtype
        self._real = maps
        # ultralytics runs its networks in channels_last on x86 CPUs, and in the default layout on CUDA.
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def rotation(self, num_bytes: int) -> int:
        """How many sets of inputs of this size keep a GPU's L2 cache from holding the next one."""
        if self.device.type == "cpu":
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(64, math.ceil(2 * cache / num_bytes))

    def maps(self, batch: int, seed: int, dtype: torch.dtype) -> Maps:
        if self._real is None:
            box_maps, cls_maps = scene_maps(batch, seed)
        else:
            count = len(self._real[0][0])
            images = [(seed * batch + b) % count for b in range(batch)]
            box_maps, cls_maps = ([x[images] for x in maps] for maps in self._real)
        return self._place(box_maps, dtype), self._place(cls_maps, dtype)

    def _place(self, maps: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        return [x.to(self.device, dtype).contiguous(memory_format=self._layout) for x in maps]

    @property
    def feature_dtypes(self) -> tuple[torch.dtype, ...]:
        """What networks are run and trained in on this device."""
        return (torch.float32, torch.bfloat16) if self.device.type == "cpu" else (torch.float16,)

    def feature_map(self, shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(*shape, generator=generator, device=self.device)
        return values.to(dtype).contiguous(memory_format=layout)

    def boxes(self, count: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """boxes [N, 4] of 0 to 100 pixels a side, anywhere in an image, distinct scores [N], groups [N]."""
        generator = torch.Generator().manual_seed(count)
        corner = torch.rand(count, 2, generator=generator) * IMAGE_SIZE
        extent = torch.rand(count, 2, generator=generator) * 100
        scores = torch.randperm(count, generator=generator) / count
        labels = torch.randint(groups, (count,), generator=generator)
        return torch.cat((corner, corner + extent), 1).to(self.device), scores.to(self.device), labels.to(self.device)

    def logits(self, batch: int, bins: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """DFL logits [B, 4R, A], anchor points [2, A] in cells, strides [A] of an image of 640 x 640; these in float32,
        or in float64 with such logits."""
        generator = torch.Generator().manual_seed(seed)
        points, strides = [], []
        for stride in STRIDES:
            cells = torch.arange(IMAGE_SIZE / stride) + 0.5
            y, x = torch.meshgrid(cells, cells, indexing="ij")
            points.append(torch.stack((x.flatten(), y.flatten())))
            strides.append(torch.full((x.numel(),), stride))
        anchor_points, pixels = torch.cat(points, 1), torch.cat(strides)
        logits = 3 * torch.randn(batch, 4 * bins, pixels.numel(), generator=generator)
        grid = torch.promote_types(dtype, torch.float32)
        return logits.to(self.device, dtype), anchor_points.to(self.device, grid), pixels.to(self.device, grid)


def scene_maps(batch: int, seed: int, *, classes: int = 80, bins: int = 16, objects: int = 7) -> Maps:
    """Head maps with the statistics of YOLOv8n on COCO images: in an image, the best class of about 45 anchors is above
    0.25, and 750 pairs of anchor and class are above 0.001.

    A background of class logits around -14, from which the cells near the centre of each object stand out in every
    level, and box distributions that peak at the distances to the object's edges.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    positions = torch.arange(bins).view(1, bins, 1)
    box_maps, cls_maps = [], []
    for stride in STRIDES:
        cells = int(IMAGE_SIZE / stride)
        box_maps.append(torch.randn(batch, 4 * bins, cells, cells, generator=generator))
        cls_maps.append(torch.randn(batch, classes, cells, cells, generator=generator) * 1.8 - 14)
    for b in range(batch):
        for _ in range(objects):
            centre_x, centre_y = uniform(0, IMAGE_SIZE), uniform(0, IMAGE_SIZE)
            width, height = math.exp(uniform(3, 5.5)), math.exp(uniform(3, 5.5))
            label = int(torch.randint(classes, (), generator=generator))
            for stride, box_map, cls_map in zip(STRIDES, box_maps, cls_maps, strict=True):
                middle = torch.arange(box_map.shape[-1]) + 0.5
                dy, dx = torch.meshgrid(middle - centre_y / stride, middle - centre_x / stride, indexing="ij")
                w, h = width / stride / 2, height / stride / 2
                distances = torch.stack((w + dx, h + dy, w - dx, h - dy))
                inside = (distances.amin(0) > 0) & (distances.amax(0) < bins - 1)
                seen = distances[:, inside]
                seen *= 1 + 0.1 * torch.randn(seen.shape, generator=generator)
                box_map[b].view(4, bins, *inside.shape)[:, :, inside] -= 4 * (positions - seen[:, None]).abs()
                falloff = 5 * ((dx / w) ** 2 + (dy / h) ** 2)[inside]
                cls_map[b, label][inside] += 12.3 - falloff
                cls_map[b, (label + 1) % classes][inside] += 10 - falloff
    return box_maps, cls_maps
