"""Picture of reuse and its rivals: a column for each kind of edit, a row for each way to generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.shapes.cells import edit_cells
from bench.shapes.workers import Models, Workers
from models.shapes.measure import DONOR_SEED, Case
from models.shapes.world import Scene
from services.denoiser.codec.mp4 import to_frames

ROWS: Final = {
    "donor": "donor",
    "rerun": "rerun of its seed",
    "base_k3": "K1 = 3, no adapter",
    "host_k1": "host, K1 = 1",
    "host_k2": "host, K1 = 2",
    "host_k3": "host, K1 = 3",
    "draft_k3": "draft, K1 = 3",
    "rerun_two_step": "two-step student",
    "rerun_one_step": "one-step student",
}
SHOWN: Final = (4, 12)  # frames of each video
_SCALE: Final = 2
_GAP, _LABEL, _HEAD = 6, 150, 52


def draw_sheet(cases: Sequence[Case], workers: Workers, out: Path) -> None:
    """Draws the videos of cases of edits and writes the picture."""
    columns = workers.map("sheet", _generate, cases)
    rows = [name for name in ROWS if name in columns[0]]
    _, tile, _ = columns[0][rows[0]][0].shape
    width = len(SHOWN) * tile + (len(SHOWN) - 1) * 2 + 2 * _GAP
    picture = Image.new("RGB", (_LABEL + len(cases) * width, _HEAD + len(rows) * (tile + _GAP)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for column, (case, videos) in enumerate(zip(cases, columns, strict=True)):
        x = _LABEL + column * width
        draw.multiline_text((x, 6), describe_edit(case), fill="black", font=font)
        for row, name in enumerate(rows):
            y = _HEAD + row * (tile + _GAP)
            draw.text((6, y + tile // 2 - 8), ROWS[name], fill="black", font=font)
            for i, frame in enumerate(videos[name]):
                picture.paste(Image.fromarray(frame.numpy()), (x + i * (tile + 2), y))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, optimize=True)


def _generate(models: Models, case: Case) -> dict[str, Tensor]:
    """Returns frames [len(SHOWN), H, W, 3] of the donor and of the case in each way."""
    student, cells = models["student"], edit_cells(models)
    assert case.donor_states is not None
    run = student.run(case.donor_states, case.seed + DONOR_SEED)
    latents = {"donor": run.latents[-1]}
    latents |= {name: cells[name].generate(case, run) for name in ROWS if name in cells}
    return {name: _frames(student.video(x)) for name, x in latents.items()}


def _frames(video: Tensor) -> Tensor:
    return torch.from_numpy(to_frames(video, _SCALE))[list(SHOWN)]


def describe_edit(case: Case) -> str:
    """Returns the kind of an edit and what changed."""
    assert case.donor_scene is not None
    before, after = (_values(s) for s in (case.donor_scene, case.scene))
    if len(before) != len(after):
        change = f"{len(case.donor_scene.things)} to {len(case.scene.things)} objects"
    else:
        change = ", ".join(
            f"{a or 'any'} to {b or 'any'}" for a, b in zip(before, after, strict=True) if a != b
        )
    return f"{case.kind}:\n{change}"


def _values(scene: Scene) -> list[str | None]:
    things = [v for t in scene.things for v in (t.shape, t.colour, t.motion, t.size, t.place)]
    return [scene.background, scene.texture, *things]
