"""Parsers for named plans and rivals of the command line.

`--plan "deep=reuse_steps:2,region_end:4,region:probe"`, `--rival one-step=my-model`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from chorus_client import ChorusError, ExplicitReuse, parse_plan
from chorus_rpc.errors import invalid

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


def parse_named_plans(texts: Iterable[str], reserved: Collection[str]) -> dict[str, ExplicitReuse]:
    """Parses texts of the form "NAME=SPEC" into plans by name. `chorus_client.parse_plan` defines SPEC.

    Args:
        reserved: Names that have another meaning and are rejected.

    Raises ChorusError (INVALID_FIELD) that names the plan.
    """
    plans: dict[str, ExplicitReuse] = {}
    for text in texts:
        name, spec = _split_name("plan", text, "SPEC, such as deep=reuse_steps:2", {*reserved, *plans})
        try:
            plans[name] = parse_plan(spec)
        except ChorusError as error:
            raise invalid("plan", f"{name}: {error.message}") from None
    return plans


def parse_rivals(texts: Iterable[str], reserved: Collection[str]) -> dict[str, str]:
    """Parses texts of the form "NAME=MODEL" into model ids by name.

    Raises ChorusError (INVALID_FIELD) that names the rival.
    """
    rivals: dict[str, str] = {}
    for text in texts:
        name, model = _split_name("rival", text, "MODEL, such as one-step=my-model", {*reserved, *rivals})
        if not model:
            raise invalid("rival", f"{name}: the id of its model must not be empty")
        rivals[name] = model
    return rivals


def _split_name(option: str, text: str, form: str, taken: Collection[str]) -> tuple[str, str]:
    """Splits "NAME=VALUE" and checks the name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise invalid(option, f"must be NAME={form}, not {text!r}")
    if not _NAME.fullmatch(name):
        raise invalid(
            option, f"its name must be 1 to 32 characters of a–z, 0–9 and '-', a letter first, not {name!r}"
        )
    if name in taken:
        raise invalid(option, f"the name {name!r} is already in use")
    return name, value
