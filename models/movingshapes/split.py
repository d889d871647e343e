"""Writes split.json, which divides the combinations of attributes into train, calibration and test.

Command: `python -m models.movingshapes.split`. The file is written once; all other modules read it. `test` is
for final reports only: no choice may be based on it.
"""

from __future__ import annotations

import itertools
import json
import random

from models.movingshapes.world import BACKGROUNDS, SPLIT_FILE, combination, things

SHARES = {"calibration": 0.1, "test": 0.2}  # the remaining share is for training


def make_split(seed: int) -> dict[str, list[str]]:
    """Returns combinations by split. The objects of each background are shuffled and divided in the same
    shares."""
    rng = random.Random(seed)
    split: dict[str, list[str]] = {"train": [], "calibration": [], "test": []}
    for background in BACKGROUNDS:
        keys = [combination(background, t) for t in things()]
        rng.shuffle(keys)
        cuts = list(itertools.accumulate(round(share * len(keys)) for share in SHARES.values()))
        for name, part in zip((*SHARES, "train"), (keys[: cuts[0]], keys[cuts[0] : cuts[1]], keys[cuts[1] :]),
                              strict=True):  # fmt: skip
            split[name] += sorted(part)
    return split


def main() -> None:
    seed = 20_260
    split = make_split(seed)
    SPLIT_FILE.write_text(json.dumps({"seed": seed, "combinations": split}, indent=1) + "\n", "utf-8")
    print({name: len(keys) for name, keys in split.items()})


if __name__ == "__main__":
    main()
