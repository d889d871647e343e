"""Saves a small Wan checkpoint with random weights, as diffusers does, and the model file that serves it.

    python examples/own_model/build.py my-model

Needs torch and diffusers. Replace the network by a trained one and keep the rest.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

MODEL_FILE = """\
id = "own-model"

[weights]
file = "transformer/diffusion_pytorch_model.safetensors"
sha256 = "{digest}"

[transformer]
architecture = "wan"
sizes = "transformer/config.json"

[text] # the text encoder that ships with Chorus
encoder_id = "all-minilm-l6-v2@8e8c859a4bf16fe7"
max_tokens = 256
attend_padding = false

[codec] # 4 frames x 2 x 2 pixels x 3 colours = 48 latent channels
kind = "space-to-depth"
temporal = 4
spatial = 2

[schedule]
sigmas = [1.0, 0.9375, 0.8333333333333334, 0.625, 0.0]
shift = 5.0

[bounds]
frames = {{ min = 4, max = 16, multiple = 4 }}
height = {{ min = 16, max = 64, multiple = 4 }}
width = {{ min = 16, max = 64, multiple = 4 }}
steps = {{ min = 1, max = 50 }}

[video]
frames = 16
height = 32
width = 32
fps = 8
upscale = 8
"""


def build(folder: Path) -> Path:
    """Writes the checkpoint and model.toml into `folder`; returns the path of model.toml."""
    torch.manual_seed(0)
    network: Any = WanTransformer3DModel(  # type: ignore[no-untyped-call]  # its constructor is decorated
        in_channels=48,
        out_channels=48,
        num_attention_heads=2,
        attention_head_dim=24,
        ffn_dim=96,
        num_layers=2,
        text_dim=384,
        freq_dim=64,
    )
    network.save_pretrained(folder / "transformer")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    model_file = folder / "model.toml"
    model_file.write_text(MODEL_FILE.format(digest=hashlib.sha256(weights.read_bytes()).hexdigest()))
    return model_file


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/own_model/build.py FOLDER")
    print(build(Path(sys.argv[1])))
