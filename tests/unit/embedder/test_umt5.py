"""Verifies Wan's text encoder against its pipeline: cleaned prompts and token states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan import pipeline_wan
from hypothesis import given
from hypothesis import strategies as st

from bench.checkpoints import save_wan_pipeline
from services.embedder.encoders import UMT5Encoder
from services.embedder.encoders.cleaning import clean_prompt, map_to_prompt

prompt_clean: Callable[[str], str] = pipeline_wan.prompt_clean

# Usual prompts, and distortions by keyboards, web pages and wrong decoding.
PROMPTS = [
    "a red circle moves right",
    "  a  small\tgreen square \n runs   left ",
    "a cat’s “red” toy",
    "cats &amp; dogs",
    "1 &lt; 2, &amp;lt; too",
    "a&nbsp;cat runs",
    "&nbsp;",
    "a sentÃªnce read in the wrong code",
    "ﬁve ｄｏｇｓ",
    "cafe\u0301 \x00 noir",
]
PIECES = st.sampled_from([*"ab <>&;’“é\t\n\x00ﬁÃª", "&amp;", "&nbsp;", "&lt;", "red", "cat", " "])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_cleaned_as_the_pipeline_does(prompt: str) -> None:
    assert clean_prompt(prompt) == prompt_clean(prompt)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_every_character_maps_into_the_prompt(prompt: str) -> None:
    cleaned = clean_prompt(prompt)
    assert cleaned == prompt_clean(prompt)
    found = map_to_prompt(prompt, cleaned)
    assert len(found) == len(cleaned)
    assert all(0 <= start <= end <= len(prompt) for start, end in found)
    words = [place for place, letter in zip(found, cleaned, strict=True) if letter != " "]
    assert words == sorted(words)


@given(
    st.lists(st.tuples(st.sampled_from(["red", "a", "cat's", "&"]), st.sampled_from([" ", " \t", "\n\n"])))
)
def test_unchanged_words_keep_their_ranges(parts: list[tuple[str, str]]) -> None:
    prompt = " " + "".join(word + space for word, space in parts)
    cleaned = clean_prompt(prompt)
    for letter, (start, end) in zip(cleaned, map_to_prompt(prompt, cleaned), strict=True):
        assert prompt[start:end] == letter or (letter == " " and prompt[start:end].isspace())


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        ("the  cat’s  toy", {"the": "the", "cat's": "cat’s", "toy": "toy"}),
        ("cats &amp; red dogs", {"cats": "cats", "&": "&amp;", "red": "red", "dogs": "dogs"}),
        ("one a&nbsp;cat runs", {"one": "one", "a": "a&nbsp;cat", "cat": "a&nbsp;cat", "runs": "runs"}),
        ("red \x00 cat", {"red": "red", "cat": "cat"}),
    ],
)
def test_changed_words_map_to_their_original(prompt: str, places: dict[str, str]) -> None:
    cleaned = clean_prompt(prompt)
    assert set(cleaned.split()) == set(places)
    found = map_to_prompt(prompt, cleaned)
    for word, original in places.items():
        at = cleaned.index(word)
        ranges = found[at : at + len(word)]
        assert prompt[ranges[0][0] : ranges[-1][1]] == original


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan_pipeline(tmp_path_factory.mktemp("wan"))


@torch.no_grad()
def test_states_are_those_of_the_pipeline(pipeline: Path) -> None:
    parts: Any = WanPipeline
    reference = parts.from_pretrained(pipeline, transformer=None, vae=None)
    encoder = UMT5Encoder(pipeline)
    for prompt in [*PROMPTS, "a red circle " * 300]:
        [got] = encoder.encode([prompt])
        [want], _ = reference.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=512
        )
        length = len(got.states)
        np.testing.assert_allclose(got.states, want[:length].numpy(), atol=2e-5, err_msg=prompt)
        assert not want[length:].any()
        assert got.tokens[-1] == "</s>"
    assert got.truncated
    assert length == 512


def test_offsets_are_ranges_of_the_original_prompt(pipeline: Path) -> None:
    prompt = " the  cat’s &amp; dog"
    [encoding] = UMT5Encoder(pipeline).encode([prompt])
    letters = [(t, prompt[a:b].strip()) for t, (a, b) in zip(encoding.tokens, encoding.offsets, strict=True)]
    assert letters[0] == ("▁the", "the")
    assert letters[1] == ("▁cat", "cat")
    assert ("'", "’") in letters
    assert ("&", "&amp;") in letters
    assert letters[-2:] == [("▁dog", "dog"), ("</s>", "")]
