"""Exports trained weights: writes the file that a model file names, and its digest to the model file.

`python -m models.shapes.export build/shapes/student/ema.safetensors student`, and for the host adapter
`python -m models.shapes.export build/shapes/host/adapter.safetensors host`.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from services.denoiser.checkpoint.weights import weights_digest

HERE: Final = Path(__file__).parent
# Model file and section of each exported file.
TARGETS: Final = {
    "student": ("model.toml", "weights"),
    "host": ("model.toml", "host"),
    "teacher": ("teacher.toml", "weights"),
    "student-2": ("student-2.toml", "weights"),
    "student-1": ("student-1.toml", "weights"),
}


def export(source: Path, target: str, folder: Path = HERE) -> Path:
    """Writes weights in half precision, which takes half the bytes and changes outputs by about 1e-4.

    Returns the path of the weights file. Raises ValueError if the model file has no such section.
    """
    name, section = TARGETS[target]
    path = folder / name
    text = path.read_text("utf-8")
    weights: Path = folder / tomllib.loads(text)[section]["file"]
    weights.parent.mkdir(exist_ok=True)
    state = {k: v.to(torch.float16).contiguous() for k, v in load_file(source).items()}
    save_file(state, weights, metadata={"format": "pt"})
    pattern = rf'(?ms)(^\[{section}\]$(?:(?!^\[).)*?^sha256 = ")[0-9a-f]*(")'
    text, count = re.subn(pattern, rf"\g<1>{weights_digest(weights)}\g<2>", text, count=1)
    if count != 1:
        raise ValueError(f'{path}: section [{section}] has no line sha256 = "..."')
    path.write_text(text, "utf-8")
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="averaged weights, or adapter, of a training")
    parser.add_argument("target", choices=tuple(TARGETS), help="network that is exported")
    args = parser.parse_args()
    weights = export(args.source, args.target)
    print(f"{weights.name}: {weights.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
