"""The stages of each part, in order of value, and how much time each may take."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from models.gpu_day.stages import Stage

PARTS = ("check", "train")
COMPILED = (
    "adpc-w48-cityscapes@512x1024",
    "adpc-w18-cityscapes@512x1024",
    "adpc-w32-mpii@256x256",
    "camvid-adpc-w18@384x480",
)
TUNED = (
    "adpc-w48-cityscapes@1024x2048",
    "adpc-w48-cityscapes@512x1024",
    "camvid-adpc-w18@384x480",
    "adpc-w18-cityscapes@1024x2048",
    "adpc-w18-cityscapes@512x1024",
)


def stages_of(part: str, device: str, minutes: float) -> Sequence[Stage]:
    """`minutes` are shared out in proportion to what the stages are made for."""
    return _check(device, minutes) if part == "check" else _train(minutes)


def _check(device: str, minutes: float) -> list[Stage]:
    share = minutes / 4
    folder = "models.gpu_day"
    bench: dict[str, Any] = {"runtimes": ["triton", "torch"], "name": "bench-gpu"}
    return [
        Stage("compile", 60 * share, f"{folder}.compiling:compile_all", {"networks": COMPILED}),
        Stage("plain", 50 * share, f"{folder}.correctness:correctness", {"mode": "plain"}),
        Stage("tune", 45 * share, f"{folder}.tune:tune", {"networks": TUNED}),
        Stage("graphs", 60 * share, f"{folder}.correctness:correctness", {"mode": "graphs"}),
        Stage("bench", 75 * share, f"{folder}.bench:bench", bench),
        Stage("server", 70 * share, f"{folder}.live:live"),
        Stage("onnxruntime", 30 * share, f"{folder}.bench:bench", {"runtimes": ["onnxruntime"], "name": "bench-onnx"}),
        Stage("compiled", 60 * share, f"{folder}.bench:bench", {"runtimes": ["compile"], "name": "bench-compile"}),
    ]


def _train(minutes: float) -> list[Stage]:
    """Raises ValueError if there is nothing to train with."""
    if importlib.util.find_spec("models.gpu_day.training_stages") is None:
        raise ValueError("models/gpu_day/training_stages.py is not there; only --part check can be run")
    jobs = "models.gpu_day.training_stages"
    return [
        Stage("profile", min(60.0, 60 * minutes / 8), f"{jobs}:profile"),
        Stage("schedule", 60 * minutes, f"{jobs}:schedule"),
    ]
