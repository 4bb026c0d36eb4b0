"""The settings. Only this module reads the command line, the environment and the file that give them.

Every setting is a flag (`--max-open 64`), a variable (`ANYTIME_MAX_OPEN=64`) and a line of the file that `--config` or
`ANYTIME_CONFIG` names (`max_open = 64`). The flag wins over the variable, and the variable over the file.
"""

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from models.executors.registry import AUTO
from models.reading import read_text, shallow
from server.setting_text import (
    EITHER,
    Address,
    Device,
    Executor,
    Hosts,
    Networks,
    PageOrigins,
    Precision,
    RootPath,
    TrafficCapText,
    parse_address,
    parse_devices,
    parse_traffic_cap,
    remedy,
)

ROOT = Path(__file__).parent.parent
PROGRAM = "python -m server"
PREFIX = "ANYTIME_"
CONFIG = f"{PREFIX}CONFIG"
MAX_UNREAD_S = 2**31 // 1000
"""The system counts this time in milliseconds, in 31 bits."""


class Settings(BaseModel):
    """The server's settings. Their names end in their units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allowed_hosts: Hosts = Field(
        "",
        description="names by which the server may be called besides localhost and IP addresses: "
        "anytime.example,*.example.org; * for all",
    )
    allowed_origins: PageOrigins = Field(
        "", description="sites whose pages may use the server besides its own: https://app.example; * for all"
    )
    trusted_proxies: Networks = Field(
        "",
        description="addresses or networks of proxies whose X-Forwarded-For, X-Forwarded-Proto and X-Request-Start "
        "count: 10.0.0.7,192.168.0.0/16",
    )
    peers: Address = Field(
        "",
        description="HOST:PORT by which all replicas of this server are found; look-ups and cancels of requests that "
        "others have are handed on to them",
    )
    keys: Path | None = Field(None, description="TOML file of API keys; without one everyone may ask")
    admin: Address = Field(
        "", description="HOST:PORT of an address of its own for /metrics and /docs, which then are there alone"
    )
    tls_certificate: Path | None = Field(None, description="PEM file of the certificates to serve HTTPS with")
    tls_key: Path | None = Field(None, description="PEM file of the private key of --tls-certificate")
    root_path: RootPath = Field(
        "",
        description="path under which a proxy serves the server, for example /anytime; the proxy may strip it or not",
    )
    models: Path = Field(ROOT / "models" / "zoo", description="folder of model directories")
    default_model: str = Field("", description="model of requests that name none; empty: the first by name")
    device: Device = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; several with commas: cpu,cpu are two workers that share the cores",
    )
    executor: Executor = Field(AUTO, description=EITHER)
    precision: Precision = Field(
        AUTO, description="auto, fp32 or int8; auto: int8 for models with scales for which it is measured to be faster"
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads to compute with, shared among several workers; 0: one for each core that "
        "the server may use",
    )
    default_deadline_ms: float = Field(
        1000, gt=0, allow_inf_nan=False, description="deadline of requests that name none"
    )
    max_deadline_ms: float = Field(
        30_000, gt=0, allow_inf_nan=False, description="longest deadline; later ones are lowered to it"
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="largest image file")
    max_pixels: int = Field(
        16 * 2**20, ge=1024, le=2**40, description="largest image, in pixels after padding to multiples of 32"
    )
    max_message_bytes: int = Field(64 * 2**10, ge=256, description="longest text message on a WebSocket")
    max_open: int = Field(128, ge=1, description="requests that may be open at once, once their image is there")
    max_open_per_address: int = Field(96, ge=1, description="of these, what one address may have")
    max_sockets: int = Field(256, ge=1, description="WebSocket connections that may be open at once")
    max_sockets_per_address: int = Field(128, ge=1, description="of these, what one address may have")
    max_connections: int = Field(
        1024, ge=1, description="connections that may be open at once; fewer if the limit of descriptors is too low"
    )
    max_connections_per_address: int = Field(
        512, ge=1, description="of these, what one address may have; never more than half of those that may be open"
    )
    max_unfinished_bytes: int = Field(
        256 * 2**20, ge=2**20, description="memory for bodies and WebSocket messages that have not come completely"
    )
    max_unfinished_bytes_per_address: int = Field(
        128 * 2**20, ge=2**20, description="of this, what one address may take"
    )
    reserve_descriptors: int = Field(
        128, ge=16, description="descriptors kept for the workers and their restart; connections get the others"
    )
    header_timeout_s: float = Field(
        10, gt=0, allow_inf_nan=False, description="time for a request's headers, or a WebSocket's handshake"
    )
    body_timeout_s: float = Field(
        30, gt=0, allow_inf_nan=False, description="time for a request's body, or a WebSocket message"
    )
    idle_timeout_s: float = Field(
        75,
        gt=0,
        allow_inf_nan=False,
        description="time until an HTTP connection without a request is closed; longer than proxies keep theirs",
    )
    socket_idle_timeout_s: float = Field(
        300, gt=0, allow_inf_nan=False, description="time until a WebSocket on which nothing is said is closed"
    )
    unread_timeout_s: float = Field(
        20,
        gt=0,
        le=MAX_UNREAD_S,
        allow_inf_nan=False,
        description=f"time until a client that does not read its answers is cut off; at most {MAX_UNREAD_S}",
    )
    shared_memory_bytes: int = Field(512 * 2**20, ge=2**20, description="memory for images and maps of open requests")
    client_rate: float = Field(
        0, ge=0, allow_inf_nan=False, description="requests a second that one address may send; 0: no limit"
    )
    client_burst: int = Field(20, ge=1, description="requests that one address may send at once, with --client-rate")
    traffic_cap: TrafficCapText = Field(
        "", description="deepest exit while many requests are open: '16:3,32:2' is exit 3 from 16 on, 2 from 32 on"
    )
    budget: Path | None = Field(
        None, description="TOML file of deadlines and deepest exits by model, client, traffic, hours and image size"
    )
    codec_threads: int = Field(
        2,
        ge=1,
        le=64,
        description="processes that decode images, besides one for large images, and threads that encode large maps "
        "and costly encodings",
    )
    max_decode_ms: float = Field(
        2000, ge=10, le=86_400_000, allow_inf_nan=False, description="CPU time that the decoding of one image may take"
    )
    history: int = Field(1000, ge=1, description="ended requests that can still be looked up")
    load_timeout_s: float = Field(
        900, gt=0, allow_inf_nan=False, description="time for a worker to load the models before it is replaced"
    )
    spare_workers: int = Field(
        1,
        ge=0,
        le=64,
        description="processes in reserve, so that a worker that was lost is replaced sooner; each takes about 150 MB",
    )
    drain_ms: float = Field(
        30_000, ge=0, allow_inf_nan=False, description="time for open requests to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe message logged")
    log_format: Literal["plain", "json"] = Field("plain", description="plain or json: an object a line")
    access_log: bool = Field(False, description="log every request for a prediction when it ends")
    traces: bool = Field(
        False,
        description="send spans of requests and exits to an OpenTelemetry collector, which the variables OTEL_* of "
        "OpenTelemetry describe",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_or_empty_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false where pydantic would take them for 1 and 0, and the empty path, which would be the
        folder where the server runs."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("it is not true or false; give what `--help` says")
        if value == "" and info.field_name in FILES:
            raise ValueError("it is empty; give a path, or leave it out")
        return value

    @property
    def devices(self) -> tuple[str, ...]:
        return parse_devices(self.device)

    @property
    def listens_on(self) -> tuple[str, ...]:
        """The hosts that the server listens on: its own, and that of the operators' address."""
        return (self.host,) if self.admin_address is None else (self.host, self.admin_address[0])

    @property
    def admin_address(self) -> tuple[str, int] | None:
        return parse_address(self.admin)

    @property
    def peers_address(self) -> tuple[str, int] | None:
        return parse_address(self.peers)

    @property
    def traffic_levels(self) -> tuple[tuple[int, int], ...]:
        return parse_traffic_cap(self.traffic_cap)


FILES = [name for name, field in Settings.model_fields.items() if field.annotation in (Path, Path | None)]
"""The settings that name files or folders."""


def load_settings(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags, then variables, then the file, then defaults. A wrong setting ends the program with status 2
    and a sentence that names it."""
    environ = os.environ if environ is None else environ
    flags = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
    path = flags.pop("config", None) or environ.get(CONFIG)
    variables = _variables(environ)
    if path == "":
        _fail(f"{CONFIG} is empty; name a file, or leave it out")
    lines = {} if path is None else _lines(Path(path))
    try:
        return Settings.model_validate({**lines, **variables, **flags})
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            variable = PREFIX + name.upper() if name in variables else f"{path}: {name}"
            source = flag(name) if name in flags else variable
            _complain(f"{source} {problem['input']!r}: {remedy(problem)}")
        raise SystemExit(2) from None


def flag(name: str) -> str:
    """The flag of a setting: `max_open` -> `--max-open`."""
    return f"--{name.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Serve anytime models: the best map that each request's deadline allows.",
        epilog=f"Every flag may also be set as a variable: --max-open is {PREFIX}MAX_OPEN. A flag wins over a "
        "variable, and a variable over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings: max_open = 64 (default: none)")
    for name, field in Settings.model_fields.items():
        default = str("" if field.default is None else field.default) or "none"
        text = f"{field.description} (default: {default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag(name), action="store_const", const="true", help=text)
        else:
            parser.add_argument(flag(name), metavar=name.rpartition("_")[2].upper(), help=text)
    return parser


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of the environment. Other programs may use the prefix, so that a strange name only warns."""
    names = {PREFIX + name.upper(): name for name in Settings.model_fields}
    given = {key: text for key, text in environ.items() if key.startswith(PREFIX) and not _is_service_link(key, text)}
    for key in sorted(given.keys() - {CONFIG, *names}):
        _complain(f"{key} is no setting and does nothing{_nearest(key, names)}")
    return {name: given[key] for key, name in names.items() if key in given}


def _lines(path: Path) -> dict[str, Any]:
    """The settings of a TOML file. Folders and files in it are relative to its own folder."""
    try:
        lines: dict[str, Any] = shallow(lambda: tomllib.loads(read_text(path)))
    except OSError as error:
        _fail(str(error))
    except ValueError as error:
        _fail(f"{path} cannot be read as TOML: {error}")
    for name in sorted(lines.keys() - Settings.model_fields.keys()):
        _fail(f"{path}: {name} is no setting{_nearest(name, Settings.model_fields)}")
    files = {
        name: path.parent / text for name, text in lines.items() if name in FILES and text and isinstance(text, str)
    }
    return lines | files


def _nearest(name: str, names: Iterable[str]) -> str:
    nearest = get_close_matches(name, names, 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _complain(sentence: str) -> None:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)


def _fail(sentence: str) -> NoReturn:
    _complain(sentence)
    raise SystemExit(2)


def _is_service_link(key: str, text: str) -> bool:
    """Whether a variable is one that Kubernetes sets in every pod if there is a service called `anytime`."""
    return re.fullmatch(rf"{PREFIX}(SERVICE_(HOST|PORT.*)|PORT_\d+_.*)", key) is not None or (
        key == f"{PREFIX}PORT" and "://" in text
    )
