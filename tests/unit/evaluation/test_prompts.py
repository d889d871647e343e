"""Tests of prompt sets (building, writing, reading) and of verdicts on videos."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from evaluation.prompts import Group, PromptCase, read_groups, write_groups
from evaluation.scenes import KINDS, Pool, judge, list_differences, make_groups
from models.movingshapes import world
from models.movingshapes.world import Scene, Split, Thing

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
RED = Thing("circle", "red", "left", "small")
BLUE = Thing("square", "blue", "up", "large")
things = st.sampled_from(world.things())
scenes = st.builds(
    Scene,
    st.sampled_from(list(world.BACKGROUNDS)),
    st.one_of(st.tuples(things), st.tuples(things, things)),
)


OF_OBJECTS = ("shape", "colour", "motion", "size")
# Attributes in which donor and target of a kind may differ; for all other kinds the attribute of that name.
DIFFER: dict[str, list[set[str]]] = {
    "unrelated": [{"background", *OF_OBJECTS}],
    "paraphrase": [set()],
    "added": [{"count"}],
    "removed": [{"count"}],
    "two_edits": [{one, other} for one in OF_OBJECTS for other in OF_OBJECTS],
}


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_differ_according_to_their_kind_and_belong_to_the_split(split: Split) -> None:
    groups = make_groups(split, 4 * len(KINDS), 0, "unseen")
    assert Counter(group.kind for group in groups) == dict.fromkeys(KINDS, 4)
    pool = Pool(split, 0)
    for group in groups:
        donor, target = group.donor.scene, group.targets[0].scene
        assert donor is not None
        assert target is not None
        assert donor in pool
        assert target in pool
        assert group.donor.prompt != group.targets[0].prompt
        assert set(list_differences(donor, target)) in DIFFER.get(group.kind, [{group.kind}]), group
    assert {len(g.targets[0].scene.things) for g in groups if g.targets[0].scene} == {1, 2}


def test_added_and_removed_change_one_object_and_keep_the_others() -> None:
    for group in make_groups("train", 4 * len(KINDS), 3, "unseen"):
        donor, target = group.donor.scene, group.targets[0].scene
        assert donor is not None
        assert target is not None
        change = len(target.things) - len(donor.things)
        assert change == {"added": 1, "removed": -1}.get(group.kind, 0)
        if change:
            fewer, more = sorted((donor.things, target.things), key=len)
            assert set(fewer) <= set(more)


def test_two_edits_change_two_attributes_of_one_object_or_of_two() -> None:
    seen = set()
    for i in range(60):
        donor, target = Pool("train", i).pair("two_edits", 1 + i % 2)
        changed = [
            (place, name)
            for place, (a, b) in enumerate(zip(donor.things, target.things, strict=True))
            for name in OF_OBJECTS
            if getattr(a, name) != getattr(b, name)
        ]
        assert len(changed) == 2
        assert donor.background == target.background
        seen.add(len({place for place, _ in changed}))
    assert seen == {1, 2}


def test_pool_contains_only_scenes_of_its_split() -> None:
    test, train = Pool("test", 0), Pool("train", 0)
    assert all(scene in test and scene not in train for scene in world.single_scenes("test"))


def test_edit_changes_the_words_of_only_one_attribute() -> None:
    for group in make_groups("train", 64, 1, "unseen"):
        if group.kind in ("colour", "background", "shape", "size"):
            donor, target = (Counter(case.prompt.split()) for case in (group.donor, group.targets[0]))
            assert sum((donor - target).values()) <= 2, group  # "navy blue", "round shape"


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
        (json.dumps(GOOD | {"donor": {"prompt": "a", "scene": SCENE | {"background": "pink"}}}), "'pink'"),
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
    assert verdict.right["all"] == (donor == target)


@given(scenes)
def test_equal_scenes_have_no_differences(scene: Scene) -> None:
    assert list_differences(scene, scene) == ()


def test_verdict_is_separate_for_each_attribute() -> None:
    target, donor = Scene("navy", (RED,)), Scene("white", (replace(RED, motion="up"),))
    shown = Scene("white", (replace(RED, colour="cyan"),))
    verdict = judge(shown, target, donor)
    assert verdict.followed == {"background": True, "motion": False}
    wrong = {name for name, right in verdict.right.items() if not right}
    assert wrong == {"background", "colour", "all"}


def test_scenes_with_different_numbers_of_objects_compare_only_count_and_background() -> None:
    assert list_differences(Scene("navy", (RED, BLUE)), Scene("white", (RED,))) == ("background", "count")
    assert judge(Scene("navy", (RED, BLUE)), Scene("navy", (RED,)), Scene("navy", (RED, BLUE))).followed == {
        "count": True
    }
