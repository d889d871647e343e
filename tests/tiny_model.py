"""A model of the real architecture with random weights, small enough to create and run within a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.denoiser.model.spec import load_spec
from services.denoiser.network.wan import WanTransformer

ENCODER_ID = "test-encoder@0123456789abcdef"
TEXT_DIM = 16
MAX_TOKENS = 8

_SPEC = """
id = "{model_id}"

[weights]
file = "weights.safetensors"
sha256 = "{sha256}"

[transformer]
architecture = "wan"
in_channels = 12
out_channels = 12
patch_size = [1, 2, 2]
heads = 2
head_dim = 12
ffn_dim = 32
layers = {layers}
text_dim = 16
freq_dim = 16

[text]
encoder_id = "test-encoder@0123456789abcdef"
max_tokens = 8
attend_padding = false

[codec]
kind = "space-to-depth"
temporal = 1
spatial = 2

[schedule]
sigmas = [1.0, 0.9375, 0.8333333333333334, 0.625, 0.0]
shift = 5.0
sampler = "{sampler}"

[bounds]
frames = {{ min = 1, max = 12 }}
height = {{ min = 8, max = 64, multiple = 4 }}
width = {{ min = 8, max = 64, multiple = 4 }}
steps = {{ min = 1, max = 150 }}

[video]
frames = 2
height = 8
width = 8
fps = 8
upscale = 2
"""


def save_tiny_model(
    directory: Path, model_id: str = "tiny", layers: int = 1, seed: int = 0, sampler: str = "euler"
) -> Path:
    """Writes model.toml and weights into `directory`; returns the path of the model file."""
    directory.mkdir(parents=True, exist_ok=True)
    path, weights = directory / "model.toml", directory / "weights.safetensors"
    path.write_text(_SPEC.format(model_id=model_id, sha256="0" * 64, layers=layers, sampler=sampler))
    torch.manual_seed(seed)
    network = WanTransformer(load_spec(path).transformer.config())
    save_file(network.state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    path.write_text(_SPEC.format(model_id=model_id, sha256=digest, layers=layers, sampler=sampler))
    return path
