"""The alignment of prompts: `python -m bench.align` writes bench/results/align.json.

With MiniLM and the shipped model's world, but for its split `test`: milliseconds in the embedder's process;
how often other phrasings of one scene come out as the same, and a single edit as just what it changed.
"""

from __future__ import annotations

import asyncio
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from chorus_rpc.limits import MAX_PROMPT_CHARACTERS

from bench import results
from bench.results import median, share
from evaluation.scenes import SINGLE_EDITS, Pool, make_groups
from models.movingshapes.captions import Phrasing, caption
from models.movingshapes.world import Split
from services.embedder.aligner import Aligner
from services.embedder.alignment import Alignment, EncodedPrompt, align
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, MiniLMEncoder
from services.embedder.lexicon import load_lexicon
from services.embedder.settings import SHIPPED_LEXICON

Compare = Callable[[str, str], Alignment]

LEXICON: Final = load_lexicon([SHIPPED_LEXICON])

SPLITS: Final[tuple[Split, ...]] = ("train", "calibration")
HEAVY: Final = 0.3  # no word weighs more where two prompts say the same
CHANGED: Final = 0.5  # at least so much weighs every word of what was changed
_OBJECT: Final = {"COLOUR", "SIZE", "MOTION", "OTHER"}
_CATEGORIES: Final = {
    "colour": {"COLOUR"},
    "background": {"BACKGROUND"},
    "shape": {"OTHER"},
    "motion": {"MOTION"},
    "size": {"SIZE"},
    "added": _OBJECT,
    "removed": _OBJECT,
}
_BATCH: Final = 8


def comparing(encoder: Encoder) -> Compare:
    """`align` of two texts."""

    def encoded(prompt: str) -> EncodedPrompt:
        [encoding] = encoder.encode([prompt])
        return EncodedPrompt(prompt, encoding.states, encoding.offsets)

    return lambda donor, target: align(encoded(donor), encoded(target), LEXICON)


def same(
    compare: Compare, split: Split, count: int, seed: int, phrasing: Phrasing, unseen_words: bool = False
) -> list[bool]:
    """Whether a scene in a training phrasing and in this one come out as the same, for so many scenes."""
    pool, draw, found = Pool(split, seed), random.Random(seed), []
    for number in range(count):
        scene = pool.draw(1 + number % 2)
        alignment = compare(caption(scene, draw), caption(scene, draw, phrasing, unseen_words))
        heavy = [change for change in (*alignment.gained, *alignment.lost) if change.weight > HEAVY]
        found.append(not (heavy or alignment.things_added or alignment.reordered))
    return found


def told(compare: Compare, split: Split, count: int, seed: int, phrasing: Phrasing) -> list[bool]:
    """Whether just the category of what was edited changed, for the single edits among so many groups."""
    found = []
    for group in make_groups(split, count, seed, phrasing):
        if group.kind in SINGLE_EDITS:
            alignment = compare(group.donor.prompt, group.targets[0].prompt)
            changed = {
                change.category.name
                for change in (*alignment.gained, *alignment.lost)
                if change.weight >= CHANGED
            }
            added = {"added": 1, "removed": -1}.get(group.kind, 0)
            found.append(changed == _CATEGORIES[group.kind] and alignment.things_added == added)
    return found


def align_seconds(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Of the alignment alone, of encoded prompts that were not read before."""
    seconds = []
    for pair in pairs:
        donor, target = (
            EncodedPrompt(prompt, encoding.states, encoding.offsets)
            for prompt, encoding in zip(pair, encoder.encode(pair), strict=True)
        )
        begin = time.perf_counter()
        align(donor, target, LEXICON)
        seconds.append(time.perf_counter() - begin)
    return seconds


async def call_seconds(encoder: Encoder, calls: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    """Seconds of an alignment of a target with its donors: with prompts to encode, then the same again."""
    engine = EncoderThread(encoder, [encoder], queue_limit=1, recent_bytes=1 << 28)
    aligner = Aligner(engine, LEXICON)
    cold: list[float] = []
    warm: list[float] = []
    try:
        for target, *donors in calls:
            for seconds in (cold, warm):
                begin = time.perf_counter()
                await aligner.align(target, donors)
                seconds.append(time.perf_counter() - begin)
    finally:
        engine.close()
    return cold, warm


def _captions(count: int, seed: int) -> list[str]:
    """So many captions, none twice."""
    pool, found = Pool("calibration", seed), dict[str, None]()
    while len(found) < count:
        found[caption(pool.draw(1 + len(found) % 2), pool.rng)] = None
    return list(found)


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "align.json",
    count: Annotated[int, typer.Option(min=16, help="Pairs of each measurement.")] = 200,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    torch.set_num_threads(threads)
    encoder = MiniLMEncoder()
    texts = _captions(2 * count, 0)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    long = [" and ".join(texts[i : i + 50])[:MAX_PROMPT_CHARACTERS] for i in range(2 * count - 50)]
    batches = [texts[i : i + 1 + _BATCH] for i in range(0, 2 * count - _BATCH, 1 + _BATCH)]
    align_seconds(encoder, pairs[:_BATCH])  # to warm up
    timed = {
        "align_pair_ms_p50": align_seconds(encoder, pairs),
        "align_pair_longest_ms_p50": align_seconds(encoder, list(zip(long[::10], long[5::10], strict=False))),
    }
    timed["call_pair_ms_p50"], timed["call_pair_again_ms_p50"] = asyncio.run(call_seconds(encoder, pairs))
    timed[f"call_{_BATCH}_ms_p50"], timed[f"call_{_BATCH}_again_ms_p50"] = asyncio.run(
        call_seconds(encoder, batches)
    )
    figures = {name: median([1000 * one for one in seconds], "ms") for name, seconds in timed.items()}
    compare = comparing(encoder)
    for split in SPLITS:
        shares = {
            "same_seen": same(compare, split, count, 1, "seen"),
            "same_unseen": same(compare, split, count, 1, "unseen"),
            "same_unseen_words": same(compare, split, count, 1, "unseen", unseen_words=True),
            "edit_seen": told(compare, split, count, 1, "seen"),
            "edit_unseen": told(compare, split, count, 1, "unseen"),
        }
        figures |= {f"{split}_{name}": share(sum(hits), len(hits)) for name, hits in shares.items()}
    results.write(out, f"python -m bench.align {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{name}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


if __name__ == "__main__":
    typer.run(main)
