"""Tests that the shipped weights generate videos that match their prompts."""

from pathlib import Path

import pytest
import torch

from models.movingshapes.analyzer import compare, read_scene
from models.movingshapes.evaluate import STUDENT, TEACHER, generate
from models.movingshapes.world import Scene, Thing
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import load_spec
from services.embedder.encoders import MiniLMEncoder

CASES = {
    "a large red circle moving left on a navy background": Scene(
        "navy", (Thing("circle", "red", "left", "large"),)
    ),
    "on a white background, a huge blue box rises": Scene("white", (Thing("square", "blue", "up", "large"),)),
    "the large triangle in green stands still; the background is black": Scene(
        "black", (Thing("triangle", "green", "still", "large"),)
    ),
    "gray backdrop, a big yellow disc sliding right": Scene(
        "gray", (Thing("circle", "yellow", "right", "large"),)
    ),
    "a tiny orange ball falls in front of a brown background": Scene(
        "brown", (Thing("circle", "orange", "down", "small"),)
    ),
    "a small red circle moving left and a large blue square moving up on a navy background": Scene(
        "navy", (Thing("circle", "red", "left", "small"), Thing("square", "blue", "up", "large"))
    ),
    "a large green triangle standing still and a big purple circle moving down on a white background": Scene(
        "white", (Thing("triangle", "green", "still", "large"), Thing("circle", "purple", "down", "large"))
    ),
}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel.load(STUDENT)


@pytest.fixture(scope="module")
def states(model: LoadedModel) -> dict[str, torch.Tensor]:
    encoder = MiniLMEncoder()
    assert encoder.id == model.spec.text.encoder_id
    return {p: torch.from_numpy(e.states) for p, e in zip(CASES, encoder.encode(list(CASES)), strict=True)}


@pytest.mark.parametrize("prompt", CASES)
def test_video_matches_its_prompt(model: LoadedModel, states: dict[str, torch.Tensor], prompt: str) -> None:
    right = compare(read_scene(generate(model, states[prompt], seed=1)), CASES[prompt])
    assert [field for field, holds in right.items() if not holds] == []


def test_video_depends_on_the_seed(model: LoadedModel, states: dict[str, torch.Tensor]) -> None:
    text = next(iter(states.values()))
    first = generate(model, text, seed=1)
    assert torch.equal(first, generate(model, text, seed=1))
    assert not torch.equal(first, generate(model, text, seed=2))


def test_teacher_and_student_share_their_architecture() -> None:
    student, teacher = load_spec(STUDENT), load_spec(TEACHER)
    assert student.transformer == teacher.transformer
    assert (len(student.schedule.sigmas), len(teacher.schedule.sigmas)) == (5, 31)
    assert student.weights.sha256 != teacher.weights.sha256
    sizes = [(Path(STUDENT).parent / str(s.weights.file)).stat().st_size for s in (student, teacher)]
    assert sum(sizes) < 16e6
