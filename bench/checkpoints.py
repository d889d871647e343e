"""Small random Wan pipelines saved by diffusers, used to measure parity.

Every component has diffusers' own class and a few thousand parameters, so that a step takes milliseconds on a
CPU.
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
    """Creates `directory` and saves a random `WanPipeline` in it. Returns the directory.

    Transformer: 2 layers, 2 heads of 12 channels. VAE: 16 channels, causal 4×8×8. Text encoder: 2-layer UMT5.

    Args:
        text_dim: Width of the text states; 4096 in UMT5-XXL.
        max_shard_size: Upper bound on a safetensors file; "40KB" splits the transformer.
    """
    construct: Any = WanPipeline
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = construct(
            tokenizer=_build_tokenizer(),
            text_encoder=_perturb(UMT5EncoderModel(_build_umt5_config(len(_build_vocabulary()), text_dim))),
            transformer=_perturb(_build_transformer(text_dim)),
            vae=_build_vae(),
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
    """Writes `model.toml`, which describes a saved pipeline, into `directory`. Returns its path.

    Args:
        encoder_id: Id of the text encoder in the embedder.
        dtype: Type of the network, "float32", "bfloat16" or "float16".
        max_tokens: Length to which the text is padded, in tokens.
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


def _build_transformer(text_dim: int) -> Any:
    construct: Any = WanTransformer3DModel
    return construct(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=text_dim,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )


def _build_vae() -> Any:
    construct: Any = AutoencoderKLWan
    # A narrower or perturbed autoencoder would amplify any difference of latents far more than a trained one.
    return construct(base_dim=16, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def _build_umt5_config(words: int, text_dim: int) -> UMT5Config:
    return UMT5Config(
        vocab_size=words, d_model=text_dim, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0
    )


def _build_tokenizer() -> Any:
    construct: Any = T5Tokenizer
    return construct(vocab=_build_vocabulary(), extra_ids=0)


def _build_vocabulary() -> list[tuple[str, float]]:
    """Returns pieces with log-probabilities: some words, and single characters for all other words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -3.0) for word in _WORDS.split() if len(word) > 1]
    letters = [(letter, -6.0) for letter in "▁" + string.ascii_letters + string.digits + string.punctuation]
    return special + words + letters


def _perturb(module: Any) -> nn.Module:
    """Perturbs every parameter in place, because parameters that start as zeros or ones would hide errors."""
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    evaluated: nn.Module = module.eval()
    return evaluated
