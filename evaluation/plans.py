"""Parser for named plans of the command line: `--plan "deep=reuse_steps:2,region_end:4,region:probe"`."""

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
        name, equals, spec = text.partition("=")
        if not equals:
            raise invalid("plan", f"must be NAME=SPEC, such as deep=reuse_steps:2, not {text!r}")
        if not _NAME.fullmatch(name):
            raise invalid(
                "plan",
                f"its name must be 1 to 32 characters of a–z, 0–9 and '-', a letter first, not {name!r}",
            )
        if name in reserved or name in plans:
            raise invalid("plan", f"the name {name!r} is already in use")
        try:
            plans[name] = parse_plan(spec)
        except ChorusError as error:
            raise invalid("plan", f"{name}: {error.message}") from None
    return plans
