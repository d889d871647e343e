"""Tests of model files: invalid ones are rejected by field, and a valid one loads and denoises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2
from safetensors.torch import save_file

from services.contract.identity import identity_digest
from services.denoiser.checkpoint.config import read_network_sizes
from services.denoiser.checkpoint.lora import Lora
from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.device_thread import DeviceThread
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.model.spec import Bound, ModelSpec, Source, SpecError, Transformer, load_spec
from services.denoiser.model_registry import ModelRegistry
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import WanConfig, WanTransformer
from services.denoiser.request import DenoiseJob
from services.scheduler.peers.messages import build_latent_identity
from tests.processes import ROOT

SPEC = """
id = "tiny"
[weights]
file = "tiny.safetensors"
sha256 = "{sha256}"
[transformer]
architecture = "wan"
prediction = "{prediction}"
in_channels = 33
out_channels = 24
patch_size = [1, 2, 2]
heads = 2
head_dim = 12
ffn_dim = 32
layers = 2
text_dim = 10
position_order = 2
[text]
encoder_id = "some@0123456789abcdef"
max_tokens = 6
attend_padding = {attend_padding}
[codec]
kind = "space-to-depth"
temporal = 2
spatial = 2
[schedule]
sigmas = [1.0, 0.9375, 0.8333333333333334, 0.625, 0.0]
shift = 5.0
[bounds]
frames = {{ min = 4, max = 8, multiple = 2 }}
height = {{ min = 8, max = 16, multiple = 4 }}
width = {{ min = 8, max = 16, multiple = 4 }}
steps = {{ min = 1, max = 8 }}
[video]
frames = 4
height = 8
width = 12
fps = 8
upscale = 4
"""

Make = Callable[..., Path]


def text(sha256: str = "0" * 64, prediction: str = "velocity", attend_padding: str = "false") -> str:
    return SPEC.format(sha256=sha256, prediction=prediction, attend_padding=attend_padding)


def parse(tmp_path: Path, content: str) -> ModelSpec:
    path = tmp_path / "model.toml"
    path.write_text(content)
    return load_spec(path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a random model and its file."""

    def write(**options: str) -> Path:
        torch.manual_seed(0)
        network = WanTransformer(parse(tmp_path, text(**options)).transformer.config())
        save_file(network.state_dict(), tmp_path / "tiny.safetensors")
        path = tmp_path / "model.toml"
        path.write_text(text(sha256=weights_digest(tmp_path / "tiny.safetensors"), **options))
        return path

    return write


def test_shipped_model_file_is_valid() -> None:
    spec = load_spec(ROOT / "models" / "shapes" / "model.toml")
    assert spec.id == "shapes"
    assert spec.schedule.sigmas == pytest.approx((1.0, 0.9375, 0.8333, 0.625, 0.0), abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "tiny"', 'id = "Tiny Model"', "id: "),
        ("heads = 2", "heads = 0", "transformer.heads: "),
        ("heads = 2", "heads = 2\nunknown = 1", "transformer.unknown: "),
        ("layers = 2", "", "transformer.layers: Field required"),
        ("0.9375, 0.8333333333333334", "0.8, 0.9", "schedule: .*strictly decreasing"),
        ("0.625, 0.0]", "0.625]", "schedule: .*must end at 0"),
        ("in_channels = 33", "in_channels = 24", "in_channels must be latents .* 33"),
        ("out_channels = 24", "out_channels = 16", "out_channels must be the codec's 24"),
        ("frames = 4\n", "frames = 5\n", "video.frames must be 4 to 8 in steps of 2, not 5"),
        ("width = 12", "width = 20", "video.width must be 8 to 16"),
        ("max = 8 }", "max = 3 }", "steps must be 1 to 3, not 4"),
        ("sha256 = ", "sha256 = 5 #", "weights.sha256: "),
        ("sha256 = ", "# ", "weights: .*sha256: missing; it is optional only"),
        ('kind = "space-to-depth"', 'kind = "mp4"', "codec: .*'space-to-depth', 'wan-vae'"),
        ('architecture = "wan"', 'architecture = "wan"\nsizes = "none.json"', r"none\.json: no such file"),
        ('architecture = "wan"', 'architecture = "wan"\ndtype = "int8"', "transformer.dtype: "),
        ("[text]", '[[adapters]]\nid = "A b"\nfile = "x"\nsha256 = ""\n[text]', "adapters.0.id: "),
        ("[codec]", "[codec", "not TOML"),
    ],
)
def test_invalid_file_is_rejected_by_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in text()
    with pytest.raises(SpecError, match=f"model.toml: (?s:.*){message}"):
        parse(tmp_path, text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "fixed"),
    [
        (f"hf://team/wan@{'0' * 40}", True),
        (f"hf://team/wan@{'0' * 40}/transformer", True),
        (f"hf://team/wan@{'0' * 41}/transformer", False),
        ("hf://team/wan@main/transformer", False),
        ("hf://team/wan/transformer", False),
        ("transformer", False),
    ],
)
def test_only_a_commit_needs_no_digest(file: str, fixed: bool) -> None:
    assert Source(file=file, sha256="0" * 64).sha256 == "0" * 64
    if fixed:
        assert Source(file=file).sha256 is None
    else:
        with pytest.raises(ValueError, match="sha256: missing"):
            Source(file=file)


@pytest.mark.fault("number-promises")
@pytest.mark.parametrize(
    ("old", "valid", "invalid", "message"),
    [
        ("fps = 8", "fps = 0.001", "fps = 0.0009", r"video\.fps: .* 0\.001"),
        ("fps = 8", "fps = 240", "fps = 240.1", r"video\.fps: .* 240"),
        ("max = 8 }}", "max = 200 }}", "max = 201 }}", r"bounds\.steps\.max: must be at most 200"),
        ("shift = 5.0", "shift = 1e9", "shift = inf", r"schedule\.shift"),
        ("shift = 5.0", "shift = 1e-9", "shift = nan", r"schedule\.shift"),
        (
            "shift = 5.0",
            "shift = 1.0",
            "shift = 1e18",
            r"schedule\.shift: 1e\+18 gives no schedule of 8 steps",
        ),
        ("max_tokens = 6", "max_tokens = 4294967295", "max_tokens = 4294967296", r"text\.max_tokens"),
        ("max_tokens = 6", "max_tokens = 1", "max_tokens = 0", r"text\.max_tokens"),
    ],
)
def test_numbers_of_a_model_file_hold_at_both_edges(
    tmp_path: Path, old: str, valid: str, invalid: str, message: str
) -> None:
    old, valid, invalid = (part.replace("}}", "}") for part in (old, valid, invalid))
    if old.startswith("max"):
        old, valid, invalid = (
            f"steps = {{ min = 1, {part}" if "}" in part else part for part in (old, valid, invalid)
        )
    assert old in text()
    parse(tmp_path, text().replace(old, valid))
    with pytest.raises(SpecError, match=message):
        parse(tmp_path, text().replace(old, invalid))


@pytest.mark.fault("sampler")
def test_sampler_is_stated_by_the_model_file(tmp_path: Path) -> None:
    assert parse(tmp_path, text()).schedule.sampler == "euler"
    stated = text().replace("shift = 5.0", 'shift = 5.0\nsampler = "renoise"')
    assert parse(tmp_path, stated).schedule.sampler == "renoise"
    with pytest.raises(SpecError, match=r"schedule\.sampler: .*'euler' or 'renoise'"):
        parse(tmp_path, stated.replace("renoise", "ancestral"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml: cannot be read"):
        load_spec(tmp_path / "none.toml")


def test_bounds_describe_invalid_values() -> None:
    bound = Bound(min=8, max=16, multiple=4)
    assert [n for n in range(1, 30) if bound.describe_fault(n) is None] == [8, 12, 16]
    assert bound.describe_fault(9) == "must be 8 to 16 in steps of 4, not 9"
    assert Bound(min=3, max=3).describe_fault(4) == "must be 3, not 4"


def run(model: LoadedModel, seed: int = 0, frames: int = 4, length: int = 5) -> torch.Tensor:
    states = torch.randn(length, 10, generator=torch.Generator().manual_seed(9))
    prepared = model.prepare_text(states)
    noise = model.noise(seed, model.latent_shape(frames, 8, 12))
    predictor, sigmas = Predictor.eager(model), model.spec.schedule.sigmas
    *_, clean = sample(lambda x, s: predictor.latent_velocity(x, s, prepared), noise, sigmas)
    return model.decode(clean)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_loaded_model_generates_videos(make: Make, prediction: str) -> None:
    model = LoadedModel.load(make(prediction=prediction))
    video = run(model)
    assert video.shape == (3, 4, 8, 12)
    assert torch.equal(video, run(model))
    assert not torch.equal(video, run(model, seed=1))
    assert run(model, frames=8).shape == (3, 8, 8, 12)


def test_velocity_of_data_prediction_leads_to_the_prediction(make: Make) -> None:
    """Verifies that x - sigma * v is the network's output at every noise level."""
    model = LoadedModel.load(make(prediction="data"))
    predictor = Predictor.eager(model)
    prepared = model.prepare_text(torch.zeros(3, 10))
    x = model.noise(0, (24, 2, 4, 6))
    outputs = [x - s * predictor.latent_velocity(x, s, prepared) for s in (1.0, 0.5)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert all(d.std() < x.std() * 3 for d in outputs)


def test_padding_is_attended_only_if_configured(make: Make) -> None:
    kv = LoadedModel.load(make(attend_padding="true")).prepare_text(torch.ones(2, 10))
    assert kv[0][0].shape[2] == 6
    kv = LoadedModel.load(make(attend_padding="false")).prepare_text(torch.ones(2, 10))
    assert kv[0][0].shape[2] == 2
    kv = LoadedModel.load(make(attend_padding="false")).prepare_text(torch.ones(9, 10))
    assert kv[0][0].shape[2] == 6  # tokens past max_tokens are dropped


def test_invalid_shapes_are_rejected_by_name(make: Make) -> None:
    model = LoadedModel.load(make())
    with pytest.raises(ValueError, match="frames: must be 4 to 8 in steps of 2, not 5"):
        model.latent_shape(5, 8, 8)
    with pytest.raises(ValueError, match="height: must be"):
        model.latent_shape(4, 64, 8)
    for shape in ((0, 10), (4, 11), (10,)):
        with pytest.raises(ValueError, match="token_states: must be"):
            model.prepare_text(torch.zeros(shape))


def test_weights_with_another_digest_are_rejected(make: Make) -> None:
    path = make()
    path.write_text(text(sha256="1" * 64))
    with pytest.raises(WeightsError, match="not the weights of this model"):
        LoadedModel.load(path)


RELEASED = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "patch_size": [1, 2, 2],
    "rope_max_seq_len": 1024,
}
ORIGINAL = {
    "_class_name": "WanModel",
    "model_type": "t2v",
    "dim": 1536,
    "num_heads": 12,
    "in_dim": 16,
    "out_dim": 16,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "num_layers": 30,
    "text_len": 512,
    "eps": 1e-6,
}


def read_sizes(tmp_path: Path, config: object) -> dict[str, Any]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return read_network_sizes(path)


@pytest.mark.parametrize("config", [RELEASED, ORIGINAL])
def test_released_configs_give_the_sizes_of_wan(tmp_path: Path, config: dict[str, Any]) -> None:
    assert (
        WanConfig(**Transformer(architecture="wan", **read_sizes(tmp_path, config)).config().__dict__)
        == WanConfig()
    )


def test_fields_of_the_model_file_override_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED | {"num_attention_heads": 2}))
    lines = [line for line in text().splitlines() if not line.startswith(("patch_size", "heads", "layers"))]
    spec = parse(tmp_path, "\n".join(lines).replace('"wan"', '"wan"\nsizes = "config.json"'))
    assert (spec.transformer.heads, spec.transformer.layers, spec.transformer.head_dim) == (2, 30, 12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RELEASED | {"_class_name": "WanVACETransformer3DModel"}, "_class_name: must be"),
        (RELEASED | {"image_dim": 1280}, "image_dim: must be None, not 1280: only text-to-video"),
        (RELEASED | {"added_kv_proj_dim": 5120}, "added_kv_proj_dim"),
        (RELEASED | {"cross_attn_norm": False}, "cross_attn_norm: must be True"),
        (RELEASED | {"qk_norm": "rms_norm"}, "qk_norm: must be 'rms_norm_across_heads'"),
        ({k: v for k, v in RELEASED.items() if k != "ffn_dim"}, "ffn_dim: missing"),
        (ORIGINAL | {"model_type": "i2v"}, "model_type: must be t2v or ti2v, not 'i2v'"),
        (ORIGINAL | {"num_heads": 11}, "dim: must be a multiple of num_heads = 11"),
        ([], "must hold a JSON object"),
    ],
)
def test_configs_of_other_networks_are_rejected(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_sizes(tmp_path, config)


def test_adapters_are_part_of_the_identity(make: Make, tmp_path: Path) -> None:
    """Verifies that the denoiser's description, the admitted identity and the scheduler's identity agree."""
    path, file = make(), tmp_path / "style.safetensors"
    save_file({"diffusion_model.head.head.diff_b": torch.ones(96)}, file)
    plain = LoadedModel.load(path)
    entry = f'[[adapters]]\nid = "style"\nfile = "style.safetensors"\nsha256 = "{weights_digest(file)}"\n'
    found = {}
    digest = Lora.load(
        file, {k: v.shape for k, v in plain.transformer.state_dict().items()}, id="style"
    ).adapter.digest
    for scale in (0.5, 1.0):
        path.write_text(path.read_text().split("[[")[0] + entry + f"scale = {scale}\n")
        model = LoadedModel.load(path)
        info = ModelRegistry([Predictor.eager(model)], DeviceThread(1)).describe()[0]
        assert [(a.adapter_id, a.digest, a.scale) for a in info.adapters] == [("style", digest, scale)]
        assert info.weights_digest == plain.weights_digest == weights_digest(tmp_path / "tiny.safetensors")
        job = DenoiseJob(
            "g",
            model,
            (24, 2, 4, 6),
            (1.0, 0.0),
            0,
            np.zeros((1, 10), np.float32),
            plan_pb2.Plan(),
            "r",
            1,
            None,
        )
        requested = build_latent_identity(
            scheduler_pb2.GenerationSpec(
                shape=video_pb2.VideoShape(frames=4, height=8, width=12),
                schedule=latents_pb2.Schedule(sigmas=(1.0, 0.0)),
            ),
            info,
        )
        assert job.identity == requested
        found[scale] = identity_digest(requested)
        assert not torch.equal(run(model), run(plain))
    assert found[0.5] != found[1.0]


def test_network_computes_in_its_dtype_and_latents_are_float32(make: Make) -> None:
    path = make()
    path.write_text(path.read_text().replace('"wan"', '"wan"\ndtype = "bfloat16"'))
    exact, rounded = LoadedModel.load(path, dtype=torch.float32), LoadedModel.load(path)
    kinds = {name: p.dtype for name, p in rounded.transformer.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == kinds["patch_embedding.weight"] == torch.bfloat16
    assert kinds["blocks.0.norm2.weight"] == kinds["scale_shift_table"] == torch.float32
    text, x = torch.ones(3, 10), exact.noise(0, (24, 2, 4, 6))
    near, want = (Predictor.eager(m).latent_velocity(x, 0.5, m.prepare_text(text)) for m in (rounded, exact))
    assert near.dtype == torch.float32
    assert 0 < (near - want).norm() / want.norm() < 0.02
