"""Every knob of the server: its name, its type and its range. The defaults and their reasons stand in
`config/default.toml`, and nowhere else.

Values come from, each on top of the one before:

    config/default.toml         what is shipped
    a TOML file of the user's   `--config FILE`, or PARLEY_CONFIG
    the environment             PARLEY_SECTION__NAME; what Kubernetes adds for a Service named parley is left alone
    the command line            `--host`, `--port`, `--workers`

An unknown name is refused, with the nearest known one.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from media_server.errors import ConfigError


def find_root(code: Path) -> Path:
    """Return the folder that holds `config/` and `static/`, given the path of this file.

    In a checkout they stand beside the code; a wheel puts them into `share/parley` of the environment.
    """
    installed = (parent / "share" / "parley" for parent in code.parents)
    folders = (code.parents[1], *installed)
    return next((folder for folder in folders if (folder / "config" / "default.toml").is_file()), folders[0])


ROOT = find_root(Path(__file__))
DEFAULT_FILE = ROOT / "config" / "default.toml"
ENV_PREFIX = "PARLEY_"
SECRETS = ("_key", "_password", "_secret")
"""How the names of knobs end whose values are never shown."""

_NOT_KNOBS = {"PARLEY_CONFIG", "PARLEY_SPEECH"}  # of this file, of the tests
_SERVICE = re.compile(
    r"PARLEY(_[A-Z0-9]+)*_"
    r"(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9]+)*=|PORT=\w+://|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?=)"
)
"""What Kubernetes puts into the environment of every pod, as NAME=value, beside a Service whose name begins so."""

Ms = Annotated[int, Field(ge=0, le=600_000)]
Share = Annotated[float, Field(ge=0, le=1)]


def _split(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""A TOML list, or a text with commas or blanks between: the environment knows no lists."""

# RFC 7064 section 3.1, RFC 7065 section 3.1.
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_STUN_URL = re.compile(rf"stuns?:{_HOST}")
_TURN_URL = re.compile(rf"turns?:{_HOST}(?:\?transport=(?:udp|tcp))?")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerConfig(_Section):
    """The front door."""

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    workers: Annotated[int, Field(ge=0, le=255)]
    max_calls: Annotated[int, Field(ge=1)]
    retry_after_s: Annotated[int, Field(ge=1)]
    max_body_bytes: Annotated[int, Field(ge=1024)]


class WebRtcConfig(_Section):
    """How sound and events travel."""

    bind: str
    announce: Names
    port_min: Annotated[int, Field(ge=0, le=65535)]
    port_max: Annotated[int, Field(ge=0, le=65535)]
    stun_url: str
    turn_urls: Names
    turn_secret: Annotated[str, Field(repr=False)]
    turn_ttl_s: Annotated[int, Field(ge=60)]
    connect_timeout_s: Annotated[float, Field(gt=0)]
    gone_after_s: Annotated[float, Field(gt=0)]
    bitrate_bps: Annotated[int, Field(ge=6000, le=510_000)]
    complexity: Annotated[int, Field(ge=0, le=10)]
    live_queue_ms: Ms
    wait_limit_ms: Ms

    @field_validator("announce")
    @classmethod
    def _check_announce(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            try:
                ipaddress.ip_address(each)
            except ValueError:
                raise PydanticCustomError("no_address", "Input should be IP addresses") from None
        return value

    @field_validator("port_max")
    @classmethod
    def _check_ports(cls, value: int, info: ValidationInfo) -> int:
        port_min = info.data.get("port_min", 0)
        if value < port_min or (value > 0 and port_min == 0):
            wanted = "Input should be at least webrtc.port_min, {port_min}; both are 0 for any port"
            raise PydanticCustomError("no_range", wanted, {"port_min": port_min})
        return value

    @field_validator("stun_url")
    @classmethod
    def _check_stun_url(cls, value: str) -> str:
        if value and not _STUN_URL.fullmatch(value):
            raise PydanticCustomError("no_stun_url", "Input should be stun:HOST or stun:HOST:PORT")
        return value

    @field_validator("turn_urls")
    @classmethod
    def _check_turn_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_TURN_URL.fullmatch(each) for each in value):
            wanted = "Input should be turn:HOST:PORT or turns:HOST:PORT, with ?transport=udp or tcp if you like"
            raise PydanticCustomError("no_turn_url", wanted)
        return value

    @field_validator("turn_secret")
    @classmethod
    def _check_turn_secret(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("turn_urls") and not value:
            raise PydanticCustomError("no_secret", "Input should be the secret that webrtc.turn_urls share with us")
        return value


class CallConfig(_Section):
    """The life of a call."""

    mode: Literal["talk", "echo"]
    greeting: bool
    greeting_after_ms: Ms
    instructions: str
    voice: str
    idle_timeout_s: Annotated[float, Field(ge=0)]
    max_duration_s: Annotated[float, Field(ge=0)]
    resume_s: Annotated[float, Field(ge=0)]
    levels_hz: Annotated[float, Field(ge=1, le=50)]
    apology: str


class VadConfig(_Section):
    """What counts as speech."""

    model: str
    threshold: Share
    release_threshold: Share

    @field_validator("release_threshold")
    @classmethod
    def _check_release(cls, value: float, info: ValidationInfo) -> float:
        threshold = info.data.get("threshold", 1.0)
        if value > threshold:
            raise PydanticCustomError(
                "above_threshold", "Input should be at most vad.threshold, {threshold}", {"threshold": threshold}
            )
        return value


class TurnConfig(_Section):
    """When the caller has finished."""

    onset_ms: Ms
    prefix_ms: Ms
    silence_ms: Ms
    max_utterance_s: Annotated[float, Field(gt=0, le=60)]


class BargeInConfig(_Section):
    """When a caller who speaks during a reply cuts it."""

    duck_ms: Ms
    duck_db: Annotated[float, Field(le=0)]
    cut_ms: Ms
    words_cut: bool
    release_ms: Ms


class PlayoutConfig(_Section):
    """Speech on its way to the ear."""

    ahead_ms: Ms
    text_limit_bytes: Annotated[int, Field(ge=1024)]


class AsrConfig(_Section):
    """The recogniser."""

    engine: Literal["sphinx", "whisper"]
    language: str
    stable_ms: Ms
    final_timeout_s: Annotated[float, Field(gt=0)]
    sphinx_workers: Annotated[int, Field(ge=1)]
    sphinx_grammar: str
    sphinx_corpus: str
    whisper_model: str
    whisper_device: str
    whisper_compute_type: str
    whisper_threads: Annotated[int, Field(ge=1)]
    whisper_decoders: Annotated[int, Field(ge=1)]
    whisper_partial_ms: Annotated[int, Field(ge=100)]
    whisper_context_s: Annotated[float, Field(ge=1, le=30)]


class LlmConfig(_Section):
    """The agent."""

    engine: Literal["rules", "openai"]
    scenario: str
    base_url: str
    model: str
    api_key: str
    first_token_timeout_s: Annotated[float, Field(gt=0)]
    token_timeout_s: Annotated[float, Field(gt=0)]


class TtsConfig(_Section):
    """The voice."""

    engine: Literal["espeak", "piper"]
    espeak_workers: Annotated[int, Field(ge=1)]
    piper_model: str
    remember_mb: Annotated[float, Field(ge=0)]
    first_audio_timeout_s: Annotated[float, Field(gt=0)]


class LogConfig(_Section):
    """What is written down."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Config(_Section):
    """All of it."""

    server: ServerConfig
    webrtc: WebRtcConfig
    call: CallConfig
    vad: VadConfig
    turn: TurnConfig
    barge_in: BargeInConfig
    playout: PlayoutConfig
    asr: AsrConfig
    llm: LlmConfig
    tts: TtsConfig
    log: LogConfig


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration in force, and where each value comes from: `section.name` -> a file, a variable or a flag."""

    config: Config
    origins: dict[str, str]


def load_config(
    environ: Mapping[str, str], file: Path | None = None, flags: Mapping[str, str | int] | None = None
) -> Loaded:
    """Return the configuration in force.

    Args:
        environ: the environment; `PARLEY_CONFIG` names the user's file if `file` does not.
        file: the user's TOML file.
        flags: values given on the command line, by `section.name`.

    Raises:
        ConfigError: a file that cannot be read, an unknown name, or a value of the wrong type or out of range.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is None and environ.get("PARLEY_CONFIG"):
        file = Path(environ["PARLEY_CONFIG"])
    for path in [DEFAULT_FILE, *([file] if file else [])]:
        for name, value in _read_file(path):
            values[name] = value
            origins[name] = str(path) if path is not DEFAULT_FILE else "config/default.toml"
    for variable, name in _variables(environ):
        values[name] = environ[variable]
        origins[name] = variable
    for name, flag in (flags or {}).items():
        values[name] = flag
        origins[name] = f"--{name.rpartition('.')[2].replace('_', '-')}"
    return Loaded(_validate(values, origins), origins)


def known_names() -> tuple[str, ...]:
    """Return every `section.name` there is."""
    return tuple(
        f"{section}.{name}" for section, field in Config.model_fields.items() for name in _fields_of(field.annotation)
    )


def _fields_of(section: Any) -> Iterator[str]:
    yield from section.model_fields


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for section, table in document.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section!r} stands outside of a section; every name belongs into one")
        for name, value in table.items():
            _check_name(f"{section}.{name}", str(path))
            yield f"{section}.{name}", value


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable in sorted(environ):
        ours = variable.startswith(ENV_PREFIX) and variable not in _NOT_KNOBS
        if ours and not _SERVICE.match(f"{variable}={environ[variable]}"):
            section, _, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
            _check_name(f"{section}.{name}", variable)
            yield variable, f"{section}.{name}"


def _check_name(name: str, origin: str) -> None:
    known = known_names()
    if name in known:
        return
    by_last_part = {key.partition(".")[2]: key for key in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    last = difflib.get_close_matches(name.partition(".")[2], by_last_part, n=1, cutoff=0.8)
    nearest = near[0] if near else by_last_part[last[0]] if last else None
    if nearest and origin.startswith(ENV_PREFIX):
        nearest = ENV_PREFIX + nearest.upper().replace(".", "__")
    hint = f"; did you mean {nearest!r}?" if nearest else f"; the sections are {', '.join(Config.model_fields)}"
    raise ConfigError(f"{origin}: unknown name {name.rstrip('.')!r}{hint}")


def _validate(values: dict[str, Any], origins: dict[str, str]) -> Config:
    tree: dict[str, dict[str, Any]] = {section: {} for section in Config.model_fields}
    for name, value in values.items():
        section, _, last = name.partition(".")
        tree[section][last] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:2])  # what follows is a place in a list
        found = "what is not shown" if name.endswith(SECRETS) and first["input"] else repr(first["input"])[:80]
        raise ConfigError(f"{origins.get(name, 'configuration')}: {name}: {first['msg']}, found {found}") from None
