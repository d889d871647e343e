"""Verifies the embedder without a model: settings, the cache of recent encodings, the encoder thread."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from threading import Event, get_ident

import numpy as np
import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.encoder_thread import EncoderThread, RecentEncodings
from services.embedder.encoders import Encoder, Encoding, Tokens
from services.embedder.settings import EmbedderSettings, EncoderSpec, parse_encoder

WAIT = 20.0


def encoding(tokens: int) -> Encoding:
    """Returns an encoding with 8 bytes of states for each token and a vector of 8 bytes."""
    return Encoding(
        retrieval=np.ones(2, np.float32),
        states=np.ones((tokens, 2), np.float32),
        tokens=("t",) * tokens,
        offsets=((0, 0),) * tokens,
        truncated=False,
    )


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 8)), max_size=40), st.integers(0, 100))
def test_recent_encodings_stay_within_their_bytes(puts: list[tuple[str, int]], limit: int) -> None:
    recent = RecentEncodings(limit)
    for prompt, tokens in puts:
        recent.put("e", prompt, encoding(tokens))
        kept = [found for p in "abcdef" if (found := recent.get("e", p)) is not None]
        assert sum(found.states.nbytes + found.retrieval.nbytes for found in kept) <= limit
        assert len(recent) == len(kept)


def test_least_recently_used_encoding_is_evicted_first() -> None:
    recent = RecentEncodings(2 * 16)
    recent.put("e", "a", encoding(1))
    recent.put("e", "b", encoding(1))
    assert recent.get("e", "a") is not None
    recent.put("e", "c", encoding(1))
    assert recent.get("e", "b") is None
    assert recent.get("e", "a") is not None
    assert recent.get("another encoder", "a") is None


class Gated(Encoder):
    """Encodes once its gate opens; records the prompts."""

    id, kind, retrieval_dim, text_dim, max_tokens = "gated@0", "test", 2, 2, 4

    def __init__(self) -> None:
        self.gate, self.entered = Event(), Event()
        self.encoded: list[str] = []
        self.threads: set[int] = set()

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        return [Tokens((), (), False) for _ in prompts]

    def encode(self, prompts: Sequence[str]) -> list[Encoding]:
        self.entered.set()
        assert self.gate.wait(WAIT)
        self.encoded += prompts
        self.threads.add(get_ident())
        return [encoding(1) for _ in prompts]


async def test_one_thread_encodes_each_prompt_once_behind_a_bounded_queue() -> None:
    encoder = Gated()
    encoders = EncoderThread(encoder, [encoder], queue_limit=2, recent_bytes=1000)
    try:
        calls = [asyncio.create_task(encoders.encode(encoder, [prompt])) for prompt in ("a", "b")]
        await asyncio.to_thread(encoder.entered.wait, WAIT)
        with pytest.raises(ChorusError) as caught:
            await encoders.encode(encoder, ["c"])
        assert caught.value.reason == errors.QUEUE_FULL
        assert caught.value.retry_after
        encoder.gate.set()
        await asyncio.gather(*calls)
        assert len(await encoders.encode(encoder, ["b", "a", "d", "d"])) == 4
        assert encoder.encoded == ["a", "b", "d"]
        for _ in range(2):
            await encoders.encode(encoder, ["a", "e"], together=True)
        assert encoder.encoded == ["a", "b", "d", "e"]
        await encoders.encode(encoder, ["e"])
        assert encoder.encoded == ["a", "b", "d", "e", "e"], "an encoding from a batch serves comparison only"
        assert len(await encoders.tokenize(encoder, ["a", "f"])) == 2
        assert len(encoder.threads) == 1
        assert get_ident() not in encoder.threads
    finally:
        encoder.gate.set()
        encoders.close()


def test_encoders_are_parsed_with_their_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_EMBEDDER_CONDITIONING", f"minilm, umt5:{tmp_path}")
    assert EmbedderSettings().conditioning == (EncoderSpec("minilm"), EncoderSpec("umt5", tmp_path))


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "use minilm"),
        ("bert", "use minilm, or clip: or umt5: and a path or hf://owner/name"),
        ("minilm:/x", "use minilm"),
        ("clip:", "use minilm"),
        ("umt5:/no/such/directory", "/no/such/directory: no such file or directory"),
        (f"umt5:{__file__}", "name the directory that holds the umt5 model"),
        ("umt5:hf://team/wan@v1", "fetch it first: hf download team/wan --revision v1"),
        ("umt5:hf://wan", "must be hf://owner/name"),
    ],
)
def test_invalid_encoder_names_the_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(remedy)):
        parse_encoder(text)
