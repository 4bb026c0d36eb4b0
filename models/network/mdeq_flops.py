"""Multiply-adds of an MDEQ by iteration, and those that the paper's Table 6 prints. Needs no torch.

Iteration k has evaluated f k + 1 times. Table 6 has stem + injection + head + 2 (k + 1) f: the authors' model holds the
layers of f in two places, so their tool counted each twice. Both counts take the head as it was published, which
convolves the concatenated branches at the finest size, and once. This project's head costs less and is computed at
every exit; `flops.costs` counts it so.
"""

from dataclasses import dataclass

from models.imaging.geometry import MULTIPLE
from models.network.configs import GIGA, ModelConfig
from models.network.mdeq_configs import MdeqConfig

ITERATIONS = 27
"""Rows of Table 6."""


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of the stem and the injection, of one evaluation of f, and of one decoding as published."""

    injection: int
    evaluation: int
    decoding: int


def operations(config: MdeqConfig, height: int, width: int) -> Operations:
    """Those of an input of that size, padded up to multiples of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    channels, finest = config.channels, (height // 4) * (width // 4)
    area = [finest >> 2 * branch for branch in range(len(channels))]
    total = sum(channels)
    stem = 4 * finest * 9 * 3 * channels[0] + finest * 9 * channels[0] ** 2
    evaluation = 0
    for i, (c, positions) in enumerate(zip(channels, area, strict=True)):
        evaluation += positions * c * c * (2 * 9 * config.expansion + 1)  # the block, and the 1x1 after fusion
        for j, source in enumerate(channels):
            if j > i:
                evaluation += area[j] * source * c
            for step in range(j + 1, i + 1):
                evaluation += area[step] * 9 * source * (c if step == i else source)
    return Operations(stem + finest * channels[0] ** 2, evaluation, finest * total * (total + config.outputs))


def rows(
    model: ModelConfig, height: int, width: int, active: tuple[float, ...], *, as_printed: bool
) -> list[tuple[int, float]]:
    """Pairs of an iteration and its multiply-adds / 1024^3, from the image to the scores. `as_printed`: those of Table
    6. Raises ValueError if there are active shares."""
    assert isinstance(model, MdeqConfig)
    if active:
        raise ValueError(f"{len(active)} active shares; {model.name} has no masks: leave --active out")
    found = operations(model, height, width)
    times = 2 if as_printed else 1
    once = found.injection + found.decoding
    return [(k, (once + times * (k + 1) * found.evaluation) / GIGA) for k in range(1, ITERATIONS + 1)]
