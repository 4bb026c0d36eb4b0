"""The families of networks, and every named configuration. Needs no torch: a network is imported when it is built.

A new family needs its configurations, its network (see `models/network/network.py`), and one line in `FAMILIES`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.network import adpc_configs, mdeq_configs
from models.network.configs import FIRST_FAMILY, ModelConfig
from models.validation import from_json


@dataclass(frozen=True)
class Family:
    """A family of networks. `config`: the class of its configurations, whose `family` is the key in `FAMILIES`.
    `named`: the configurations that can be asked for by name. `network`: "module:class" of the network. `operations`:
    "module:function" that counts multiply-adds for `python -m models flops`, see `flops.rows`."""

    config: type[ModelConfig]
    named: tuple[ModelConfig, ...]
    network: str
    operations: str = "models.network.flops:rows"


FAMILIES: dict[str, Family] = {
    "adpc": Family(adpc_configs.AdpcConfig, adpc_configs.NAMED, "models.network.adpc:AdpcNet"),
    "mdeq": Family(
        mdeq_configs.MdeqConfig,
        mdeq_configs.NAMED,
        "models.network.mdeq:MdeqNet",
        operations="models.network.mdeq_flops:rows",
    ),
}

CONFIGS: dict[str, ModelConfig] = {config.name: config for family in FAMILIES.values() for config in family.named}
"""Every named configuration."""


def imported(path: str) -> Any:
    """The object at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def config(name: str) -> ModelConfig:
    """The configuration of that name. Raises ValueError, which lists the known names, if there is none."""
    if name not in CONFIGS:
        raise ValueError(f"no configuration is called {name!r}; there are {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]


def config_from_json(data: Any) -> ModelConfig:
    """The configuration in the JSON of a `config.json`. Raises ValueError if the family is unknown, or if a field is
    missing, unknown or invalid."""
    if not isinstance(data, Mapping):
        raise ValueError(f"not a model configuration: {data!r:.80}; give an object")  # noqa: TRY004 - it is of a file
    values = dict(data)
    family = values.pop("family", FIRST_FAMILY)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"family is {family!r}; it may be {', '.join(FAMILIES)}")
    return from_json(FAMILIES[family].config, values, "a model configuration")
