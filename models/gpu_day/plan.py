"""The stages of each part, in order of value, and how much time each may take."""

from dataclasses import dataclass

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


def stages_of(part: str, minutes: float, training: "Training | None" = None) -> list[Stage]:
    """`minutes` are shared out in proportion to what the stages are made for."""
    return _check(minutes) if part == "check" else _train(minutes, training or Training())


@dataclass(frozen=True)
class Training:
    """What to train. `hold_out`: a drive that a first schedule leaves out, to say whether the second, on everything, is
    better than what there is. `init`: a model that lends its weights; empty: random ones."""

    name: str = "camvid-adpc-w18"
    hold_out: str = ""
    init: str = ""
    distillation: float = 0.0


def _check(minutes: float) -> list[Stage]:
    share = minutes / 4
    folder = "models.gpu_day"
    sizes = ("1024x2048", "512x1024")
    bench = ["--widths", "w48", "w18", "--sizes", *sizes, "--repeats", "20", "--limit", "40"]
    return [
        Stage("compile", 60 * share, f"{folder}.compiling:compile_all", {"networks": COMPILED}),
        Stage("plain", 50 * share, f"{folder}.correctness:correctness", {"mode": "plain"}),
        Stage("tune", 45 * share, f"{folder}.tune:tune", {"networks": TUNED}),
        Stage("graphs", 60 * share, f"{folder}.correctness:correctness", {"mode": "graphs"}),
        Stage("bench", 90 * share, f"{folder}.bench:bench", {"options": bench}),
        Stage("server", 70 * share, f"{folder}.live:live"),
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
