"""CLIP and UMT5 encoders, loaded from a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from chorus_rpc.file_kinds import describe_file, describe_folder
from torch import Tensor
from transformers import CLIPTextModelWithProjection, UMT5EncoderModel

from services.embedder.encoders.cleaning import clean_prompt
from services.embedder.encoders.huggingface import HuggingFaceEncoder, load_model, mean_pool

# Files of which transformers needs one for a tokenizer.
_TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")


class DirectoryEncoder(HuggingFaceEncoder):
    """Text encoder from a directory with model and tokenizer, or from the directory of a diffusers pipeline.

    Args:
        root: directory with config.json, or with `text_encoder/` and `tokenizer/` as diffusers saves them.
        dtype: floating-point type of the computation; states are always float32.

    Raises FileNotFoundError or ValueError that names the missing or invalid part.
    """

    loader: Any
    model_types: tuple[str, ...]  # accepted values of config.json
    token_limit: int | None = None  # None: the model's own limit
    unused: tuple[str, ...]  # prefixes of the other parts of the model that a release may contain

    def __init__(self, root: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        model_dir, tokenizer_dir = _find_part(root, "text_encoder"), _find_part(root, "tokenizer")
        kind = describe_folder(root)
        hint = f"; it {kind}" if kind else ""
        if not (model_dir / "config.json").is_file():
            raise FileNotFoundError(
                f"{root}: holds no model: found neither config.json nor text_encoder/{hint}"
            )
        found = _read_model_type(model_dir / "config.json")
        if found not in self.model_types:
            raise ValueError(f"{model_dir}: holds a {found!r} model, the encoder kind is {self.kind!r}{hint}")
        if not any((tokenizer_dir / name).is_file() for name in _TOKENIZERS):
            raise FileNotFoundError(
                f"{tokenizer_dir}: holds no tokenizer (tokenizer.json or spiece.model): put it there, or in "
                f"{root / 'tokenizer'}{hint}"
            )
        model = load_model(self.loader, model_dir, dtype, device, self.unused)
        limit = self.token_limit or model.config.max_position_embeddings
        super().__init__(self.kind, model_dir, tokenizer_dir, model, max_tokens=limit)

    def _check_tokenizer(self, directory: Path) -> None:
        super()._check_tokenizer(directory)
        config, end = self._model.config, self._tokenizer.eos_token_id
        # The configuration of OpenAI's CLIP states another end token than the last of the vocabulary.
        expected = {config.eos_token_id, config.vocab_size - 1}
        if end not in expected:
            raise ValueError(
                f"{directory}: the tokenizer's end token is {end}, the model's {config.eos_token_id}: "
                f"it is the tokenizer of another encoder"
            )


def _read_model_type(config: Path) -> str | None:
    """Returns the type of model that a config.json names; diffusers' name the class instead."""
    try:
        found = json.loads(config.read_bytes())
        name = found.get("model_type") or found.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: must hold a JSON object; it {describe_file(config)}") from error
    return name if isinstance(name, str) else None


def _find_part(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


class CLIPEncoder(DirectoryEncoder):
    """CLIP's text encoder. Its retrieval vector is the projected end-of-text embedding."""

    kind = "clip"
    loader: Any = CLIPTextModelWithProjection
    model_types = ("clip", "clip_text_model")
    unused = ("vision_model.", "visual_projection.", "logit_scale")
    procedure = "text as it is; projected end-of-text state"

    def __init__(self, root: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        super().__init__(root, dtype, device)
        self.retrieval_dim = int(self._model.config.projection_dim)

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out = self._model(input_ids=ids, attention_mask=mask)
        return out.last_hidden_state, out.text_embeds


class UMT5Encoder(DirectoryEncoder):
    """Wan's text encoder: its states are those of `WanPipeline.encode_prompt` before padding.

    Its retrieval vector is the mean of its states.
    """

    kind = "umt5"
    loader: Any = UMT5EncoderModel
    model_types = ("umt5",)
    unused = ("decoder.", "lm_head.")
    procedure = "cleaned as in Wan's training, version 1; mean of the states"
    token_limit = 512  # the length that Wan was trained with; UMT5 itself has no limit

    def _prepare(self, prompt: str) -> str:
        return clean_prompt(prompt)

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states, mean_pool(states, mask)
