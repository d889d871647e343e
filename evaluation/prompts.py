"""Prompt sets: groups of a donor and its targets, with the scene that each prompt requests.

A file holds one group per line (JSON Lines):

    {"kind": "colour", "donor": {"prompt": …, "scene": …}, "targets": [{"prompt": …, "scene": …}, …]}

`kind` names the difference between donor and targets. The optional `scene` is a scene of the shipped model's
world; without a `place`, the prompt leaves it open:

    {"background": …, "texture": …,
     "things": [{"shape": …, "colour": …, "motion": …, "size": …, "place": …}, …]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chorus_rpc.errors import invalid

from models.shapes import world
from models.shapes.world import Scene, Thing

# Names of rows that summarise several kinds.
ALL_KINDS: Final = "all"
OPENING: Final = "opening"
_KIND: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TABLES: Final[dict[str, tuple[str | None, ...]]] = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
    "place": (*world.PLACES, None),
}


@dataclass(frozen=True)
class PromptCase:
    """A prompt and the scene that it requests, if known."""

    prompt: str
    scene: Scene | None = None


@dataclass(frozen=True)
class Group:
    """A donor and the targets that may reuse it.

    Attributes:
        kind: Difference between donor and targets: a lower-case word.
        donor: Prompt that is generated first and stored.
        targets: Prompts that are generated afterwards and not stored.
    """

    kind: str
    donor: PromptCase
    targets: tuple[PromptCase, ...]


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Writes groups as JSON Lines, in the format of `read_groups`."""
    path.write_text("".join(json.dumps(asdict(group)) + "\n" for group in groups), encoding="utf-8")


def read_groups(path: Path) -> list[Group]:
    """Reads the groups of a file and ignores empty lines.

    Raises ChorusError (INVALID_FIELD) that names the invalid line, OSError when the file cannot be read.
    """
    groups = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            groups.append(_parse_group(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise invalid("prompts", f"{path}, line {number}: {reason}") from None
    if not groups:
        raise invalid("prompts", f"{path} contains no group")
    return groups


def _parse_group(plain: dict[str, Any]) -> Group:
    kind, targets = plain["kind"], plain["targets"]
    if not _KIND.fullmatch(kind) or kind in (ALL_KINDS, OPENING):
        raise ValueError(
            "kind: must be a lower-case word of at most 32 letters other than "
            f"{ALL_KINDS} and {OPENING}, not {kind!r}"
        )
    if not isinstance(targets, list) or not targets:
        raise ValueError("targets: must be a list of at least one prompt")
    return Group(kind, _parse_case(plain["donor"]), tuple(_parse_case(target) for target in targets))


def _parse_case(plain: dict[str, Any]) -> PromptCase:
    prompt, scene = plain["prompt"], plain.get("scene")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt: must be a non-empty string")
    return PromptCase(prompt, None if scene is None else _parse_scene(scene))


def _parse_scene(plain: dict[str, Any]) -> Scene:
    things = tuple(Thing(**thing) for thing in plain["things"])
    if not 1 <= len(things) <= world.MAX_OBJECTS:
        raise ValueError(f"things: must be 1 to {world.MAX_OBJECTS}, not {len(things)}")
    _check_choice("background", plain["background"], tuple(world.COLOURS))
    _check_choice("texture", plain["texture"], world.TEXTURES)
    for thing in things:
        for field, known in _TABLES.items():
            _check_choice(field, getattr(thing, field), known)
    return Scene(plain["background"], plain["texture"], things)


def _check_choice(field: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{field}: must be one of {', '.join(map(str, known))}, not {value!r}")
