"""Builds prompt sets from the shipped model's world, and compares videos with the scenes requested."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeVar, cast

from evaluation.prompts import Group, PromptCase
from models.shapes import captions
from models.shapes.captions import caption
from models.shapes.edits import EDITS, Edit, draw_edit
from models.shapes.world import Scene, Split, draw_scene
from models.shapes.yardstick.comparison import OBJECT_FIELDS, compare

T = TypeVar("T", covariant=True)

# Sentence patterns of training; patterns that training never used; the same with words that it never used.
Phrasing = Literal["seen", "unseen", "unseen-words"]

# Differences between donor and target: an attribute of one object or of the background, or one object more or
# less (`count`).
SINGLE_EDITS: Final[tuple[str, ...]] = EDITS
# Further kinds: two of these edits; everything; or only the wording.
TWO_EDITS: Final = "two_edits"
UNRELATED: Final = "unrelated"
PARAPHRASE: Final = "paraphrase"
KINDS: Final = (*SINGLE_EDITS, TWO_EDITS, UNRELATED, PARAPHRASE)
_SCENE_ATTEMPTS: Final = 10_000
_CAPTION_ATTEMPTS: Final = 60


@dataclass(frozen=True)
class Verdict:
    """Comparison of a video with the scenes that target and donor requested.

    Attributes:
        right: Attribute, or `all` → whether the video matches the target's prompt.
        followed: Attribute in which donor and target differ → whether the video matches the *donor's* prompt.
    """

    right: dict[str, bool] = field(default_factory=dict)
    followed: dict[str, bool] = field(default_factory=dict)


def judge(shown: Scene, target: Scene, donor: Scene) -> Verdict:
    """Compares the scene that a video shows with the target's scene and with the donor's."""
    like_donor = compare(shown, donor)
    return Verdict(
        compare(shown, target), {name: like_donor[name] for name in list_differences(donor, target)}
    )


def list_differences(donor: Scene, target: Scene) -> tuple[str, ...]:
    """Returns the attributes in which two scenes differ, those of objects only if their numbers are equal.

    A place counts only if both scenes name one: a video that keeps the donor's place where the target leaves
    it open does what was requested.
    """
    same = compare(target, donor)
    same["place"] = same["place"] or compare(donor, target)["place"]
    comparable = OBJECT_FIELDS if len(donor.things) == len(target.things) else ()
    return tuple(name for name in ("background", "texture", "count", *comparable) if not same[name])


def draw_pair(kind: str, split: Split, rng: random.Random, objects: int) -> tuple[Scene, Scene]:
    """Draws a donor of a number of objects, and a target that differs from it as `kind` says.

    Raises ValueError if the split contains no such pair.
    """
    for _ in range(_SCENE_ATTEMPTS):
        donor = draw_scene(split, rng, objects)
        target = _draw_target(donor, kind, split, rng)
        if target is not None:
            return donor, target
    raise ValueError(f"the split {split} has no two scenes of {objects} objects that differ in {kind}")


def _draw_target(donor: Scene, kind: str, split: Split, rng: random.Random) -> Scene | None:
    if kind == PARAPHRASE:
        return donor
    if kind == UNRELATED:
        other = draw_scene(split, rng, len(donor.things))
        return other if _differ_in_everything(donor, other) else None
    if kind == TWO_EDITS:
        first, second = rng.sample(EDITS, 2)
        edited = draw_edit(donor, first, split, rng)
        return None if edited is None else draw_edit(edited, second, split, rng)
    return draw_edit(donor, cast(Edit, kind), split, rng)


def _differ_in_everything(one: Scene, other: Scene) -> bool:
    """Returns whether scenes of equal numbers of objects differ in every attribute but the places."""
    fields = ("shape", "colour", "motion", "size")
    in_order = all(
        getattr(a, name) != getattr(b, name)
        for a, b in zip(one.things, other.things, strict=True)
        for name in fields
    )
    return in_order and {"background", "texture", *fields} <= set(list_differences(one, other))


def make_groups(split: Split, pairs: int, seed: int, phrasing: Phrasing) -> list[Group]:
    """Builds pairs of a donor and a target, cycling through all kinds of edits and one and two objects.

    The two prompts differ only in the words for what was edited, except in paraphrases and unrelated pairs.
    The same arguments return the same groups. Raises ValueError if the split has no pair of some kind.
    """
    rng = random.Random(seed)
    groups = []
    for number in range(pairs):
        kind = KINDS[number % len(KINDS)]
        donor, target = draw_pair(kind, split, rng, objects=1 + number // len(KINDS) % 2)
        groups.append(Group(kind, *_write_prompts(kind, donor, target, rng, phrasing)))
    return groups


def write_prompt(scene: Scene, rng: random.Random, phrasing: Phrasing) -> str:
    """Draws one phrasing of a scene that names every attribute."""
    pattern: captions.Phrasing = "seen" if phrasing == "seen" else "unseen"
    return caption(scene, rng, pattern, unseen_words=phrasing == "unseen-words")


def _write_prompts(
    kind: str, donor: Scene, target: Scene, rng: random.Random, phrasing: Phrasing
) -> tuple[PromptCase, tuple[PromptCase]]:
    """Writes both prompts; of an edit, those of some draws that differ in the fewest places."""
    same_wording = kind not in (PARAPHRASE, UNRELATED)
    best: tuple[int, str, str] | None = None
    for _ in range(_CAPTION_ATTEMPTS):
        seed = rng.getrandbits(32)
        other = seed if same_wording else rng.getrandbits(32)
        first = write_prompt(donor, _OneDraw(seed), phrasing)
        then = write_prompt(target, _OneDraw(other), phrasing)
        if first == then:
            continue
        changes = count_changes(first, then)
        if best is None or changes < best[0]:
            best = changes, first, then
        if not same_wording or changes == (2 if kind == TWO_EDITS else 1):
            break
    if best is None:
        raise ValueError(f"no two different prompts of an edit of {kind} were drawn")
    return PromptCase(best[1], donor), (PromptCase(best[2], target),)


def count_changes(one: str, other: str) -> int:
    """Counts the places at which two prompts differ, in words."""
    matcher = difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False)
    return sum(tag != "equal" for tag, *_ in matcher.get_opcodes())


class _Indexable(Protocol[T]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T: ...


class _OneDraw(random.Random):
    """Consumes exactly one random number for every choice, with any number of options.

    So the captions of two scenes that differ in one attribute mostly differ only in the words for it.
    """

    def choice(self, seq: _Indexable[T]) -> T:
        return seq[int(self.random() * len(seq))]
