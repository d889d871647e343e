"""Text encoders of the real classes with random weights, saved by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
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


def save_clip(path: Path) -> Path:
    """Saves model and tokenizer in one directory: states of 16, vectors of 12, 8 tokens."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(path)
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
