"""Alignment of prompts with the encoders of the embedder, independent of gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from chorus_rpc.errors import invalid
from numpy.typing import NDArray

from services.embedder.alignment import Alignment, EncodedPrompt, PromptWords, compare_words
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, Tokens
from services.embedder.lexicon import Lexicon


@dataclass(frozen=True)
class AlignedDonor:
    """Differences between one donor and the target, and the donor's tokens."""

    alignment: Alignment
    tokens: Tokens


@dataclass(frozen=True)
class AlignedPrompts:
    """Result of one comparison.

    Attributes:
        target: tokens of the target.
        donors: comparisons with the donors, in the order given.
    """

    target: Tokens
    donors: tuple[AlignedDonor, ...]


class Aligner:
    """Compares a target prompt with the prompts of donors.

    Args:
        encoders: provides token states and tokens; the aligner does not own it.
        lexicon: union of the lexicons of all served models; it applies to every comparison.
    """

    def __init__(self, encoders: EncoderThread, lexicon: Lexicon) -> None:
        self._encoders = encoders
        self._lexicon = lexicon

    async def align(
        self,
        target: str,
        donors: Sequence[str],
        *,
        positions: Encoder | None = None,
        target_states: NDArray[np.float32] | None = None,
    ) -> AlignedPrompts:
        """Compares trimmed prompts by the states of the retrieval encoder.

        Args:
            positions: encoder whose tokens the result holds; default: the retrieval encoder.
            target_states: token states of the target, float32 [L, D], to save their computation.

        Raises QUEUE_FULL when too many calls wait for the encoders, INVALID_FIELD for target_states of
        another shape.
        """
        retrieval = self._encoders.retrieval
        prompts = [target, *donors]
        known = []
        if target_states is not None:
            [read] = await self._encoders.tokenize(retrieval, [target])
            expected = (len(read.tokens), retrieval.text_dim)
            if target_states.shape != expected:
                raise invalid(
                    "target_states",
                    f"must be {list(expected)}, the retrieval encoder's states of target_prompt, "
                    f"not {list(target_states.shape)}",
                )
            known = [EncodedPrompt(target, target_states, read.offsets)]
        missing = prompts[len(known) :]
        encodings = await self._encoders.encode(retrieval, missing, together=True)
        # After the encoding, whose tokens are cached for the same encoder.
        tokens = await self._encoders.tokenize(positions or retrieval, prompts)
        first, *others = known + [
            EncodedPrompt(prompt, encoding.states, encoding.offsets)
            for prompt, encoding in zip(missing, encodings, strict=True)
        ]
        found = await asyncio.to_thread(self._compare, first, others)
        return AlignedPrompts(tokens[0], tuple(map(AlignedDonor, found, tokens[1:])))

    def _compare(self, target: EncodedPrompt, donors: Sequence[EncodedPrompt]) -> list[Alignment]:
        words = PromptWords(target, self._lexicon)
        return [compare_words(PromptWords(donor, self._lexicon), words) for donor in donors]
