"""Verifies pairs of prompts: made from a list, or read from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chorus_rpc.errors import ChorusError

from calibration.pairs import describe_change, load_pairs, make_pairs

PROMPTS = [
    "A red car drives slowly along a road at sunset, cinematic lighting.",
    "a small dog runs to the left on a beach",
    "two large balloons rise up over a city, aerial view",
    "a white cat sleeps on a striped sofa, in the upper left a clock",
]


def test_made_pairs_differ_as_their_kind_says() -> None:
    groups = make_pairs(PROMPTS, 40, seed=3)
    assert len(groups) == 40
    assert groups == make_pairs(PROMPTS, 40, seed=3)
    pairs = {(group.donor.prompt, group.targets[0].prompt) for group in groups}
    assert len(pairs) == 40
    kinds = {group.kind for group in groups}
    assert kinds >= {"colour", "size", "motion", "number", "texture", "place", "background"}
    assert kinds >= {"style", "camera", "mood", "thing", "removed", "same"}
    for group in groups:
        assert group.donor.prompt in PROMPTS
        assert (group.kind == "same") == (group.donor.prompt == group.targets[0].prompt)
    [swapped] = [g for g in groups if g.kind == "motion" and g.donor.prompt == PROMPTS[1]]
    assert describe_change(swapped) == "left -> right"


def test_fewer_pairs_are_made_if_the_prompts_allow_no_more() -> None:
    groups = make_pairs(["a red car", "a tall tree"], 10_000, seed=1)
    assert 10 < len(groups) < 100


def test_first_letter_keeps_its_case() -> None:
    groups = make_pairs(["Red cars race", "Blue boats sail"], 30, seed=1)
    changed = {g.targets[0].prompt.split()[0] for g in groups if g.kind == "colour"}
    assert all(word[0].isupper() for word in changed)


def test_prompts_are_read_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["", *PROMPTS, PROMPTS[0], ""]))
    assert load_pairs(file, 12, seed=2) == make_pairs(PROMPTS, 12, seed=2)


def test_pairs_of_a_file_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    targets = [{"prompt": "a blue car"}, {"prompt": "a green car"}]
    line = {"kind": "colour", "donor": {"prompt": "a red car"}, "targets": targets}
    file.write_text(json.dumps(line) + "\n")
    groups = load_pairs(file, 10, seed=0)
    assert [group.targets[0].prompt for group in groups] == ["a blue car", "a green car"]
    assert len(load_pairs(file, 1, seed=0)) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [("one prompt", "2 to 100000 different prompts"), (f"fine\n{'x' * 9000}", "line 2: must have 1 to 8192")],
)
def test_unusable_prompts_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(ChorusError, match=fault):
        load_pairs(file, 10, seed=0)
