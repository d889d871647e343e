"""Encoders: MiniLM for real, CLIP and UMT5 on tiny random models that transformers saves itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from services.embedder.encoders import Encoder, MiniLMEncoder, TransformersEncoder

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue", "circle", "moving", "left", "a"]


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    return MiniLMEncoder()


def save_tokenizer(path: Path, start: bool) -> None:
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


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory with model and tokenizer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(path)
    save_tokenizer(path, start=True)
    return path


@pytest.fixture(scope="module")
def umt5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline directory as diffusers lays it out."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("umt5")
    config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    save_tokenizer(path / "tokenizer", start=False)
    return path


def check_port(encoder: Encoder, prompts: list[str]) -> None:
    """What every encoder promises."""
    together = encoder.encode(prompts)
    assert len(together) == len(prompts)
    for prompt, e in zip(prompts, together, strict=True):
        length = len(e.tokens)
        assert e.states.shape == (length, encoder.text_dim)
        assert e.retrieval.shape == (encoder.retrieval_dim,)
        assert e.states.dtype == e.retrieval.dtype == np.float32
        assert len(e.offsets) == length <= encoder.max_tokens
        assert np.linalg.norm(e.retrieval) == pytest.approx(1, abs=1e-5)
        words = [prompt[a:b] for a, b in e.offsets if b > a]
        assert "".join(words).replace(" ", "").lower() == prompt.replace(" ", "").lower()
        alone = encoder.encode([prompt])[0]  # batching changes nothing
        np.testing.assert_allclose(alone.states, e.states, atol=1e-4)
        np.testing.assert_allclose(alone.retrieval, e.retrieval, atol=1e-4)
    assert encoder.encode([]) == []
    with pytest.raises(ValueError, match="prompt is empty"):
        encoder.encode(["  "])


def test_minilm_keeps_the_port(minilm: MiniLMEncoder) -> None:
    assert (minilm.retrieval_dim, minilm.text_dim, minilm.max_tokens) == (384, 384, 256)
    check_port(minilm, ["a red circle moving left", "blue", "an ultramarine, tiny disc drifts"])


def test_minilm_knows_likeness(minilm: MiniLMEncoder) -> None:
    red, blue, other = (
        e.retrieval for e in minilm.encode(["a red car at sunset", "a blue car at sunset", "tax law reform"])
    )
    assert red @ blue == pytest.approx(0.835, abs=0.05)
    assert red @ other < 0.2


def test_minilm_says_when_it_cuts(minilm: MiniLMEncoder) -> None:
    long, short = minilm.encode(["red " * 400, "red " * 200])
    assert (len(long.tokens), long.truncated) == (256, True)
    assert (len(short.tokens), short.truncated) == (202, False)


def test_the_id_changes_with_the_weights(umt5_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    name, _, digest = TransformersEncoder(umt5_dir, "umt5").id.partition("@")
    assert name == "umt5"
    assert len(digest) == 16
    UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder").save_pretrained(tmp_path / "same")
    save_tokenizer(tmp_path / "same", start=False)
    assert TransformersEncoder(tmp_path / "same", "umt5").id == f"umt5@{digest}"
    other: Any = UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder")
    other.shared.weight.data += 1
    other.save_pretrained(tmp_path / "same")
    assert TransformersEncoder(tmp_path / "same", "umt5").id != f"umt5@{digest}"


def test_clip_keeps_the_port(clip_dir: Path) -> None:
    encoder = TransformersEncoder(clip_dir, "clip")
    assert (encoder.retrieval_dim, encoder.text_dim, encoder.max_tokens) == (12, 16, 8)
    check_port(encoder, ["a red circle", "blue"])
    cut = encoder.encode(["a red circle moving left a red circle"])[0]
    assert (len(cut.tokens), cut.tokens[-1], cut.truncated) == (8, "</s>", True)


@torch.no_grad()
def test_clip_retrieves_by_its_projection(clip_dir: Path) -> None:
    model: Any = CLIPTextModelWithProjection.from_pretrained(clip_dir)
    model.eval()
    want = model(input_ids=torch.tensor([[1, 4, 6, 2]])).text_embeds[0]
    got = TransformersEncoder(clip_dir, "clip").encode(["red circle"])[0].retrieval
    np.testing.assert_allclose(got, (want / want.norm()).numpy(), atol=1e-5)


@torch.no_grad()
def test_umt5_keeps_the_port(umt5_dir: Path) -> None:
    encoder = TransformersEncoder(umt5_dir, "umt5")
    assert (encoder.retrieval_dim, encoder.text_dim, encoder.max_tokens) == (16, 16, 512)
    check_port(encoder, ["a red circle", "blue"])
    model: Any = UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder")
    model.eval()
    want = model(input_ids=torch.tensor([[4, 6, 2]])).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode(["red circle"])[0].states, want.numpy(), atol=1e-5)


def test_wrong_directories_are_named(clip_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        TransformersEncoder(tmp_path / "none", "clip")
    with pytest.raises(ValueError, match="holds a 'clip"):
        TransformersEncoder(clip_dir, "umt5")
