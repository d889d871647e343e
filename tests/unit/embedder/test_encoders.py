"""Verifies the encoders: the real MiniLM, CLIP and UMT5 on tiny random models saved by transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, UMT5EncoderModel

from services.embedder.encoders import CLIPEncoder, Encoder, MiniLMEncoder, UMT5Encoder
from services.embedder.settings import parse_encoder
from tests.tiny_encoders import save_clip, save_tokenizer, save_umt5


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    return MiniLMEncoder()


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def umt5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_umt5(tmp_path_factory.mktemp("umt5"))


def check_port(encoder: Encoder, prompts: list[str]) -> None:
    """Asserts what the port requires of every encoder."""
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
    for e, read in zip(together, encoder.tokenize(prompts), strict=True):
        assert (read.tokens, read.offsets, read.truncated) == (e.tokens, e.offsets, e.truncated)
    assert encoder.encode([]) == encoder.tokenize([]) == []
    with pytest.raises(ValueError, match="prompt is empty"):
        encoder.encode(["  "])


def test_minilm_fulfils_the_port(minilm: MiniLMEncoder) -> None:
    assert (minilm.retrieval_dim, minilm.text_dim, minilm.max_tokens) == (384, 384, 256)
    check_port(minilm, ["a red circle moving left", "blue", "an ultramarine, tiny disc drifts"])


def test_minilm_ranks_prompts_by_similarity(minilm: MiniLMEncoder) -> None:
    red, blue, other = (
        e.retrieval for e in minilm.encode(["a red car at sunset", "a blue car at sunset", "tax law reform"])
    )
    assert red @ blue == pytest.approx(0.835, abs=0.05)
    assert red @ other < 0.2


def test_minilm_reports_truncation(minilm: MiniLMEncoder) -> None:
    long, short = minilm.encode(["red " * 400, "red " * 200])
    assert (len(long.tokens), long.truncated) == (256, True)
    assert (len(short.tokens), short.truncated) == (202, False)


def test_id_changes_with_the_weights(umt5_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    name, _, digest = UMT5Encoder(umt5_dir).id.partition("@")
    assert name == "umt5"
    assert len(digest) == 16
    UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder").save_pretrained(tmp_path / "same")
    save_tokenizer(tmp_path / "same", start=False)
    assert UMT5Encoder(tmp_path / "same").id == f"umt5@{digest}"
    other: Any = UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder")
    other.shared.weight.data += 1
    other.save_pretrained(tmp_path / "same")
    assert UMT5Encoder(tmp_path / "same").id != f"umt5@{digest}"


def test_clip_fulfils_the_port(clip_dir: Path) -> None:
    encoder = CLIPEncoder(clip_dir)
    assert (encoder.retrieval_dim, encoder.text_dim, encoder.max_tokens) == (12, 16, 8)
    check_port(encoder, ["a red circle", "blue"])
    cut = encoder.encode(["a red circle moving left a red circle"])[0]
    assert (len(cut.tokens), cut.tokens[-1], cut.truncated) == (8, "</s>", True)


@torch.no_grad()
def test_clip_retrieves_by_its_projection(clip_dir: Path) -> None:
    model: Any = CLIPTextModelWithProjection.from_pretrained(clip_dir)
    model.eval()
    want = model(input_ids=torch.tensor([[1, 4, 6, 2]])).text_embeds[0]
    got = CLIPEncoder(clip_dir).encode(["red circle"])[0].retrieval
    np.testing.assert_allclose(got, (want / want.norm()).numpy(), atol=1e-5)


@torch.no_grad()
def test_umt5_fulfils_the_port(umt5_dir: Path) -> None:
    encoder = UMT5Encoder(umt5_dir)
    assert (encoder.retrieval_dim, encoder.text_dim, encoder.max_tokens) == (16, 16, 512)
    check_port(encoder, ["a red circle", "blue"])
    model: Any = UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder")
    model.eval()
    want = model(input_ids=torch.tensor([[4, 6, 2]])).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode(["red circle"])[0].states, want.numpy(), atol=1e-5)


def test_sharded_weights_are_complete_or_rejected(umt5_dir: Path, tmp_path: Path) -> None:
    whole: Any = UMT5EncoderModel.from_pretrained(umt5_dir / "text_encoder")
    whole.save_pretrained(tmp_path, max_shard_size="2KB")
    save_tokenizer(tmp_path, start=False)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    sharded = UMT5Encoder(tmp_path)
    want = UMT5Encoder(umt5_dir).encode(["a red circle"])[0]
    np.testing.assert_array_equal(sharded.encode(["a red circle"])[0].states, want.states)
    (tmp_path / "left-over.safetensors").write_bytes(b"of another model")
    assert UMT5Encoder(tmp_path).id == sharded.id
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shards[1].name}"):
        UMT5Encoder(tmp_path)


def test_missing_weight_is_an_error(umt5_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(umt5_dir, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weight encoder\.final_layer_norm\.weight"):
        UMT5Encoder(tmp_path)


def test_bfloat16_is_near_float32(umt5_dir: Path) -> None:
    exact, half = UMT5Encoder(umt5_dir), UMT5Encoder(umt5_dir, torch.bfloat16)
    assert half.id == exact.id
    a, b = (encoder.encode(["a red circle"])[0].states for encoder in (exact, half))
    assert b.dtype == np.float32
    assert 0 < np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


def test_wrong_directories_are_named(clip_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        CLIPEncoder(tmp_path)
    with pytest.raises(ValueError, match="holds a 'clip"):
        UMT5Encoder(clip_dir)
    pickled = shutil.copytree(clip_dir, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        CLIPEncoder(pickled)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 28\n"


@pytest.mark.fault("misleading-refusals")
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, "Git LFS pointer"), (b"<!doctype html>", "web page"), (b"GGUF\3\0", "GGUF"), (b"", "is empty")],
)
def test_weights_of_another_kind_are_named(
    umt5_dir: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    shutil.copytree(umt5_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: is .*{message}|: {message}"):
        UMT5Encoder(tmp_path)


@pytest.mark.fault("misleading-refusals")
def test_original_release_given_as_text_encoder_is_named(tmp_path: Path) -> None:
    config = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "dim": 1536}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"token_embedding.weight": torch.ones(2)}, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(ValueError, match=r"holds a 't2v' model.*original release of Wan.*diffusers'"):
        UMT5Encoder(tmp_path)


@pytest.mark.fault("misleading-refusals")
def test_component_and_pickled_folders_given_as_text_encoder_are_named(
    clip_dir: Path, umt5_dir: Path, tmp_path: Path
) -> None:
    transformer = tmp_path / "transformer"
    transformer.mkdir()
    (transformer / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(ValueError, match="holds a 'WanTransformer3DModel' model, the encoder kind is 'umt5'"):
        UMT5Encoder(transformer)
    (transformer / "config.json").write_bytes(LFS)
    with pytest.raises(ValueError, match=r"config\.json: must hold a JSON object; it is a Git LFS pointer"):
        UMT5Encoder(transformer)
    pickled = shutil.copytree(clip_dir, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"it holds pytorch_model\.bin, which is a pickled"):
        CLIPEncoder(pickled)
    with pytest.raises(FileNotFoundError, match=r"text_encoder: holds no tokenizer \(tokenizer\.json"):
        UMT5Encoder(umt5_dir / "text_encoder")


@pytest.mark.fault("misleading-refusals")
def test_pipeline_without_text_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds no model: .*; it is the folder of a diffusers"):
        UMT5Encoder(tmp_path)


@pytest.mark.fault("misleading-refusals")
def test_file_given_as_the_directory_of_an_encoder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({"token_embedding.weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"is not a directory; it is a pickled.*: name the directory"):
        parse_encoder(f"umt5:{file}")
