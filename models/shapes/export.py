"""Exports trained weights: writes the file that a model file names, and the digests of all files.

`python -m models.shapes.export build/shapes/student/ema.safetensors student`, and for the host adapter
`python -m models.shapes.export build/shapes/host/adapter.safetensors host`. Without arguments it writes the
digests only, for instance after the text refiner was trained.
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
    "student-2": ("student-2.toml", "weights"),
    "student-1": ("student-1.toml", "weights"),
}
_FILE: Final = re.compile(r'^(file = "(?P<file>[^"]+)"\nsha256 = ")[0-9a-f]*(?=")', re.MULTILINE)


def export(source: Path, target: str, folder: Path = HERE) -> Path:
    """Writes weights in half precision, which takes half the bytes and changes outputs by about 1e-4.

    Returns the path of the weights file. Raises ValueError if a model file gives no digest for it.
    """
    name, section = TARGETS[target]
    file = tomllib.loads((folder / name).read_text("utf-8"))[section]["file"]
    weights: Path = folder / file
    weights.parent.mkdir(exist_ok=True)
    state = {k: v.to(torch.float16).contiguous() for k, v in load_file(source).items()}
    save_file(state, weights, metadata={"format": "pt"})
    if file not in write_digests(folder):
        raise ValueError(f'{folder / name}: section [{section}] has no line sha256 = "..." after its file')
    return weights


def write_digests(folder: Path = HERE) -> set[str]:
    """Writes the digest of every file of weights to the model files that name it. Returns these files.

    Files that do not exist are left out.
    """
    written = set()

    def write(match: re.Match[str]) -> str:
        path = folder / match["file"]
        if not path.exists():
            return match[0]
        written.add(match["file"])
        return match[1] + weights_digest(path)

    for model in sorted(folder.glob("*.toml")):
        text = model.read_text("utf-8")
        model.write_text(_FILE.sub(write, text), "utf-8")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="averaged weights, or adapter, of a training")
    parser.add_argument("target", choices=tuple(TARGETS), nargs="?", help="network that is exported")
    args = parser.parse_args()
    if args.source is None:
        print(f"digests of {', '.join(sorted(write_digests()))}")
    elif args.target is None:
        parser.error("target: name the network that is exported")
    else:
        weights = export(args.source, args.target)
        print(f"{weights.name}: {weights.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
