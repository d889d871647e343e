"""Port of text encoders, which convert a prompt to a retrieval vector and token states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Tokens:
    """Tokens of one prompt.

    Attributes:
        tokens: L token strings as the tokenizer writes them, special tokens included.
        offsets: L character ranges [start, end) in the prompt; start == end marks a special token.
        truncated: whether tokens past `max_tokens` were dropped.
        unknown: positions of the tokens that stand for text outside the vocabulary.
    """

    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    truncated: bool
    unknown: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Encoding(Tokens):
    """Encoding of one prompt.

    Attributes:
        retrieval: vector for retrieval, float32 [retrieval_dim], L2-normalised: dot products are cosines.
        states: token states, float32 [L, text_dim], without padding.
    """

    retrieval: FloatArray
    states: FloatArray


class Encoder(ABC):
    """Encodes prompts deterministically. Call it from one thread at a time.

    Attributes:
        id: name of the encoder and digest of everything that determines its vectors (weights, configuration,
            tokenizer, preparation of the text); vectors of different ids are not comparable.
    """

    id: str
    kind: str
    retrieval_dim: int
    text_dim: int
    max_tokens: int

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[Encoding]:
        """Encodes prompts, in order. Raises ValueError when one is blank, MODEL_DIVERGED for NaN."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        """Returns the tokens that `encode` would encode, without running the model."""
