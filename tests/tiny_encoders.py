"""Text encoders of the real classes with random weights, saved by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue", "circle", "moving", "left", "a"]


def save_tokenizer(path: Path, start: bool) -> None:
    """Saves a tokenizer that splits at spaces and appends an end token; `start` prepends a start token."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if start else "$A </s>"
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    wrapper: Any = PreTrainedTokenizerFast
    wrapper(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(path)


def _build_clip_text() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def save_image_clip(path: Path) -> Path:
    """Saves a CLIP model of texts and of images of 16 × 16 pixels, with its processor."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text, image = _build_clip_text(), vision
    config = CLIPConfig(text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(path)
    save_tokenizer(path, start=True)
    size = {"shortest_edge": 16}
    processor: Any = CLIPImageProcessor
    processor(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(path)
    return path


def save_clip(path: Path) -> Path:
    """Saves model and tokenizer in one directory: states of 16, vectors of 12, 8 tokens."""
    torch.manual_seed(0)
    CLIPTextModelWithProjection(_build_clip_text()).save_pretrained(path)
    save_tokenizer(path, start=True)
    return path


def save_umt5(path: Path, width: int = 16) -> Path:
    """Saves a pipeline directory in the layout of diffusers, with states of `width`."""
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=2
    )
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    save_tokenizer(path / "tokenizer", start=False)
    return path
