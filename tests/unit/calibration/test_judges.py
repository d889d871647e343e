"""Verifies judges of videos."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chorus_rpc.errors import ChorusError

from calibration.judges import Case, ClipJudge, CommandJudge, ReferenceJudge, WorldJudge, parse_judge
from calibration.judges.base import Shown, combine
from calibration.rows import Score
from evaluation.pixels import Video
from evaluation.prompts import PromptCase
from tests.tiny_encoders import save_image_clip

FRAMES, SIDE = 4, 24


def show(video: Video) -> Shown:
    return Shown(b"mp4", video.astype(np.float32))


def draw(left: float, right: float) -> Video:
    """Returns a video with a brightness on each half."""
    video = np.full((FRAMES, SIDE, SIDE, 3), left, dtype=np.float32)
    video[:, :, SIDE // 2 :] = right
    return video


DONOR, FULL = draw(20, 200), draw(20, 90)  # the edit changes the right half
CASE = Case(PromptCase("a blue car"), PromptCase("a red car"), show(FULL), show(DONOR), show(FULL))


@pytest.mark.parametrize(
    ("video", "alignment", "layout"),
    [
        (FULL, 1.0, 1.0),
        (DONOR, 0.0, 1.0),
        (draw(20, 110), 1.0, 1.0),  # nearer to the full computation
        (draw(20, 180), 0.0, 1.0),
        (draw(120, 90), 1.0, 0.0),  # the other half is not the donor's
    ],
)
def test_reference_judge_finds_which_video_is_nearer_where_the_edit_shows(
    video: Video, alignment: float, layout: float
) -> None:
    score = ReferenceJudge().judge(replace(CASE, shown=show(video)))
    assert score.alignment == pytest.approx(alignment, abs=0.1)
    assert score.alignment + score.donor == pytest.approx(1)
    assert score.layout == pytest.approx(layout, abs=0.1)


def test_reference_judge_compares_with_the_full_computation_if_the_edit_shows_nowhere() -> None:
    same = replace(CASE, shown_donor=show(FULL))
    assert ReferenceJudge().judge(same) == Score(1.0, 0.0, layout=1.0)
    assert ReferenceJudge().judge(replace(same, shown=show(draw(200, 90)))).alignment < 0.6


def test_world_judge_reads_nothing_outside_the_world() -> None:
    assert WorldJudge().judge(CASE) is None


def test_worst_of_several_judges_counts() -> None:
    assert combine([Score(0.9, 0.1, 0.0, 0.8), Score(0.5, 0.0, 0.02, 0.0)]) == Score(0.5, 0.1, 0.02, 0.8)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], CommandJudge]:
    def write(body: str) -> CommandJudge:
        file = tmp_path / "judge with space.py"
        file.write_text(f"import json, sys\nrequest = json.load(sys.stdin)\n{body}")
        return CommandJudge(f"{sys.executable} '{file}'")

    return write


def test_command_judges_the_mp4_that_it_is_given(script: Callable[[str], CommandJudge]) -> None:
    judge = script(
        "paths = sys.argv[1], request['donor_video'], request['full_video']\n"
        "assert [open(path, 'rb').read() for path in paths] == [b'mp4'] * 3\n"
        "assert (request['prompt'], request['donor_prompt']) == ('a blue car', 'a red car')\n"
        "print(json.dumps({'alignment': 0.75, 'donor': 0.25, 'artefacts': 0.01}))"
    )
    assert judge.judge(CASE) == Score(0.75, 0.25, 0.01)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("print('fine')", "must print one JSON object, not 'fine'"),
        ("print('{}')", "must print an object with alignment and donor"),
        ("print(json.dumps({'alignment': 2, 'donor': 0}))", "alignment must be 0 to 1, not 2"),
        ("print(json.dumps({'alignment': float('nan'), 'donor': 0}))", "alignment must be 0 to 1, not nan"),
        ("print(json.dumps({'alignment': 1, 'donor': 0, 'taste': 1}))", "must print an object with"),
        ("sys.exit('no model')", "ended with status 1: no model"),
    ],
)
def test_fault_of_a_command_is_named(script: Callable[[str], CommandJudge], body: str, fault: str) -> None:
    with pytest.raises(ChorusError, match=fault):
        script(body).judge(CASE)


def test_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(ChorusError, match="cannot be run"):
        CommandJudge("/no/such/judge").judge(CASE)


@pytest.mark.parametrize("text", ["", "taste", "world:x", "clip", "clip:", "command:", "command: "])
def test_unknown_judge_is_refused(text: str) -> None:
    with pytest.raises(ChorusError, match=r"reference\|world\|clip:FOLDER\|command:COMMAND"):
        parse_judge(text)


def test_folder_without_a_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChorusError, match=r"holds no model\.safetensors"):
        parse_judge(f"clip:{tmp_path}")


def test_clip_judge_compares_both_prompts(tmp_path: Path) -> None:
    save_image_clip(tmp_path)
    judge = ClipJudge(tmp_path)
    score = judge.judge(CASE)
    assert 0 < score.alignment < 1
    assert score.alignment + score.donor == pytest.approx(1)
    swapped = replace(CASE, target=CASE.donor, donor=CASE.target)
    assert judge.judge(swapped).alignment == pytest.approx(score.donor, abs=1e-5)
    assert judge.judge(replace(CASE, donor=CASE.target)) == Score(1.0, 0.0)
    assert judge.name == ClipJudge(tmp_path).name
