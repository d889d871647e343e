"""Verifies that unrelated prompts in languages that the lexicon does not know are never reused."""

from __future__ import annotations

import pytest

from bench.align import classify_pairs
from bench.languages import LANGUAGES
from evaluation.scenes import KINDS, UNRELATED, make_groups
from services.embedder.encoders import MiniLMEncoder
from services.scheduler.planning.edits import NEVER_REUSED

PAIRS = 12


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    return MiniLMEncoder()


@pytest.mark.parametrize("name", LANGUAGES)
def test_unrelated_prompts_are_never_reused(encoder: MiniLMEncoder, name: str) -> None:
    groups = make_groups("calibration", PAIRS * len(KINDS), 5, "seen")
    caption = LANGUAGES[name].caption
    scenes = [(g.donor.scene, g.targets[0].scene) for g in groups if g.kind == UNRELATED]
    pairs = [(caption(donor), caption(target)) for donor, target in scenes if donor and target]
    assert len(pairs) == PAIRS
    assert set(classify_pairs(encoder, pairs)) <= NEVER_REUSED
