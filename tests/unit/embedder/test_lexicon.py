"""Verifies the lexicons of models, their union, and that the general lexicon contains none of their words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.embedder.alignment import EncodedPrompt, align
from services.embedder.lexicon import Category, Lexicon, load_lexicon
from services.embedder.phrases import read_prompt
from services.embedder.settings import SHIPPED_LEXICON
from tests.processes import ROOT

GENERAL = Lexicon()


def encode(prompt: str) -> EncodedPrompt:
    """Gives every word an orthogonal state, so that only the lexicon finds synonyms."""
    words = prompt.split()
    starts = [prompt.index(word) for word in words]
    offsets = [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
    dims = {"red": 0, "ball": 1, "circle": 2}
    return EncodedPrompt(prompt, np.eye(3, dtype=np.float32)[[dims[word] for word in words]], offsets)


def test_shapes_of_the_shipped_model_are_synonyms_only_with_its_lexicon() -> None:
    shipped = load_lexicon([SHIPPED_LEXICON])
    [change] = align(encode("red circle"), encode("red ball"), shipped).gained
    assert change.weight == pytest.approx(0.1)
    [change] = align(encode("red circle"), encode("red ball"), GENERAL).gained
    assert change.weight == 1
    assert GENERAL.look_up("ball").meaning is None
    assert GENERAL.look_up("crimson").meaning == "red"


def test_union_of_lexicons_prefers_the_first_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('[synonyms]\nother = [["ball", "orb"]]\nmotion = [["hover", "levitate"]]\n')
    two.write_text('[synonyms]\nother = [["planet", "orb"], ["red", "house"]]\n')
    found = load_lexicon([one, two])
    assert [found.look_up(word).meaning for word in ("orb", "planet", "levitate")] == [
        "ball",
        "planet",
        "hover",
    ]
    assert found.look_up("red").category is Category.OTHER, "a model's lexicon outranks the general one"
    assert found.to_plain("hovering") == "hover"
    assert found.to_plain("orbs") == "orb"


@pytest.mark.parametrize(
    ("prompt", "sense"),
    [
        ("dark blue", "navy"),
        ("dark-blue", "navy"),
        ("Dark  Blue", "navy"),
        ("dark, blue", None),
        ("dark", None),
    ],
)
def test_words_of_a_compound_are_one_word(prompt: str, sense: str | None) -> None:
    lexicon = Lexicon([(Category.COLOUR, ["navy", "dark blue"])])
    [phrase] = read_prompt(prompt, lexicon).phrases
    found = {word.sense: prompt[word.start : word.end] for word in phrase}
    assert found.get("navy") == (prompt if sense else None)
    assert len(found) == 1 or sense is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("synonyms = 3", "one table"),
        ("[synonyms]\nother = []\n[more]", "one table"),
        ("[synonyms]\nshape = [['a']]", "synonyms.shape: must be one of colour, size"),
        ("[synonyms]\nother = ['a']", "must be lists of lower-case words"),
        ("[synonyms]\nother = [[]]", "must be lists of lower-case words"),
        ("[synonyms]\nother = [['Ball']]", "must be lists of lower-case words"),
        ("[synonyms]\nother = [['red  ball']]", "must be lists of lower-case words"),
        ("[synonyms", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_invalid_file_is_named(tmp_path: Path, text: str | None, fault: str) -> None:
    path = tmp_path / "lexicon.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}.*{fault}"):
        load_lexicon([path])


def test_file_is_read_as_utf8_in_every_locale(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.toml"
    path.write_bytes('[synonyms]\nother = [["kreis", "rundstück"]]\n'.encode())
    script = (
        "import sys; from pathlib import Path; from services.embedder.lexicon import load_lexicon; "
        "print(ascii(load_lexicon([Path(sys.argv[1])]).look_up('rundst\\xfcck').meaning))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "'kreis'\n", done.stderr
