import argparse
import json

import pytest

from models.__main__ import main
from models.commands.options import parse_shares, parse_size
from models.network.families import CONFIGS
from models.network.flops import gmacs, parameters

# Liu et al. (2022), tables 1-3 and 5; to two decimals where the paper's own are cut. Pose W48: HRNet's authors.
PAPER = {
    "ee-w48-cityscapes": (48.4, 113.5, 388.9, 722.2),
    "rh-w48-cityscapes": (41.9, 105.6, 368.0, 701.3),
    "ee-w18-cityscapes": (31.4, 42.6, 59.5, 82.9),
    "rh-w18-cityscapes": (23.7, 34.7, 49.9, 73.2),
    "hrnet-w48-cityscapes": (696.2,),
    "ee-w48-pascal-context": (5.46, 12.68, 43.12, 80.12),
    "rh-w48-pascal-context": (4.50, 11.43, 40.21, 77.22),
    "hrnet-w32-mpii": (9.493,),
    "hrnet-w48-mpii": (19.5,),
    "ee-w32-mpii": (1.261, 2.267, 5.892, 9.513),
    "rh-w32-mpii": (1.271, 2.289, 5.930, 9.551),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tables(name: str) -> None:
    config = CONFIGS[name]
    assert gmacs(config, *config.size) == pytest.approx(
        PAPER[name], abs=0.02 if "w32" in name or "pascal" in name else 0.06
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ee-w48-cityscapes", 66_074_796),
        ("rh-w48-cityscapes", 66_062_700),
        ("ee-w18-cityscapes", 4_033_556),
        ("rh-w18-cityscapes", 3_997_492),
        ("adpc-w18-cityscapes", 3_997_492 + 143),  # one Lambda per masked convolution
    ],
)
def test_parameters(name: str, count: int) -> None:
    assert parameters(CONFIGS[name]) == count


def test_masked_operations_of_table_1() -> None:
    values = gmacs(CONFIGS["adpc-w48-cityscapes"], 1024, 2048, (0.807, 0.616, 0.370))
    assert values == pytest.approx((41.9, 93.9, 259.3, 387.1), rel=0.005)


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "rh-w18-cityscapes", "--size", "360x480", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["params"] == 3_997_492
    assert printed["size"] == [360, 480]
    assert [row["exit"] for row in printed["exits"]] == [1, 2, 3, 4]


def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "w99"]) == 1
    assert "w99" in capsys.readouterr().err
    assert main(["flops", "rh-w18-cityscapes", "--active", "0.5"]) == 1
    assert "give 3" in capsys.readouterr().err
    for parse, text in ((parse_size, "1024"), (parse_size, "0x5"), (parse_shares, "0.5,2"), (parse_shares, "half")):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
