"""Small random Wan pipelines, saved by diffusers itself: what parity is measured on.

Every part is the real class with a few thousand parameters, so that a step takes milliseconds on a CPU.
"""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from services.denoiser.checkpoint.weights import weights_digest

TEXT_DIM: Final = 32
_WORDS: Final = (
    "a an and the small large red green blue cat dog circle square runs moves left right on in to of"
)
_MODEL_FILE: Final = """\
id = "{model_id}"

[weights]
file = "{pipeline}/transformer"
sha256 = "{weights_sha256}"

[transformer]
architecture = "wan"
sizes = "{pipeline}/transformer/config.json"
dtype = "{dtype}"

[text]
encoder = "umt5:{pipeline}"
encoder_id = "{encoder_id}"
max_tokens = {max_tokens}
attend_padding = true

[codec]
kind = "wan-vae"
file = "{pipeline}/vae"
sha256 = "{codec_sha256}"

[schedule]
sigmas = [1.0, 0.9375, 0.8333333333333334, 0.625, 0.0]
shift = 5.0

[bounds]
frames = {{ min = 1, max = 17, multiple = 4 }}
height = {{ min = 16, max = 128, multiple = 16 }}
width = {{ min = 16, max = 128, multiple = 16 }}
steps = {{ min = 1, max = 50 }}

[video]
frames = 5
height = 32
width = 48
fps = 16
"""


def save_wan_pipeline(
    directory: Path, *, seed: int = 0, text_dim: int = TEXT_DIM, max_shard_size: str = "10GB"
) -> Path:
    """Saves a random `WanPipeline` into `directory`, which is made; returns it.

    transformer: 2 layers, 2 heads of 12; vae: 16 channels, causal 4×8×8; text_encoder: UMT5 of 2 layers.

    Args:
        text_dim: width of the text states; UMT5-XXL's are 4096.
        max_shard_size: of the safetensors files, as diffusers takes it: "40KB" splits the transformer.
    """
    make: Any = WanPipeline
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = make(
            tokenizer=_tokenizer(),
            text_encoder=_stirred(UMT5EncoderModel(_umt5(len(_vocabulary()), text_dim))),
            transformer=_stirred(_transformer(text_dim)),
            vae=_vae(),
            scheduler=scheduler(shift=5.0),
        )
    pipeline.save_pretrained(directory, safe_serialization=True, max_shard_size=max_shard_size)
    return directory


def write_model_file(
    directory: Path,
    pipeline: Path,
    *,
    encoder_id: str,
    model_id: str = "random-wan",
    dtype: str = "float32",
    max_tokens: int = 512,
) -> Path:
    """Writes `model.toml`, which describes a saved pipeline, into `directory`; returns its path.

    Args:
        encoder_id: what the embedder calls the text encoder.
        dtype: float32, bfloat16 or float16.
        max_tokens: the length to which Wan pads the text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.toml"
    path.write_text(
        _MODEL_FILE.format(
            model_id=model_id,
            pipeline=Path(os.path.relpath(pipeline, directory)).as_posix(),
            weights_sha256=weights_digest(pipeline / "transformer"),
            codec_sha256=weights_digest(pipeline / "vae"),
            encoder_id=encoder_id,
            dtype=dtype,
            max_tokens=max_tokens,
        )
    )
    return path


def _transformer(text_dim: int) -> Any:
    make: Any = WanTransformer3DModel
    return make(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=text_dim,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )


def _vae() -> Any:
    make: Any = AutoencoderKLWan
    # Narrower, or stirred, it would amplify any difference of latents many times, as no trained one does.
    return make(base_dim=16, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def _umt5(words: int, text_dim: int) -> UMT5Config:
    return UMT5Config(
        vocab_size=words, d_model=text_dim, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0
    )


def _tokenizer() -> Any:
    make: Any = T5Tokenizer
    return make(vocab=_vocabulary(), extra_ids=0)


def _vocabulary() -> list[tuple[str, float]]:
    """Pieces with log-probabilities: some words, and letters for all others."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -3.0) for word in _WORDS.split() if len(word) > 1]
    letters = [(letter, -6.0) for letter in "▁" + string.ascii_letters + string.digits + string.punctuation]
    return special + words + letters


def _stirred(module: Any) -> nn.Module:
    """Moves every parameter a little: those that start as zeros or ones would hide a mistake."""
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    found: nn.Module = module.eval()
    return found
