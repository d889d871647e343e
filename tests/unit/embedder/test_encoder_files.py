"""Verifies what the files of an encoder may hold, and that its id changes with everything that it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from services.embedder.encoder_thread import load_encoder
from services.embedder.encoders import CLIPEncoder, UMT5Encoder
from services.embedder.encoders.cleaning import clean_prompt
from services.embedder.settings import EncoderSpec
from tests.tiny_encoders import save_tokenizer, save_umt5

QUERY = "encoder.block.0.layer.0.SelfAttention.q"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_umt5(tmp_path_factory.mktemp("umt5"))


@pytest.fixture
def umt5(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "umt5")


def change_weights(directory: Path, change: Callable[[Weights], object]) -> Path:
    file = next(directory.rglob("model.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return directory


def quantize_to_fp8(weights: Weights) -> None:
    """Stores one matrix in the layout of ComfyUI's scaled files."""
    weights[f"{QUERY}.weight"] = (weights[f"{QUERY}.weight"] / 0.01).to(torch.float8_e4m3fn)
    weights[f"{QUERY}.scale_weight"] = torch.tensor(0.01)
    weights["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)


def quantize_to_int8(weights: Weights) -> None:
    """Stores one matrix in the layout of bitsandbytes."""
    weight = weights[f"{QUERY}.weight"]
    scale = weight.abs().amax(1)
    weights[f"{QUERY}.weight"] = (weight / scale[:, None] * 127).round().to(torch.int8)
    weights[f"{QUERY}.SCB"] = scale


def set_nan(weights: Weights) -> None:
    weights[f"{QUERY}.weight"][0, 0] = torch.nan


def untie(weights: Weights) -> None:
    weights["encoder.embed_tokens.weight"] = 2 * weights["shared.weight"]


@pytest.mark.fault("text-encoder-weights")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantize_to_fp8, rf"{QUERY}\.weight: type F8_E4M3, expected F32 or F16 or BF16"),
        (quantize_to_int8, rf"{QUERY}\.weight: type I8, expected"),
        (
            lambda w: w.update({f"{QUERY}.weight": w[f"{QUERY}.weight"].double()}),
            rf"{QUERY}\.weight: type F64",
        ),
        (lambda w: w.update({"scale": torch.ones(1)}), "tensor scale: no such parameter in this encoder"),
        (
            lambda w: w.update({f"{QUERY}.lora_A.weight": torch.ones(2, 16)}),
            rf"{QUERY}\.lora_A\.weight: no such parameter",
        ),
        (lambda w: w.pop("shared.weight"), r"lacks the weight .*(shared|embed_tokens)\.weight"),
        (
            lambda w: w.update({f"{QUERY}.weight": torch.ones(3, 3)}),
            rf"{QUERY}\.weight: shape \[3, 3\], expected \[16, 16\]",
        ),
        (untie, r"shared\.weight: differs from encoder\.embed_tokens\.weight"),
        pytest.param(
            set_nan, rf"{QUERY}\.weight: holds NaN or infinity", marks=pytest.mark.fault("diverging-model")
        ),
    ],
)
def test_weights_of_another_kind_are_refused_by_tensor(
    umt5: Path, change: Callable[[Weights], object], message: str
) -> None:
    change_weights(umt5, change)
    with pytest.raises(ValueError, match=message):
        UMT5Encoder(umt5)


@pytest.mark.fault("text-encoder-weights")
@pytest.mark.parametrize("method", ["bitsandbytes", "quanto", "fp8"])
def test_stated_quantisation_is_refused(umt5: Path, method: str) -> None:
    file = umt5 / "text_encoder" / "config.json"
    config = json.loads(file.read_bytes()) | {"quantization_config": {"quant_method": method}}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"quantised \({method}\), which is not supported: use the float16"):
        UMT5Encoder(umt5)


@pytest.mark.fault("text-encoder-weights")
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update({"encoder.embed_tokens.weight": w["shared.weight"].clone()}),
        lambda w: w.update({"encoder.embed_tokens.weight": w.pop("shared.weight")}),
        lambda w: w.update({"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(3)}),
        lambda w: w.update({"lm_head.weight": torch.ones(3)}),
    ],
)
def test_tied_embeddings_and_a_decoder_are_accepted(
    saved: Path, umt5: Path, change: Callable[[Weights], object]
) -> None:
    change_weights(umt5, change)
    [got], [want] = (UMT5Encoder(path).encode(["a red circle"]) for path in (umt5, saved))
    np.testing.assert_array_equal(got.states, want.states)


@pytest.mark.fault("text-encoder-weights")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_accepted(saved: Path, umt5: Path, dtype: torch.dtype) -> None:
    change_weights(umt5, lambda w: w.update({name: tensor.to(dtype) for name, tensor in w.items()}))
    [got], [want] = (UMT5Encoder(path).encode(["a red circle"]) for path in (umt5, saved))
    assert 0 < np.linalg.norm(got.states - want.states) < 0.02 * np.linalg.norm(want.states)


@pytest.mark.fault("text-encoder-weights")
def test_text_part_of_a_whole_clip_is_accepted(tmp_path: Path) -> None:
    text = {
        "vocab_size": 10, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 8, "projection_dim": 12, "eos_token_id": 2,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 32}
    whole: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, start=True)
    change_weights(
        tmp_path, lambda w: w.update({"text_model.embeddings.position_ids": torch.arange(8)[None]})
    )
    assert CLIPEncoder(tmp_path).encode(["a red circle"])[0].retrieval.shape == (12,)


@pytest.mark.fault("partial-model")
def test_tokenizer_of_another_encoder_is_refused(umt5: Path) -> None:
    file = umt5 / "tokenizer" / "tokenizer.json"
    plain = json.loads(file.read_bytes())
    plain["model"]["vocab"] |= {f"word{i}": 10 + i for i in range(5)}
    file.write_text(json.dumps(plain))
    with pytest.raises(
        ValueError, match="tokenizer has 15 tokens, the model 10: it is the tokenizer of another"
    ):
        UMT5Encoder(umt5)
    shutil.rmtree(umt5 / "tokenizer")
    shutil.copytree(umt5.parent / "umt5" / "text_encoder", umt5 / "tokenizer")
    save_tokenizer(umt5 / "tokenizer", start=False)
    settings = umt5 / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_bytes()) | {"eos_token": "<s>"}))
    with pytest.raises(ValueError, match="tokenizer's end token is 1, the model's 2"):
        UMT5Encoder(umt5)


def rewrite_json(name: str, **values: object) -> Callable[[Path], object]:
    def rewrite(directory: Path) -> None:
        file = next(directory.rglob(name))
        file.write_text(json.dumps(json.loads(file.read_bytes()) | values))

    return rewrite


def change_merges(directory: Path) -> None:
    file = directory / "tokenizer" / "tokenizer.json"
    plain = json.loads(file.read_bytes())
    vocabulary = plain["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    file.write_text(json.dumps(plain))


@pytest.mark.fault("identity")
@pytest.mark.parametrize(
    ("change", "same"),
    [
        (rewrite_json("config.json", relative_attention_max_distance=64), False),
        (rewrite_json("config.json", layer_norm_epsilon=1e-5), False),
        (rewrite_json("config.json", transformers_version="4.0", _name_or_path="x"), True),
        (rewrite_json("tokenizer_config.json", padding_side="left"), False),
        (change_merges, False),
        (lambda d: (d / "text_encoder" / "README.md").write_text("notes"), True),
    ],
)
def test_id_changes_with_every_file_that_the_encoder_reads(
    saved: Path, umt5: Path, change: Callable[[Path], object], same: bool
) -> None:
    change(umt5)
    assert (UMT5Encoder(umt5).id == UMT5Encoder(saved).id) == same


@pytest.mark.fault("identity")
def test_id_changes_with_the_preparation_of_the_text(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = UMT5Encoder(saved).id
    monkeypatch.setattr(UMT5Encoder, "procedure", "cleaned otherwise; mean of the states")
    assert UMT5Encoder(saved).id != before


@pytest.mark.fault("identity")
def test_version_1_of_the_cleaning_is_unchanged() -> None:
    """If a result differs, raise the version in `UMT5Encoder.procedure`: the vectors are not comparable."""
    results = {
        "  a  small\tgreen square \n runs ": "a small green square runs",
        "a cat’s “red” toy": 'a cat\'s "red" toy',
        "cats &amp;amp; dogs &amp;lt; 2": "cats & dogs < 2",
        "a&nbsp;cat": "a cat",
        "a sentÃªnce": "a sentênce",
        "ﬁve ｄｏｇｓ": "five dogs",
    }
    assert {prompt: clean_prompt(prompt) for prompt in results} == results
    assert "version 1;" in UMT5Encoder.procedure


@pytest.mark.fault("diverging-model")
def test_encoder_that_diverges_is_refused_at_start(umt5: Path) -> None:
    name = "encoder.final_layer_norm.weight"
    change_weights(umt5, lambda w: w.update({name: torch.full_like(w[name], 3e38)}))
    with pytest.raises(ValueError, match=r"umt5@.*: the encoder gave NaN or infinity in float32"):
        load_encoder(EncoderSpec("umt5", umt5), torch.float32, "cpu")


@pytest.mark.fault("diverging-model")
def test_prompt_on_which_an_encoder_diverges_fails_with_the_cause(umt5: Path) -> None:
    encoder = UMT5Encoder(umt5)
    encoder._model.shared.weight.data[4] = torch.inf  # "red"
    assert encoder.encode(["a blue circle"])[0].states.shape == (4, 16)
    with pytest.raises(ChorusError) as caught:
        encoder.encode(["a red circle"])
    assert errors.reason_name(caught.value.reason) == "MODEL_DIVERGED"
    assert caught.value.metadata == {"encoder_id": encoder.id, "dtype": "float32"}
