"""The paper's baseline: masks predicted from features by stochastic sampling (Xie et al., ECCV 2020), as section 3 and
appendix C of the paper adapt it. Holds its network, its loss and its executor.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.executors.reference import ReferenceExecutor
from models.imaging.geometry import STRIDE, Size
from models.network.adpc import AdpcNet, ExitHead
from models.network.adpc_configs import AdpcConfig
from models.network.confidence import Masks
from models.network.configs import ModelConfig
from models.network.network import Progress
from models.training.tasks import Segmentation

EXIT_WEIGHTS = (0.5, 0.5, 0.5, 1.0)
MASK_WEIGHTS = (1 / 3, 2 / 3, 1.0)
SPARSITY = 0.1

INITIAL_BIAS = 3.0
"""With this bias nearly all positions are active at first, as in Xie et al."""
LAST_TEMPERATURE = 0.03
"""Xie et al. let the temperature fall from 1 by a constant factor a step, and keep 0.03 afterwards."""


class SampledNet(AdpcNet):
    """EE+RH whose masks come from a sampler at each exit: a 3x3 convolution to one channel over what the head reads.

    In training a mask is a soft sample of the binary Gumbel-softmax distribution. Otherwise a position is active if its
    probability is at least 0.5. Scores are not carried over from exit to exit, because an inactive position may still
    be wrong. `steps`: calls in training with masks over which the temperature falls to its last value. Raises
    ValueError unless `config` is of segmentation with four exits and masks, of which the window alone is used.
    """

    temperature: Tensor

    def __init__(self, config: ModelConfig, steps: int = 1) -> None:
        if (
            not isinstance(config, AdpcConfig)
            or config.task != "segmentation"
            or config.exits != 4
            or config.masking is None
        ):
            raise ValueError(f"{config.name} has {config.exits} exits; sampling wants segmentation with 4 and masks")
        super().__init__(config)
        for exit_index in (1, 2, 3):
            channels = 256 if exit_index == 1 else sum(config.backbone.channels(exit_index))
            sampler = nn.Conv2d(channels, 1, 3, padding=1)
            nn.init.zeros_(sampler.weight)
            nn.init.constant_(sampler.bias, INITIAL_BIAS)  # type: ignore[arg-type]
            self.add_module(f"sampler{exit_index}", sampler)
        self.decay = LAST_TEMPERATURE ** (1 / max(steps, 1))
        self.register_buffer("temperature", torch.tensor(1.0))

    def complete(self, progress: Progress, step: ExitHead, scores: Tensor, adaptive: bool | None = None) -> Progress:
        decided = torch.full_like(scores[:, :1], step.exit, dtype=torch.uint8)
        masks = None
        adaptive = self._adaptive() if adaptive is None else adaptive
        if adaptive and step.exit < self.config.exits:
            logits = self.get_submodule(f"sampler{step.exit}")(self.read(progress.features, step)).float()
            masks = Masks(self._sampled(logits) if self.training else logits >= 0)
        return replace(progress, masks=masks, scores=scores, decided=decided)

    def _sampled(self, logits: Tensor) -> Tensor:
        """A soft sample for each logit, by equation 7 of Jang et al. (2016) for two categories. One draw is enough:
        the difference of two Gumbel variables is logistic."""
        noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6).logit()
        inverse = self.temperature.reciprocal()  # a new tensor, because the buffer changes with every call
        return ((logits + noise) * inverse).sigmoid()

    def forward(self, images: Tensor, adaptive: bool | None = None) -> tuple[Tensor, ...]:
        """The scores of every exit; in training, the soft masks of exits 1 to 3 follow them: (N, 1, h, w) in 0..1."""
        exits = tuple(self.exits(images, adaptive))
        scores = tuple(found.scores for found in exits if found.scores is not None)
        masks = tuple(found.masks.finest for found in exits if found.masks is not None)
        if not self.training:
            return scores
        if masks:
            self.temperature.mul_(self.decay)
        return scores + masks


class SampledSegmentation(Segmentation):
    """Segmentation whose exits' losses have weights of their own. An exit's loss also has the mean of its soft mask as
    a penalty, so that masks become sparse."""

    def losses(self, found: Sequence[Tensor], targets: Tensor) -> Tensor:
        exits = len(EXIT_WEIGHTS)
        terms = [
            weight * loss for weight, loss in zip(EXIT_WEIGHTS, super().losses(found[:exits], targets), strict=True)
        ]
        for index, mask in enumerate(found[exits:]):
            terms[index] = terms[index] + SPARSITY * MASK_WEIGHTS[index] * mask.mean()
        return torch.stack(terms)


class SampledExecutor(ReferenceExecutor):
    """Also counts the samplers' multiply-adds: each sampler counts towards the exit after it, which its mask is for."""

    network: SampledNet

    def _macs(self, index: int, shape: Size, masks: Masks | None) -> float:
        macs = super()._macs(index, shape, masks)
        if masks is None:
            return macs
        weights: int = self.network.get_parameter(f"sampler{index - 1}.weight").numel()
        return macs + weights * (shape[0] // STRIDE) * (shape[1] // STRIDE)
