"""Makes a trained network the model: writes the weights file and its digest in model.toml.

`python -m models.movingshapes.export build/movingshapes/ema.safetensors`
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from services.denoiser.models.weights import weights_digest

HERE = Path(__file__).parent
MODEL = HERE / "model.toml"
WEIGHTS = HERE / "weights" / "movingshapes.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="averaged weights that training wrote")
    args = parser.parse_args()
    WEIGHTS.parent.mkdir(exist_ok=True)
    # Half precision on disk: half the bytes, and no measurable change in what the network does.
    state = {k: v.to(torch.float16).contiguous() for k, v in load_file(args.source).items()}
    save_file(state, WEIGHTS)
    digest = weights_digest(WEIGHTS)
    text, count = re.subn(r'(?m)^sha256 = "[0-9a-f]*"$', f'sha256 = "{digest}"', MODEL.read_text())
    if count != 1:
        raise SystemExit(f"{MODEL}: expected one sha256 line, found {count}")
    MODEL.write_text(text)
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
