"""Exports a trained network: writes the weights file that a model file names, and its digest to the model
file. `python -m models.movingshapes.export build/movingshapes/student/ema.safetensors model.toml`
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from services.denoiser.checkpoint.weights import weights_digest

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="averaged weights of the trained network")
    parser.add_argument("model", choices=("model.toml", "teacher.toml"), help="model file to update")
    args = parser.parse_args()
    path = HERE / args.model
    weights = HERE / tomllib.loads(path.read_text("utf-8"))["weights"]["file"]
    weights.parent.mkdir(exist_ok=True)
    # Half precision on disk takes half the bytes and has no measurable effect on the network's output.
    state = {k: v.to(torch.float16).contiguous() for k, v in load_file(args.source).items()}
    save_file(state, weights)
    digest = weights_digest(weights)
    text, count = re.subn(r'(?m)^sha256 = "[0-9a-f]*"$', f'sha256 = "{digest}"', path.read_text("utf-8"))
    if count != 1:
        raise SystemExit(f"{path}: expected one sha256 line, found {count}")
    path.write_text(text, "utf-8")
    print(f"{weights.name}: {weights.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
