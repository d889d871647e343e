"""Prompt sets: what is asked first, what is asked then, and what each prompt wants to see.

A file holds one group a line (JSON Lines):

    {"kind": "colour", "donor": {"prompt": …, "scene": …}, "targets": [{"prompt": …, "scene": …}, …]}

`kind` says in what donor and targets differ. `scene`, which may be absent, is a scene of the shipped model's
world: {"background": …, "things": [{"shape": …, "colour": …, "motion": …, "size": …}, …]}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chorus_rpc.errors import invalid

from models.movingshapes import world
from models.movingshapes.world import Scene, Thing

_KIND: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TABLES: Final = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
}


@dataclass(frozen=True)
class Ask:
    """A prompt, and the scene that it asks for where that is known."""

    prompt: str
    scene: Scene | None = None


@dataclass(frozen=True)
class Group:
    """A donor, and the prompts that may reuse it. `kind`: in what they differ from it."""

    kind: str
    donor: Ask
    targets: tuple[Ask, ...]


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Writes a file that `read_groups` reads."""
    path.write_text("".join(json.dumps(asdict(group)) + "\n" for group in groups), encoding="utf-8")


def read_groups(path: Path) -> list[Group]:
    """The groups of a file; empty lines are none.

    Raises ChorusError (INVALID_FIELD) that names the line at fault, OSError when the file cannot be read.
    """
    groups = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            groups.append(_group(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise invalid("prompts", f"{path}, line {number}: {why}") from None
    if not groups:
        raise invalid("prompts", f"{path} holds no group")
    return groups


def _group(plain: dict[str, Any]) -> Group:
    kind, targets = plain["kind"], plain["targets"]
    if not _KIND.fullmatch(kind) or kind == "all":
        raise ValueError(
            f"kind: must be a lower-case word of at most 32 letters other than all, not {kind!r}"
        )
    if not isinstance(targets, list) or not targets:
        raise ValueError("targets: must be a list of at least one prompt")
    return Group(kind, _ask(plain["donor"]), tuple(_ask(target) for target in targets))


def _ask(plain: dict[str, Any]) -> Ask:
    prompt, scene = plain["prompt"], plain.get("scene")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt: must be a text that is not empty")
    return Ask(prompt, None if scene is None else _scene(scene))


def _scene(plain: dict[str, Any]) -> Scene:
    things = tuple(Thing(**thing) for thing in plain["things"])
    if not 1 <= len(things) <= world.MAX_OBJECTS:
        raise ValueError(f"things: must be 1 to {world.MAX_OBJECTS}, not {len(things)}")
    _check("background", plain["background"], tuple(world.BACKGROUNDS))
    for thing in things:
        for field, known in _TABLES.items():
            _check(field, getattr(thing, field), known)
    return Scene(plain["background"], things)


def _check(field: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{field}: must be one of {', '.join(known)}, not {value!r}")
