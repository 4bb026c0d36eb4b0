"""The cases of a benchmark on a CPU: each is a runtime on a network. Needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.directory import read_config
from models.imaging.geometry import Size
from models.network.adpc_configs import AdpcConfig
from models.network.families import config
from models.quantisation import Precision

OWN = ("sparse", "sparse-int8")
RUNTIMES = (
    *OWN, "torch", "compile", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-default", "openvino-int8"
)  # fmt: skip
"""`openvino` computes in float32, `openvino-default` in the precision that OpenVINO chooses for the machine."""
ACTIVE = {"w18": (0.837, 0.741, 0.523), "w48": (0.807, 0.616, 0.370)}
"""Active shares by width that give the multiply-adds of the paper's tables 1 and 3."""


@dataclass(frozen=True)
class BenchCase:
    """A runtime on a network.

    `kind`: "one exit" and "anytime" are dense; "masked" is the anytime network under masks. `size`: height and width of
    the input, not padded.

    Without a `model` the weights are random, the masks have `active` shares after exits 1 to 3, and `data` is the
    folder of CamVid whose label maps shape them (None: a drawn scene). `model`: the directory of a trained model, whose
    masks are its own; it runs on the first `images` validation images of the data set in `data`.
    """

    runtime: str
    kind: str
    width: str
    size: Size
    active: tuple[float, ...] = ()
    seed: int = 0
    threads: int = 1
    data: str | None = None
    model: str | None = None
    images: int = 0

    @property
    def int8(self) -> bool:
        return self.runtime.endswith("-int8")

    @property
    def config(self) -> AdpcConfig:
        """The configuration of the network. A trained model has its own, or what is left of it without masks and
        without early exits."""
        if self.model is None:
            family = {"one exit": "hrnet", "anytime": "rh", "masked": "adpc"}[self.kind]
            found = config(f"{family}-{self.width}-cityscapes")
        else:
            found = read_config(Path(self.model))
        assert isinstance(found, AdpcConfig)
        if self.model is None or self.kind == "masked":
            return found
        return replace(found, masking=None, heads=found.heads if self.kind == "anytime" else "one")


def cases(
    width: str,
    size: Size,
    runtimes: Sequence[str],
    *,
    active: tuple[float, ...],
    sweep: Sequence[float] = (),
    seed: int = 0,
    threads: int = 1,
    data: str | None = None,
) -> Iterator[BenchCase]:
    """The cases with random weights that are compared with each other. `active`: shares after exits 1 to 3. `sweep`:
    shares that the sparse executor also runs with, the same at every exit."""
    for runtime in runtimes:
        if runtime in OWN:
            for shares in (active, *((share,) * 3 for share in sweep)):
                yield BenchCase(runtime, "masked", width, size, shares, seed, threads, data)
        for kind in ("anytime", "one exit"):
            yield BenchCase(runtime, kind, width, size, (), seed, threads, data)


def trained_cases(
    directory: Path, size: Size, runtimes: Sequence[str], *, data: str, images: int, threads: int = 1
) -> Iterator[BenchCase]:
    """The cases of the trained model in `directory`, on `images` images of `size`.

    Raises ValueError unless it is a segmentation model of this family with masks.
    """
    found = read_config(directory)
    if not isinstance(found, AdpcConfig) or found.task != "segmentation" or found.masking is None:
        raise ValueError(
            f"{found.name} is a {found.task} model of family {found.family}; bench scores segmentation models of "
            f"family {AdpcConfig.family} with masks: leave --model out, or choose such a one"
        )
    for runtime in runtimes:
        for kind in ("masked", "anytime", "one exit") if runtime in OWN else ("anytime", "one exit"):
            yield BenchCase(
                runtime, kind, f"w{found.backbone.width}", size,
                threads=threads, data=data, model=str(directory), images=images,
            )  # fmt: skip


def in_precision(runtimes: Sequence[str], precision: Precision) -> list[str]:
    """The runtimes that are told to compute in `precision`."""
    int8 = [runtime for runtime in runtimes if runtime.endswith("-int8")]
    return int8 if precision == "int8" else [name for name in runtimes if name not in (*int8, "openvino-default")]
