# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training that makes channels fade: the L1 term of Network Slimming on the factors of the normalisations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from fastyolo.integrations.ultralytics.facts import PARTS, layer_parts
from fastyolo.train.settings import Settings

SMALL = 0.1  # of factors that start as 1


class Sparsity:
    """The term sparsity * sum |gamma| over a network's normalisations (https://arxiv.org/abs/1708.06519).

    Its subgradient is added to the gradients just before a step of the optimizer, when they are unscaled and clipped:
    the term decides which channels fade, so neither the clipping nor the weight decay may tune it.

    Args:
        network: the model in training, a student without its teacher.
        settings: of them, those that begin with sparsity.
    """

    def __init__(self, network: DetectionModel, settings: Settings) -> None:
        self._final = settings.sparsity_final
        self._weights: list[tuple[float, list[Tensor]]] = []
        strengths = (settings.sparsity_backbone, settings.sparsity_neck, settings.sparsity_head)
        for part, strength in zip(PARTS, strengths, strict=True):
            layers = [layer for name, layer in zip(layer_parts(network), network.model, strict=True) if name == part]
            norms = [m for layer in layers for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
            self._weights.append((settings.sparsity * strength, [norm.weight for norm in norms]))

    @torch.no_grad()
    def add_subgradient(self, progress: float) -> None:
        """Add the subgradient of the term to the gradients.

        Args:
            progress: of the training, 0 in its first epoch and 1 in its last.
        """
        share = 1 + (self._final - 1) * progress
        for strength, weights in self._weights:
            for weight in weights:
                if weight.grad is not None:  # frozen ones have none
                    weight.grad.add_(weight.sign(), alpha=strength * share)

    @torch.no_grad()
    def small(self) -> float:
        """The share of the factors whose absolute value is below SMALL."""
        factors = torch.cat([weight.flatten() for _, weights in self._weights for weight in weights])
        return float((factors.abs() < SMALL).float().mean())
