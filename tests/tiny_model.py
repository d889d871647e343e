"""A model of the real architecture with random weights, small enough to create and run within a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.denoiser.checkpoint.weights import weights_digest
from services.denoiser.model.spec import load_spec
from services.denoiser.network.refiner import TextRefiner
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


def save_host_adapter(model: Path, size: float = 0.3, seed: int = 1, rank: int = 2) -> Path:
    """Writes a random host adapter next to a model file and names it there; returns the path of its weights.

    Args:
        size: Standard deviation of the factors; 0 for an adapter that changes nothing.
    """
    network = WanTransformer(load_spec(model).transformer.config())
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("blocks."):
            rows, columns = module.weight.shape
            for part, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                value = size * torch.randn(shape, generator=generator)
                factors[f"transformer.{name}.lora_{part}.weight"] = value
    file = model.parent / "host.safetensors"
    save_file(factors, file)
    write_host_section(model, file)
    return file


def save_refiner(model: Path, *, seed: int = 0, dim: int = 16) -> Path:
    """Writes a random text refiner next to a model file and names it there; returns the path of its weights.

    Args:
        dim: Size of the network; the model file says 16.
    """
    torch.manual_seed(seed)
    file = model.parent / f"refiner-{seed}.safetensors"
    save_file(TextRefiner(TEXT_DIM, dim, 2, 1).state_dict(), file)
    section = f'\n[text.refiner]\nfile = "{file.name}"\nsha256 = "{weights_digest(file)}"\n'
    model.write_text(model.read_text() + section + "dim = 16\nheads = 2\nlayers = 1\n")
    return file


def write_host_section(model: Path, adapter: Path, /, **fields: str) -> None:
    """Names a host adapter in a model file, in place of another.

    Args:
        adapter: File or folder of the adapter, in the model's folder.
        fields: Further fields, or others than the adapter has, in TOML.
    """
    digest = weights_digest(adapter) if adapter.exists() else "0" * 64
    section = {"id": '"host"', "file": f'"{adapter.name}"', "sha256": f'"{digest}"'} | fields
    lines = "".join(f"{name} = {value}\n" for name, value in section.items())
    model.write_text(f"{model.read_text().partition('[host]')[0].rstrip()}\n\n[host]\n{lines}")
