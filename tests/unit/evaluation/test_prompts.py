"""Tests of prompt sets (building, writing, reading) and of verdicts on videos."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from evaluation.prompts import Group, PromptCase, read_groups, write_groups
from evaluation.scenes import (
    KINDS,
    SINGLE_EDITS,
    Phrasing,
    count_changes,
    draw_pair,
    judge,
    list_differences,
    make_groups,
)
from models.shapes import world
from models.shapes.world import Scene, Split, Thing, combination, find_split

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
RED = Thing("circle", "red", "left", "small")
BLUE = Thing("square", "blue", "up", "large")
things = st.builds(
    Thing,
    *(
        st.sampled_from(list(values))
        for values in (world.SHAPES, world.COLOURS, world.MOTIONS, world.SIZES, [*world.PLACES, None])
    ),
)
scenes = st.builds(
    Scene,
    st.sampled_from(list(world.COLOURS)),
    st.sampled_from(world.TEXTURES),
    st.one_of(st.tuples(things), st.tuples(things, things)),
)

OF_OBJECTS = ("shape", "colour", "motion", "size")


def scenes_of(group: Group) -> tuple[Scene, Scene]:
    donor, target = group.donor.scene, group.targets[0].scene
    assert donor is not None
    assert target is not None
    return donor, target


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_differ_according_to_their_kind_and_belong_to_the_split(split: Split) -> None:
    groups = make_groups(split, 4 * len(KINDS), 0, "unseen")
    assert Counter(group.kind for group in groups) == dict.fromkeys(KINDS, 4)
    for group in groups:
        donor, target = scenes_of(group)
        for scene in (donor, target):
            assert all(find_split(combination(scene, thing)) == split for thing in scene.things)
        assert group.donor.prompt != group.targets[0].prompt
        differences = set(list_differences(donor, target))
        if group.kind in SINGLE_EDITS:
            assert differences <= {group.kind}
            assert donor != target
        elif group.kind == "unrelated":
            assert differences >= {"background", "texture", *OF_OBJECTS}
        elif group.kind == "paraphrase":
            assert donor == target
    assert {len(g.targets[0].scene.things) for g in groups if g.targets[0].scene} == {1, 2}


def test_count_adds_or_removes_one_object_and_keeps_the_others() -> None:
    changes = set()
    for group in make_groups("train", 4 * len(KINDS), 3, "unseen"):
        donor, target = scenes_of(group)
        if group.kind == "count":
            changes.add(len(target.things) - len(donor.things))
            fewer, more = sorted((donor.things, target.things), key=len)
            assert set(fewer) <= set(more)
    assert changes == {-1, 1}


def test_two_edits_differ_in_two_places() -> None:
    for seed in range(20):
        donor, target = draw_pair("two_edits", "train", random.Random(seed), 1 + seed % 2)
        assert donor != target


@pytest.mark.parametrize("phrasing", ["seen", "unseen", "unseen-words"])
def test_edit_changes_the_words_in_one_place(phrasing: Phrasing) -> None:
    changes = {kind: [0] for kind in SINGLE_EDITS}
    for group in make_groups("train", 4 * len(KINDS), 1, phrasing):
        if group.kind in SINGLE_EDITS:
            changes[group.kind].append(count_changes(group.donor.prompt, group.targets[0].prompt))
    for kind in ("colour", "background", "shape", "size", "motion", "texture"):
        assert max(changes[kind]) == 1, kind
    assert sum(changes["place"]) <= 6
    assert sum(changes["count"]) <= 8


def test_kind_that_no_split_contains_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.scenes._SCENE_ATTEMPTS", 3)
    monkeypatch.setattr("evaluation.scenes.draw_edit", lambda *_: None)
    with pytest.raises(ValueError, match="no two scenes of 1 objects that differ in size"):
        draw_pair("size", "test", random.Random(0), 1)


def test_same_seed_builds_the_same_set() -> None:
    assert make_groups("test", 16, 7, "seen") == make_groups("test", 16, 7, "seen")
    assert make_groups("test", 16, 7, "seen") != make_groups("test", 16, 8, "seen")


def test_written_groups_are_read_back(tmp_path: Path) -> None:
    groups = [
        *make_groups("test", 16, 0, "seen"),
        Group("style", PromptCase("a cat"), (PromptCase("a dog"), PromptCase("a cow"))),
    ]
    write_groups(tmp_path / "set.jsonl", groups)
    assert read_groups(tmp_path / "set.jsonl") == groups


GOOD = {"kind": "colour", "donor": {"prompt": "a"}, "targets": [{"prompt": "b"}]}
SCENE = {
    "background": "navy",
    "texture": "striped",
    "things": [{"shape": "circle", "colour": "red", "motion": "up", "size": "small"}],
}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        (json.dumps(GOOD | {"kind": "A b"}), "kind"),
        (json.dumps({"kind": "colour", "donor": {"prompt": "a"}}), "'targets' is missing"),
        (json.dumps(GOOD | {"targets": []}), "at least one"),
        (json.dumps(GOOD | {"donor": {"prompt": " "}}), "non-empty"),
        (json.dumps(GOOD | {"donor": {"prompt": "a", "scene": SCENE | {"background": "puce"}}}), "'puce'"),
        (json.dumps(GOOD | {"donor": {"prompt": "a", "scene": SCENE | {"texture": "wavy"}}}), "'wavy'"),
        (json.dumps(GOOD | {"kind": "opening"}), "other than all and opening"),
        (json.dumps(GOOD | {"donor": {"prompt": "a", "scene": SCENE | {"things": []}}}), "1 to 2"),
        (
            json.dumps(GOOD | {"donor": {"prompt": "a", "scene": SCENE | {"things": [{"shape": "x"}]}}}),
            "colour",
        ),
    ],
)
def test_invalid_line_is_reported_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ChorusError) as caught:
        read_groups(path)
    assert "line 2" in caught.value.violations[0].description
    assert words in caught.value.violations[0].description


def test_empty_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("\n")
    with pytest.raises(ChorusError, match="no group"):
        read_groups(tmp_path / "set.jsonl")


@given(scenes, scenes)
def test_video_of_the_target_is_right_and_follows_no_donor(donor: Scene, target: Scene) -> None:
    verdict = judge(target, target, donor)
    assert all(verdict.right.values())
    assert not any(verdict.followed.values())


@given(scenes, scenes)
def test_video_of_the_donor_follows_it_in_every_difference(donor: Scene, target: Scene) -> None:
    verdict = judge(donor, target, donor)
    assert tuple(verdict.followed) == list_differences(donor, target)
    assert all(verdict.followed.values())
    if donor == target:
        assert verdict.right["all"]


@given(scenes)
def test_equal_scenes_have_no_differences(scene: Scene) -> None:
    assert list_differences(scene, scene) == ()


def test_verdict_is_separate_for_each_attribute() -> None:
    target, donor = Scene("navy", "plain", (RED,)), Scene("white", "dotted", (replace(RED, motion="up"),))
    shown = Scene("white", "plain", (replace(RED, colour="cyan"),))
    verdict = judge(shown, target, donor)
    assert verdict.followed == {"background": True, "texture": False, "motion": False}
    wrong = {name for name, right in verdict.right.items() if not right}
    assert wrong == {"background", "colour", "all"}


def test_places_differ_only_if_both_scenes_name_one() -> None:
    left, right, free = (
        Scene("navy", "plain", (replace(RED, place=p),)) for p in ("upper left", "upper right", None)
    )
    assert list_differences(left, right) == ("place",)
    assert list_differences(left, free) == list_differences(free, left) == ()
    assert judge(left, right, left).followed == {"place": True}


def test_scenes_with_different_numbers_of_objects_compare_count_and_background() -> None:
    one, two = Scene("navy", "plain", (RED,)), Scene("navy", "plain", (RED, BLUE))
    assert list_differences(two, replace(one, background="white")) == ("background", "count")
    assert judge(two, one, two).followed == {"count": True}
