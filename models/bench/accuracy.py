"""The accuracy of a runtime: mIoU of a trained model's maps, and what masks left of its multiply-adds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.bench import workload
from models.bench.cases import BenchCase
from models.bench.runtimes import TimedRun
from models.data.scenes import VOID
from models.evaluation import scores
from models.evaluation.scores import percent
from models.imaging.geometry import Frame
from models.imaging.postprocess import labels
from models.network.configs import GIGA
from models.network.flops import gmacs


@dataclass(frozen=True)
class Accuracy:
    """The scores of every exit: `miou` in percent over `images` validation images, from one confusion matrix, and the
    mean of `gmacs` from the image."""

    images: int
    miou: list[float | None]
    gmacs: list[float]


def score(case: BenchCase, run: Callable[[Tensor], TimedRun]) -> Accuracy:
    classes, exits = case.config.outputs, case.config.exits
    matrices = [torch.zeros(classes, classes, dtype=torch.float64) for _ in range(exits)]
    macs = []
    scenes = workload.validation(case)
    for scene in scenes:
        found = run(workload.of_size(case, scene))
        truth = torch.from_numpy(scene.labels_for(classes))
        for matrix, each in zip(matrices, found.scores, strict=True):
            answer = np.empty(case.size, np.uint8)
            for _ in labels(torch.from_numpy(np.asarray(each))[0], Frame(*case.size), answer):
                pass
            matrix.add_(scores.confusion(torch.from_numpy(answer), truth, classes, VOID))
        macs.append(found.macs)
    counted = np.mean(macs, 0) / GIGA if macs[0] else gmacs(case.config, *case.size)
    return Accuracy(
        len(scenes), [percent(scores.iou(matrix).nanmean()) for matrix in matrices], list(map(float, counted))
    )
