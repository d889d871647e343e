"""Settings of every service; each service adds its own fields.

The field `milvus_uri` of the cache is the environment variable `CHORUS_CACHE_MILVUS_URI`.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from chorus_rpc.addresses import parse_host, parse_target
from chorus_rpc.limits import DEFAULT_MAX_MESSAGE_BYTES
from chorus_rpc.suggestions import closest
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def split_pairs(value: object) -> object:
    """Splits "NAME=VALUE, NAME=VALUE" into a dictionary. Raises ValueError for a part of another form."""
    if not isinstance(value, str):
        return value
    pairs = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"must be NAME=VALUE, separated by commas, not {part!r}")
        if name.strip() in pairs:
            raise ValueError(f"names {name.strip()!r} twice")
        pairs[name.strip()] = text.strip()
    return pairs


def split_list(value: object) -> object:
    """Splits the text of a comma-separated list; returns a value of another type unchanged."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a list without repetitions. Raises ValueError for another."""
    repeated = next((each for index, each in enumerate(value) if each in value[:index]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated!r} twice")
    return value


def _check_target(value: str) -> str:
    parse_target(value)
    return value


def _check_ip_address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _check_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if key and not (16 <= len(key) <= 512 and key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("must be 16 to 512 printable ASCII characters without spaces, or empty")
    return value


# Secret that one service presents to another; empty if there is none.
Key = Annotated[SecretStr, AfterValidator(_check_key)]

# "host:port", or any gRPC name such as "dns:///cache:7402".
Target = Annotated[str, Field(min_length=3, max_length=512), AfterValidator(_check_target)]


class ServerSettings(BaseSettings):
    """Settings of every server. Subclasses set `env_prefix` and a default port.

    The docstring of a field is its description in `--help` and in docs/settings.md.
    """

    model_config = SettingsConfigDict(extra="ignore", use_attribute_docstrings=True)

    host: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(parse_host)] = "127.0.0.1"
    """IP address or host name to listen on. 0.0.0.0 and :: are all addresses, of IPv4 and IPv6: for a
    container."""
    port: Port = 0
    """TCP port to listen on; 0 selects a free port, which the log reports."""
    metrics_port: Port = 0
    """TCP port that answers GET /metrics for Prometheus; 0: none."""
    metrics_host: Annotated[str, AfterValidator(_check_ip_address)] = "127.0.0.1"
    """IP address on which the metrics port listens. 0.0.0.0 and :: are all addresses, of IPv4 and IPv6."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the lines that are logged."""
    log_format: Literal["console", "json"] = "console"
    """Format of the log: "console" for people, "json" for log collectors."""
    drain_seconds: Seconds = 20.0
    """Time for running calls to end after SIGTERM, in seconds."""
    startup_seconds: Seconds = 300.0
    """Time for loading before the process exits with an error, in seconds."""
    call_seconds: Seconds = 60.0
    """Upper bound on the duration of a call with one response, in seconds, even if the caller's deadline is
    later. Streaming calls are not limited."""
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * MIB)] = DEFAULT_MAX_MESSAGE_BYTES
    """Upper bound on one gRPC message, in bytes. Streams send chunks of about 1 MiB; the largest message
    holds token states, 8 MiB for UMT5's 512 tokens."""
    max_concurrent_calls: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Upper bound on concurrent calls; further calls are refused with RESOURCE_EXHAUSTED."""
    instance_id: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")] = ""
    """Id that health checks report in the metadata `chorus-instance`, by which a supervisor such as
    `chorus up` recognises its own process; empty: none."""


S = TypeVar("S", bound=ServerSettings)


def load_settings(kind: type[S], arguments: Sequence[str] = ()) -> S:
    """Reads the settings from the environment.

    Ends the process with status 0 after printing `--help`, and with status 2 and a line that names the
    variable for an invalid value. Services take no other argument.
    """
    prefix = str(kind.model_config.get("env_prefix", ""))
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service_name(kind)}",
        description=f"Runs the {service_name(kind)} service until SIGTERM.",
        epilog=f"environment variables:\n{format_settings(kind)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    try:
        return kind()
    except ValidationError as error:
        for fault in error.errors():
            if not fault["loc"]:  # about several settings, which the message names
                print(fault["msg"].removeprefix("Value error, "), file=sys.stderr)
                continue
            field = str(fault["loc"][0])  # without the position in a list
            secret = kind.model_fields[field].annotation is SecretStr
            got = "" if secret else f" (got {fault.get('input')!r})"
            print(f"{prefix}{field.upper()}: {fault['msg']}{got}", file=sys.stderr)
        raise SystemExit(2) from None


def find_unknown_variables(
    kind: type[ServerSettings], environment: Mapping[str, str]
) -> dict[str, str | None]:
    """Returns the variables that carry the service's prefix but are not a setting, with the nearest setting.

    Names are compared ignoring case, as pydantic does.
    """
    prefix = str(kind.model_config.get("env_prefix", ""))
    known = [name.upper() for name in kind.model_fields]
    unknown: dict[str, str | None] = {}
    for variable in environment:
        name = variable.upper().removeprefix(prefix)
        if prefix and variable.upper().startswith(prefix) and name not in known:
            # Without the prefix, in which all names agree.
            nearest = closest(name, known)
            unknown[variable] = prefix + nearest if nearest else None
    return unknown


@dataclass(frozen=True)
class SettingRow:
    """One setting, as text for people.

    Attributes:
        variable: name of the environment variable.
        default: default value in the form of the environment; empty for the empty string.
        bound: accepted range or choices; empty if any value of the type is accepted.
        description: noun phrase with unit.
    """

    variable: str
    default: str
    bound: str
    description: str


def describe_settings(
    kind: type[ServerSettings], names: Iterable[str] | None = None, prefix: str | None = None
) -> list[SettingRow]:
    """Returns a row for each field of a settings class, in order.

    Args:
        names: fields to describe; default: all.
        prefix: prefix of the variables; default: that of the class.
    """
    if prefix is None:
        prefix = str(kind.model_config.get("env_prefix", ""))
    rows = []
    for name in kind.model_fields if names is None else names:
        field = kind.model_fields[name]
        # A service that only changes a default keeps the shared description.
        shared = ServerSettings.model_fields.get(name, field)
        description = " ".join((field.description or shared.description or "").split())
        rows.append(SettingRow(prefix + name.upper(), _default(field.default), _bound(field), description))
    return rows


def format_settings(kind: type[ServerSettings]) -> str:
    """Returns the settings of a service as indented text: name, default, bound, description."""
    entries = []
    for row in describe_settings(kind):
        facts = [f"default: {row.default or 'empty'}", *([row.bound] if row.bound else [])]
        text = textwrap.fill(row.description, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        entries.append(f"  {row.variable}  ({'; '.join(facts)})\n{text}")
    return "\n".join(entries)


def service_name(kind: type[ServerSettings]) -> str:
    """Returns the name of the service that a settings class belongs to, for instance "cache"."""
    return kind.__name__.removesuffix("Settings").lower()


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, dict):
        return ", ".join(f"{name}={_default(item)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(_default(item) for item in value)
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)  # shipped with the code
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _bound(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "true, false"
    limits: dict[type, Any] = {
        type(each): getattr(each, next(iter(each.__dataclass_fields__)))
        for each in field.metadata
        if isinstance(each, Ge | Gt | Le | Lt | MinLen | MaxLen)
    }
    low, high = limits.get(Ge), limits.get(Le)
    if low is not None and high is not None:
        return f"{low} to {high}"
    if MinLen in limits or MaxLen in limits:
        unit = "characters" if field.annotation is str else "entries"
        return f"{limits.get(MinLen, 0)} to {limits[MaxLen]} {unit}"
    words = {Gt: "above {}", Ge: "at least {}", Lt: "below {}", Le: "at most {}"}
    return ", ".join(words[each].format(value) for each, value in limits.items())
