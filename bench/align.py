"""Speed and accuracy of prompt alignment: `python -m bench.align` writes bench/results/align.json.

Uses MiniLM and the shipped model's world without its split `test`. Measures milliseconds in the embedder's
process, how often two phrasings of one scene are recognised as the same, and how often a single edit is
reported as exactly the attribute that changed.
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

from bench import results
from bench.results import median, share
from evaluation.scenes import SINGLE_EDITS, Phrasing, make_groups, write_prompt
from models.shapes.world import Split, draw_scene
from services.embedder.aligner import Aligner
from services.embedder.alignment import Alignment, EncodedPrompt, align
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, MiniLMEncoder
from services.embedder.lexicon import load_lexicon
from services.embedder.settings import SHIPPED_LEXICON

Compare = Callable[[str, str], Alignment]

LEXICON: Final = load_lexicon([SHIPPED_LEXICON])

LONG_PROMPT_CHARACTERS: Final = 2_000
SPLITS: Final[tuple[Split, ...]] = ("train", "calibration")
MAX_UNCHANGED_WEIGHT: Final = 0.3  # upper bound on the weight of a word between prompts of the same meaning
MIN_CHANGED_WEIGHT: Final = 0.5  # lower bound on the weight of a word of the edited attribute
_OBJECT: Final = {"COLOUR", "SIZE", "MOTION", "OTHER"}
_CATEGORIES: Final = {
    "colour": {"COLOUR"},
    "background": {"BACKGROUND"},
    "shape": {"OTHER"},
    "motion": {"MOTION"},
    "size": {"SIZE"},
    "texture": {"BACKGROUND"},
    "place": {"OTHER"},
    "count": _OBJECT,
}
_BATCH: Final = 8


def make_comparison(encoder: Encoder) -> Compare:
    """Returns a function that encodes and aligns two prompts."""

    def encode(prompt: str) -> EncodedPrompt:
        [encoding] = encoder.encode([prompt])
        return EncodedPrompt(prompt, encoding.states, encoding.offsets)

    return lambda donor, target: align(encode(donor), encode(target), LEXICON)


def recognise_paraphrases(
    compare: Compare, split: Split, count: int, seed: int, phrasing: Phrasing
) -> list[bool]:
    """Returns for each of `count` scenes whether a training phrasing and `phrasing` align as the same."""
    rng, recognised = random.Random(seed), []
    for number in range(count):
        scene = draw_scene(split, rng, 1 + number % 2)
        alignment = compare(write_prompt(scene, rng, "seen"), write_prompt(scene, rng, phrasing))
        changes = (*alignment.gained, *alignment.lost)
        changed = any(change.weight > MAX_UNCHANGED_WEIGHT for change in changes)
        recognised.append(not (changed or alignment.things_added or alignment.reordered))
    return recognised


def recognise_edits(compare: Compare, split: Split, count: int, seed: int, phrasing: Phrasing) -> list[bool]:
    """Returns for each single edit among `count` groups whether only the edited category is reported."""
    recognised = []
    for group in make_groups(split, count, seed, phrasing):
        if group.kind in SINGLE_EDITS:
            alignment = compare(group.donor.prompt, group.targets[0].prompt)
            changed = {
                change.category.name
                for change in (*alignment.gained, *alignment.lost)
                if change.weight >= MIN_CHANGED_WEIGHT
            }
            assert group.donor.scene is not None
            assert group.targets[0].scene is not None
            added = len(group.targets[0].scene.things) - len(group.donor.scene.things)
            expected = _CATEGORIES[group.kind]
            exact = changed <= expected if group.kind == "count" else changed == expected
            recognised.append(exact and bool(changed) and alignment.things_added == added)
    return recognised


def measure_align(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Measures the seconds of the alignment only, on encoded prompts that were not aligned before."""
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


async def measure_calls(encoder: Encoder, calls: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    """Measures the seconds of Align calls.

    Args:
        calls: Target and donors of each call.

    Returns:
        Seconds of calls that encode their prompts, and seconds of the same calls repeated.
    """
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
    """Returns `count` different captions."""
    rng, captions = random.Random(seed), dict[str, None]()
    while len(captions) < count:
        scene = draw_scene("calibration", rng, 1 + len(captions) % 2)
        captions[write_prompt(scene, rng, "seen")] = None
    return list(captions)


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "align.json",
    count: Annotated[int, typer.Option(min=16, help="Number of prompt pairs per measurement.")] = 200,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.")] = 2,
) -> None:
    """Measures the alignment of prompts and writes the result file."""
    torch.set_num_threads(threads)
    encoder = MiniLMEncoder()
    texts = _captions(2 * count, 0)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    long = [" and ".join(texts[i : i + 50])[:LONG_PROMPT_CHARACTERS] for i in range(2 * count - 50)]
    batches = [texts[i : i + 1 + _BATCH] for i in range(0, 2 * count - _BATCH, 1 + _BATCH)]
    measure_align(encoder, pairs[:_BATCH])  # warm-up
    timed = {
        "align_pair_ms_p50": measure_align(encoder, pairs),
        "align_pair_longest_ms_p50": measure_align(encoder, list(zip(long[::10], long[5::10], strict=False))),
    }
    timed["call_pair_ms_p50"], timed["call_pair_again_ms_p50"] = asyncio.run(measure_calls(encoder, pairs))
    timed[f"call_{_BATCH}_ms_p50"], timed[f"call_{_BATCH}_again_ms_p50"] = asyncio.run(
        measure_calls(encoder, batches)
    )
    figures = {name: median([1000 * s for s in seconds], "ms") for name, seconds in timed.items()}
    compare = make_comparison(encoder)
    for split in SPLITS:
        shares = {
            "same_seen": recognise_paraphrases(compare, split, count, 1, "seen"),
            "same_unseen": recognise_paraphrases(compare, split, count, 1, "unseen"),
            "same_unseen_words": recognise_paraphrases(compare, split, count, 1, "unseen-words"),
            "edit_seen": recognise_edits(compare, split, count, 1, "seen"),
            "edit_unseen": recognise_edits(compare, split, count, 1, "unseen"),
        }
        figures |= {f"{split}_{name}": share(sum(hits), len(hits)) for name, hits in shares.items()}
    results.write(out, f"python -m bench.align {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{name}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


if __name__ == "__main__":
    typer.run(main)
