"""Writes docs/settings.md from the settings classes: names, bounds and defaults as the code has them.

python docs/make_settings.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from services.cache.settings import CacheSettings
from services.denoiser.settings import DenoiserSettings
from services.embedder.settings import EmbedderSettings
from services.runtime.settings import ServerSettings
from services.scheduler.settings import SchedulerSettings

SERVICES = (SchedulerSettings, EmbedderSettings, CacheSettings, DenoiserSettings)
ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every setting is an environment variable, checked at start: a wrong one ends the process with status 2 and a
line that names it. This page is written from the code by `docs/make_settings.py`.

Tracing takes OpenTelemetry's own `OTEL_*` variables: see [tracing.md](tracing.md).
"""


def comments(kind: type[ServerSettings]) -> dict[str, str]:
    """The comment above each field of a class, by name; a field without one inherits nothing."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# "))
            continue
        if match := re.match(r"    (\w+): ", line):
            found[match[1]] = " ".join(above)
        if text:
            above = []
    return found


def bounds(field: FieldInfo) -> str:
    words = {Ge: "≥ {}", Gt: "> {}", Le: "≤ {}", Lt: "< {}"}
    limits = [words[type(m)].format(f"{_value(m)}") for m in field.metadata if type(m) in words]
    lengths = [
        f"{'at least' if isinstance(m, MinLen) else 'at most'} {_value(m)} long"
        for m in field.metadata
        if isinstance(m, MinLen | MaxLen)
    ]
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    return ", ".join([*limits, *lengths]) or ", ".join(str(choice) for choice in choices)


def _value(metadata: Any) -> Any:
    return getattr(metadata, next(iter(metadata.__dataclass_fields__)))


def default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        return ", ".join(default(item) for item in value)
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)  # what ships with the code
    if hasattr(value, "kind"):  # an encoder
        return f"`{value.kind}`"
    return f"`{value}`" if value not in ("", None) else "empty"


def table(kind: type[ServerSettings], names: list[str], prefix: str) -> str:
    told = {**comments(ServerSettings), **comments(kind)}
    rows = ["| variable | default | bound | |", "|---|---|---|---|"]
    for name in names:
        field = kind.model_fields[name]
        cells = (f"`{prefix}{name.upper()}`", default(field.default), bounds(field), told.get(name, ""))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def page() -> str:
    shared = list(ServerSettings.model_fields)
    parts = [
        HEAD,
        "## Every service\n\nWith `SERVICE` one of "
        + ", ".join(f"`{_name(kind).upper()}`" for kind in SERVICES)
        + ". Default ports: "
        + ", ".join(f"{_name(kind)} {kind.model_fields['port'].default}" for kind in SERVICES)
        + ".\n",
        table(ServerSettings, shared, "CHORUS_SERVICE_"),
    ]
    for kind in SERVICES:
        own = [name for name in kind.model_fields if name not in shared or _differs(kind, name)]
        parts += [
            f"\n## {_name(kind).capitalize()}\n",
            table(kind, own, str(kind.model_config["env_prefix"])),
        ]
    return "\n".join(parts) + "\n"


def _differs(kind: type[ServerSettings], name: str) -> bool:
    """Whether a setting of every service has a default of its own here; ports are listed above."""
    return name != "port" and kind.model_fields[name].default != ServerSettings.model_fields[name].default


def _name(kind: type[ServerSettings]) -> str:
    return kind.__name__.removesuffix("Settings").lower()


if __name__ == "__main__":
    PAGE.write_text(page())
