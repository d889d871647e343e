"""Contact sheet of pairs: `python -m bench.pairs_sheet` writes out/pairs.png.

Single edits of the split `test` under a policy, as a user would send them: the donor, then the edited prompt
without a seed. Each pair shows two frames of both videos, what changed, and what was reused. For the eye: no
figure sees a ghost.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from chorus_cli.explain.video import Frames, decode_mp4
from chorus_client import CacheClient, ChorusClient
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from calibration.pairs import describe_change
from evaluation.deployment import local_deployment
from evaluation.prompts import Group
from evaluation.scenes import KINDS, SINGLE_EDITS, make_groups
from evaluation.timing import generate_timed, warm_up

SHOWN: Final = (4, 12)  # frames of each video
COLUMNS: Final = 5
_TILE: Final = 128  # side of a frame, in pixels
_GAP, _LINE, _TEXT = 12, 2, 46


@dataclass(frozen=True)
class Tile:
    """A pair: its title, and the frames of donor and target."""

    title: str
    donor: Frames
    target: Frames


def generate_pair(client: ChorusClient, cache: CacheClient, group: Group, number: int, policy: str) -> Tile:
    """Generates a donor, and a target under a policy."""
    cache.purge(everything=True)
    donor = generate_timed(client, group.donor.prompt, seed=number)
    target = generate_timed(client, group.targets[0].prompt, reuse=policy, no_store=True)
    plan = target.generation.plan
    how = f"K1 = {plan.reuse_steps}" + (", draft" if plan.draft_step else "") if plan.reuse_steps else "miss"
    title = f"{number + 1} {group.kind}, {how}: {describe_change(group)}"
    return Tile(title, decode_mp4(donor.video), decode_mp4(target.video))


def draw(tiles: list[Tile], out: Path) -> None:
    """Draws the tiles: the donor above the target."""
    width, height = len(SHOWN) * (_TILE + _LINE) + _GAP, 2 * (_TILE + _LINE) + _TEXT + _GAP
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + _GAP, rows * height + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, tile in enumerate(tiles):
        x, y = _GAP + i % COLUMNS * width, _GAP + i // COLUMNS * height
        lines = textwrap.wrap(tile.title, 44)[:3]
        pen.multiline_text((x, y), "\n".join(lines), fill="black", font=font)
        for row, video in enumerate((tile.donor, tile.target)):
            for column, frame in enumerate(SHOWN):
                picture = Image.fromarray(np.ascontiguousarray(video[frame])).resize((_TILE, _TILE))
                place = x + column * (_TILE + _LINE), y + _TEXT + row * (_TILE + _LINE)
                sheet.paste(picture, place)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


def main(
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("out/pairs.png"),
    pairs: Annotated[int, typer.Option(min=1, max=200, help="Number of pairs.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts.")] = 9500,
    policy: Annotated[str, typer.Option(help="Policy of the targets.")] = "balanced",
    folder: Annotated[Path, typer.Option(help="Folder of the temporary deployment.")] = Path("out/pairs"),
) -> None:
    """Generates the pairs and draws the sheet."""
    groups = [
        group
        for group in make_groups("test", pairs * len(KINDS) // len(SINGLE_EDITS) + len(KINDS), seed, "unseen")
        if group.kind in SINGLE_EDITS
    ][:pairs]
    with (
        local_deployment(folder) as targets,
        ChorusClient(targets["scheduler"]) as client,
        CacheClient(targets["cache"]) as cache,
    ):
        warm_up(client)
        tiles = [
            generate_pair(client, cache, group, number, policy)
            for number, group in enumerate(track(groups, "pairs"))
        ]
    draw(tiles, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
