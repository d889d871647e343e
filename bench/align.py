"""Speed and accuracy of prompt alignment: `python -m bench.align` writes bench/results/align.json.

Uses MiniLM and the shipped model's world without its split `test`. Measures milliseconds in the embedder's
process, and how often the scheduler recognises the kind of an edit: in pairs of prompts that differ only in
the words for the edit, and in pairs that are worded independently.
"""

from __future__ import annotations

import asyncio
import random
import shlex
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, get_args

import torch
import typer

from bench import results
from bench.results import median, share
from evaluation.prompts import Group, PromptCase
from evaluation.scenes import PARAPHRASE, SINGLE_EDITS, TWO_EDITS, Phrasing, make_groups, write_prompt
from models.shapes.edits import opens
from models.shapes.world import Scene, Split, draw_scene
from services.contract.edits import EditKind
from services.embedder.aligner import AlignedDonor, AlignedPrompts, Aligner
from services.embedder.alignment import Alignment, EncodedPrompt, align
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoder, MiniLMEncoder
from services.embedder.lexicon import load_lexicon
from services.embedder.servicer import make_align_response
from services.embedder.settings import SHIPPED_LEXICON
from services.scheduler.planning.edits import classify_edit

Compare = Callable[[str, str], Alignment]

LEXICON: Final = load_lexicon([SHIPPED_LEXICON])

LONG_PROMPT_CHARACTERS: Final = 2_000
SPLITS: Final[tuple[Split, ...]] = ("train", "calibration")
# Kinds of edit of a prompt set -> the kind that the scheduler assigns; other kinds depend on the scenes.
_ASSIGNED: Final[dict[str, EditKind]] = {
    "colour": "colour",
    "background": "background",
    "shape": "other",
    "size": "size",
    "motion": "motion",
    "place": "place",
    "unrelated": "unrelated",
}
_UNCHANGED: Final[frozenset[EditKind]] = frozenset({"same", "paraphrase"})
_BATCH: Final = 8


def make_comparison(encoder: Encoder) -> Compare:
    """Returns a function that encodes and aligns two prompts."""

    def encode(prompt: str) -> EncodedPrompt:
        [encoding] = encoder.encode([prompt])
        return EncodedPrompt(prompt, encoding.states, encoding.offsets)

    return lambda donor, target: align(encode(donor), encode(target), LEXICON)


def classify_groups(encoder: Encoder, groups: Sequence[Group]) -> list[EditKind]:
    """Returns the kind of edit that the scheduler assigns to the donor and the first target of each group."""
    return classify_pairs(encoder, [(group.donor.prompt, group.targets[0].prompt) for group in groups])


def classify_pairs(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> list[EditKind]:
    """Returns the kind of edit that the scheduler assigns to the prompts of each donor and target."""
    prompts = [prompt for pair in pairs for prompt in pair]
    encodings = [
        encoding
        for i in range(0, len(prompts), _BATCH)
        for encoding in encoder.encode(prompts[i : i + _BATCH])
    ]
    kinds = []
    for i in range(0, len(prompts), 2):
        donor, target = (
            EncodedPrompt(prompt, encoding.states, encoding.offsets)
            for prompt, encoding in zip(prompts[i : i + 2], encodings[i : i + 2], strict=True)
        )
        compared = AlignedPrompts(
            encodings[i + 1], (AlignedDonor(align(donor, target, LEXICON), encodings[i]),)
        )
        reply = make_align_response(compared, target.prompt, [donor.prompt])
        kinds.append(classify_edit(reply.alignments[0], len(encodings[i + 1].tokens)).kind)
    return kinds


def reword_groups(groups: Sequence[Group], seed: int, phrasing: Phrasing) -> list[Group]:
    """Returns the scenes of groups in other words: donors in a training phrasing, targets in `phrasing`."""
    rng = random.Random(seed)
    return [
        Group(
            group.kind,
            PromptCase(write_prompt(donor, rng, "seen"), donor),
            (PromptCase(write_prompt(target, rng, phrasing), target),),
        )
        for group in groups
        for donor, target in [_get_scenes(group)]
    ]


def is_recognised(group: Group, assigned: EditKind) -> bool:
    """Returns whether the scheduler's kind is that of the group, or of two edits, whether it sees any."""
    donor, target = _get_scenes(group)
    if group.kind == PARAPHRASE:
        return assigned in _UNCHANGED
    if group.kind == TWO_EDITS:
        return assigned not in _UNCHANGED
    if group.kind == "texture":
        return assigned == ("texture" if opens(donor, target) else "texture_removed")
    if group.kind == "count":
        return assigned == ("added" if opens(donor, target) else "removed")
    return assigned == _ASSIGNED[group.kind]


def _get_scenes(group: Group) -> tuple[Scene, Scene]:
    donor, target = group.donor.scene, group.targets[0].scene
    assert donor is not None
    assert target is not None
    return donor, target


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


def print_confusion(title: str, groups: Sequence[Group], assigned: Sequence[EditKind]) -> None:
    """Prints how often the scheduler assigned each kind to the groups of a kind."""
    print(title)
    counts: dict[str, Counter[EditKind]] = defaultdict(Counter)
    for group, kind in zip(groups, assigned, strict=True):
        counts[group.kind][kind] += 1
    for name, found in counts.items():
        print(f"  {name:11}", ", ".join(f"{kind} {n}" for kind, n in found.most_common()))


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "align.json",
    count: Annotated[int, typer.Option(min=16, help="Number of prompt pairs per measurement.")] = 220,
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
    for split in SPLITS:
        for phrasing in get_args(Phrasing):
            name = f"{split}_{phrasing.replace('-', '_')}"
            groups = make_groups(split, count, 1, phrasing)
            for wording, worded in (("edited", groups), ("reworded", reword_groups(groups, 1, phrasing))):
                assigned = classify_groups(encoder, worded)
                print_confusion(f"{split}, {phrasing}, {wording}", worded, assigned)
                right = list(map(is_recognised, worded, assigned))
                for rows, of in (("same", {PARAPHRASE}), ("edit", {*SINGLE_EDITS})):
                    hits = [hit for hit, group in zip(right, worded, strict=True) if group.kind in of]
                    figures[f"{name}_{wording}_{rows}"] = share(sum(hits), len(hits))
    results.write(out, f"python -m bench.align {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        interval = f" ({figure.ci95[0]:.4g} to {figure.ci95[1]:.4g})" if figure.ci95 else ""
        print(f"{name}: {figure.value:.4g} {figure.unit}, n = {figure.n}{interval}")


if __name__ == "__main__":
    typer.run(main)
