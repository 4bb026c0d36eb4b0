"""The stages of each part, in order of value, and how much time each may take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


def stages_of(
    part: str, minutes: float, training: "Training | None" = None, names: Sequence[str] | None = None
) -> list[Stage]:
    """The stages called `names`, or all. Stages of part check share `minutes` in proportion to their usual limits.

    Raises ValueError if there is no stage of a name.
    """
    stages = _check() if part == "check" else _train(minutes, training or Training())
    known = [stage.name for stage in stages]
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"no stage is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [stage for stage in stages if not names or stage.name in names]
    if part == "train":
        return chosen
    share = 60 * minutes / sum(stage.limit_s for stage in chosen)
    return [replace(stage, limit_s=share * stage.limit_s) for stage in chosen]


@dataclass(frozen=True)
class Training:
    """What to train. `hold_out`: a drive that a first schedule leaves out, so that its score can be compared; a second
    schedule trains on everything. `init`: the model whose weights both start from; empty means random weights."""

    name: str = "camvid-adpc-w18"
    hold_out: str = ""
    init: str = ""
    distillation: float = 0.0


def _check() -> list[Stage]:
    """The stages of part check, with limits that make four minutes."""
    folder = "models.gpu_day"
    sizes = ("1024x2048", "512x1024")
    bench = ["--widths", "w48", "w18", "--sizes", *sizes, "--repeats", "50", "--limit", "60"]
    return [
        Stage("compile", 25, f"{folder}.compiling:compile_all", {"networks": COMPILED}),
        Stage("plain", 35, f"{folder}.correctness:correctness", {"mode": "plain"}),
        Stage("tune", 20, f"{folder}.tune:tune", {"networks": TUNED}),
        Stage("graphs", 40, f"{folder}.correctness:correctness", {"mode": "graphs"}),
        Stage("bench", 60, f"{folder}.bench:bench", {"options": bench}),
        Stage("server", 60, f"{folder}.live:live"),
    ]


def _train(minutes: float, training: Training) -> list[Stage]:
    profile_s = min(60.0, 60 * minutes / 6)
    left_s = 60 * minutes - profile_s - 20
    plans = [{"name": "all", "seconds": left_s, "hold_out": ()}]
    if training.hold_out:
        held = {"name": "held-out", "seconds": left_s / 2, "hold_out": (training.hold_out,)}
        plans = [held, {**plans[0], "seconds": left_s / 2}]
    how = {"name": training.name, "init": training.init or None, "distillation": training.distillation}
    return [
        Stage("profile", profile_s, "models.gpu_day.training:profile"),
        Stage("schedules", 60 * minutes, "models.gpu_day.training:schedules", {"plans": plans, "how": how}),
    ]
