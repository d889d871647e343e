"""Tests of the scaling of adapters: every place that declares it is read, and contradictions are rejected."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import lora_error, parity
from services.denoiser.checkpoint.lora import Lora, check_overlap
from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.wan import WanConfig, WanTransformer

pytestmark = pytest.mark.fault("adapter-scaling")

CONFIG = WanConfig(in_channels=4, out_channels=4, heads=2, head_dim=6, ffn_dim=8, layers=1, text_dim=5)
SHAPES = {name: tensor.shape for name, tensor in WanTransformer(CONFIG).state_dict().items()}
Q = "blocks.0.attn1.to_q"
RANK = 4
FACTORS = {f"{Q}.lora_A.weight": torch.ones(RANK, 12), f"{Q}.lora_B.weight": torch.ones(12, RANK)}
PEFT = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16}
PREFIXED = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 16})
OWN = '{"conv_alpha": "2"}'


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity.save_checkpoint(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("form", lora_error.FORMS)
def test_network_equals_that_of_peft_and_diffusers(model_file: Path, tmp_path: Path, form: str) -> None:
    assert lora_error.measure_form(lora_error.FORMS[form], model_file, tmp_path / "adapter") <= 1e-6


def save(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    name: str = "lora.safetensors",
) -> Path:
    """Saves factors whose product is `RANK` everywhere, and settings next to them."""
    save_file(
        FACTORS | {f"{Q}.{key}": value for key, value in (tensors or {}).items()},
        folder / name,
        dict(notes or {}),
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def read_factor(path: Path) -> float:
    """Returns the factor with which the product is merged."""
    merged = Lora.load(path, SHAPES, id="style").merge(f"{Q}.weight", torch.zeros(12, 12))
    assert torch.equal(merged, merged[:1, :1].expand(12, 12))
    return float(merged[0, 0]) / RANK


@pytest.mark.parametrize(
    ("config", "notes", "tensors", "factor"),
    [
        (None, None, {}, 1),
        (PEFT, None, {}, 4),
        (PEFT | {"use_rslora": True}, None, {}, 8),
        (PEFT | {"alpha_pattern": {"to_k": 2, "attn1.to_q": 2}}, None, {}, 0.5),
        (PEFT | {"r": 8, "rank_pattern": {"to_q": RANK}}, None, {}, 4),
        (PEFT | {"lora_alpha": 2.5, "lora_dropout": 0.1, "target_modules": ["to_q"]}, None, {}, 0.625),
        (PEFT | {"init_lora_weights": "gaussian", "megatron_core": "megatron.core"}, None, {}, 4),
        (
            None,
            {"lora_adapter_metadata": PREFIXED},
            {},
            4,
        ),
        (None, {"lora_adapter_metadata": json.dumps(PEFT | {"use_rslora": True})}, {}, 8),
        (None, {"lora_adapter_metadata": "{}"}, {}, 1),
        (None, {"lora_config": json.dumps({"r": 4, "lora_alpha": 8, "init_lora_weights": True})}, {}, 2),
        (None, {"ss_network_dim": "4", "ss_network_alpha": "4.0"}, {}, 1),
        # Notes without alpha tensors do not say whether the factors contain alpha; a place that does counts.
        (PEFT, {"ss_network_dim": "4", "ss_network_alpha": "1"}, {}, 4),
        (PEFT, {"ss_network_args": OWN, "ss_network_alpha": "1"}, {}, 4),
        (None, {"lora_alpha": "8", "rank": "4", "ss_network_alpha": "1"}, {}, 2),
        (None, {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, {}, 1),
        (None, {"ss_network_dim": "4", "ss_network_alpha": "None"}, {}, 1),
        (None, {"lora_alpha": "2", "rank": "4"}, {}, 0.5),
        (None, {"lora_alpha": "16", "use_rslora": "true"}, {}, 8),
        (None, {"format": "pt", "software": "trainer"}, {}, 1),
        (None, None, {"alpha": torch.tensor(2.0)}, 0.5),
        (None, None, {"lora_alpha": torch.tensor([8], dtype=torch.int64)}, 2),
        (None, {"ss_network_alpha": "2", "ss_network_dim": "4"}, {"alpha": torch.tensor(2.0)}, 0.5),
        # Rounded to the tensor's type, so no contradiction; the exact number counts.
        (PEFT | {"lora_alpha": 2.7}, None, {"alpha": torch.tensor(2.7).bfloat16()}, 2.7 / RANK),
        (PEFT | {"lora_alpha": 200}, None, {"alpha": torch.tensor(200, dtype=torch.uint8)}, 50),
        # The arguments give some modules an alpha of their own, which only the tensors know.
        (
            None,
            {"ss_network_alpha": "1", "ss_network_args": OWN},
            {"alpha": torch.tensor(2)},
            0.5,
        ),
    ],
)
def test_scale_is_read_wherever_tools_write_it(
    tmp_path: Path, config: Any, notes: Any, tensors: dict[str, Tensor], factor: float
) -> None:
    assert read_factor(save(tmp_path, config, notes, tensors)) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "notes", "tensors", "message"),
    [
        (
            PEFT,
            None,
            {"alpha": torch.tensor(4.0)},
            r"contradict .*adapter_config.json: 16, its alpha .*: 4",
        ),
        (PEFT, {"lora_alpha": "8"}, {}, "contradict each other about alpha"),
        (None, {"ss_network_alpha": "8"}, {"alpha": torch.tensor(2.0)}, "header note ss_network_alpha: 8"),
        (PEFT, {"lora_alpha": "16", "use_rslora": "false"}, {}, None),
        (
            PEFT | {"use_rslora": True},
            {"lora_alpha": "16", "use_rslora": "false"},
            {},
            "contradict each other about use_rslora",
        ),
        (PEFT | {"r": 8}, None, {}, "rank 8, but the stored factors have rank 4"),
        (None, {"ss_network_dim": "16", "ss_network_alpha": "16"}, {}, "rank 16, but the stored"),
        (None, {"ss_network_args": OWN, "ss_network_alpha": "8"}, {}, "no alpha tensors"),
        (
            None,
            {"ss_network_dim": "4", "ss_network_alpha": "1.0"},
            {},
            r"the notes state alpha 1 and dim 4, but .* no alpha tensors.*adapter_config\.json",
        ),
        (None, {"ss_network_alpha": "8"}, {}, "the notes state alpha 8 and no dim, but"),
        (
            PEFT | {"lora_alpha": 300},
            None,
            {"alpha": torch.tensor(44, dtype=torch.uint8)},
            "contradict each other about alpha .*: 300, .*: 44",
        ),
        (
            PEFT | {"lora_alpha": 4.5},
            None,
            {"alpha": torch.tensor(4)},
            "contradict each other about alpha .*: 4.5, .*: 4",
        ),
        (PEFT | {"lora_alpha": -16}, None, {}, rf"change of {Q}\.weight: adapter_config\.json: alpha is -16"),
        (PEFT | {"alpha_pattern": {"to_q": 0}}, None, {}, rf"{Q}\.weight: adapter_config\.json: alpha is 0"),
        (None, {"lora_alpha": "-1"}, {}, rf"{Q}\.weight: header note lora_alpha: alpha is -1"),
        (None, None, {"alpha": torch.tensor(-2.0)}, rf"{Q}\.weight: its alpha in the file: alpha is -2"),
        (None, None, {"alpha": torch.tensor(0)}, r"must be positive.*`scale` of the adapter"),
        (None, {"ss_network_args": "["}, {}, "ss_network_args: cannot be read"),
        (None, {"lora_scale": "0.5"}, {}, "lora_scale: is not supported"),
        (None, {"use_rslora": "true"}, {}, "no place declares alpha"),
        ({"r": 4}, None, {}, "adapter_config.json: lacks lora_alpha"),
        ({"lora_alpha": 4}, None, {}, "adapter_config.json: lacks r"),
        (PEFT | {"lora_alpha": "much"}, None, {}, "adapter_config.json: lora_alpha: "),
        (PEFT | {"lora_alpha": math.inf}, None, {}, "lora_alpha: Input should be a finite number"),
        (PEFT | {"alpha_pattern": {"(": 1}}, None, {}, "is not a regular expression"),
        (PEFT | {"use_dora": True}, None, {}, "use_dora = 'True' is not supported"),
        (PEFT | {"layer_replication": [[0, 1]]}, None, {}, "layer_replication"),
        (PEFT | {"fan_in_fan_out": True}, None, {}, "fan_in_fan_out"),
        (PEFT | {"use_rs_lora": True}, None, {}, "did you mean use_rslora"),
        (PEFT | {"init_lora_weights": "pissa_niter_4"}, None, {}, "path_initial_model_for_weight_conversion"),
        (PEFT | {"init_lora_weights": "olora"}, None, {}, "'olora', which changes the base weights"),
        (
            PEFT | {"init_lora_weights": "novel"},
            None,
            {},
            "'novel', which is not known here and may change the base weights as well",
        ),
        (PEFT | {"peft_type": "LOHA"}, None, {}, "kind of adapter is not supported: LOHA"),
        (PEFT | {"bias": "some"}, None, {}, "bias: must be none, all or lora_only"),
        (PEFT | {"lora_bias": False}, None, {"lora_B.bias": torch.ones(12)}, "lora_bias is false"),
        (None, {"lora_adapter_metadata": "["}, {}, "lora_adapter_metadata: cannot be read"),
        (None, {"lora_adapter_metadata": "[1]"}, {}, "lora_adapter_metadata: cannot be read"),
        (None, {"lora_config": json.dumps({"r": 4})}, {}, "header note lora_config: lacks lora_alpha"),
    ],
)
def test_contradictory_and_unknown_settings_are_rejected(
    tmp_path: Path, config: Any, notes: Any, tensors: dict[str, Tensor], message: str | None
) -> None:
    file = save(tmp_path, config, notes, tensors)
    if message is None:
        assert read_factor(file) == 4
        return
    with pytest.raises(WeightsError, match=message):
        Lora.load(file, SHAPES, id="style")


def test_folder_is_read_as_its_file_is(tmp_path: Path) -> None:
    save(tmp_path, PEFT, name="adapter_model.safetensors")
    assert read_factor(tmp_path) == read_factor(tmp_path / "adapter_model.safetensors") == 4
    save_file({"step": torch.ones(1)}, tmp_path / "optimizer.safetensors")
    assert read_factor(tmp_path) == 4


def test_settings_belong_to_the_file_that_peft_saved(tmp_path: Path) -> None:
    save(tmp_path, PEFT, name="adapter_model.safetensors")
    assert read_factor(save(tmp_path, name="other.safetensors")) == 1


def test_folder_of_several_adapters_names_one(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    save(tmp_path / "style", PEFT, name="adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"a folder for each adapter: name one, such as .*/style"):
        Lora.load(tmp_path, SHAPES, id="style")


@pytest.mark.parametrize(
    ("name", "prefix"), [("adapter_model.safetensors", ""), ("mine.safetensors", "base_model.model.")]
)
def test_file_of_peft_without_its_settings_is_rejected(tmp_path: Path, name: str, prefix: str) -> None:
    save_file({f"{prefix}{key}": value for key, value in FACTORS.items()}, tmp_path / name)
    with pytest.raises(WeightsError, match=r"adapter_config\.json is missing, .*: put it"):
        Lora.load(tmp_path / name, SHAPES, id="style")


def test_other_scale_is_another_identity(tmp_path: Path) -> None:
    """The weights' file is the same, so only the factors tell the two adapters apart."""
    digests = set()
    for settings in (PEFT, PEFT | {"lora_alpha": 8}, PEFT | {"use_rslora": True}):
        file = save(tmp_path, settings, name="adapter_model.safetensors")
        digests.add(Lora.load(tmp_path, SHAPES, id="style", sha256=weights_digest(file)).adapter.digest)
    assert len(digests) == 3
    save(tmp_path, PEFT | {"lora_dropout": 0.5}, name="adapter_model.safetensors")
    assert Lora.load(tmp_path, SHAPES, id="style").adapter.digest in digests


def test_other_scale_is_another_identity_of_the_model(model_file: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        saved = lora_error.FORMS["peft: alpha 16"](model_file.parent / "pipeline" / "transformer", tmp_path)
    path = model_file.with_name("identity.toml")
    path.write_text(model_file.read_text() + lora_error.write_entry(saved.file))
    [first] = LoadedModel.load(path).adapters
    config = saved.file / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))
    [second] = LoadedModel.load(path).adapters
    assert (first.id, first.scale) == (second.id, second.scale)
    assert first.digest != second.digest


WHOLE = PEFT | {"modules_to_save": ["proj_out"]}


def save_whole(folder: Path, config: Mapping[str, Any], *names: str) -> Path:
    folder.mkdir()
    values = {f"base_model.model.{name}": torch.ones(SHAPES[name]) for name in names}
    save_file(values | FACTORS, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_parameters_trained_in_full_replace_the_base(tmp_path: Path) -> None:
    names = ("proj_out.weight", "proj_out.bias")
    lora = Lora.load(save_whole(tmp_path / "a", WHOLE, *names), SHAPES, id="style")
    base = torch.full(SHAPES["proj_out.weight"], 0.1)
    assert torch.equal(lora.merge("proj_out.weight", base), torch.ones_like(base))


@pytest.mark.parametrize("saved", ["out", "proj_out"])
def test_end_of_a_name_declares_a_module_trained_in_full(tmp_path: Path, saved: str) -> None:
    """PEFT compares the ends of names, also within a word."""
    folder = save_whole(tmp_path / "a", PEFT | {"modules_to_save": [saved]}, "proj_out.weight")
    assert Lora.load(folder, SHAPES, id="style").replaces("proj_out.weight")


@pytest.mark.parametrize("saved", ["attn2", "tn2", "blocks.0.attn2", "0"])
def test_parameters_below_a_module_trained_in_full_replace_the_base(tmp_path: Path, saved: str) -> None:
    name = "blocks.0.attn2.to_k.weight"
    folder = save_whole(tmp_path / "a", PEFT | {"modules_to_save": [saved]}, name)
    assert Lora.load(folder, SHAPES, id="style").replaces(name)


@pytest.mark.parametrize("saved", ["attn1", "attn", "to_q", "to_k.weight"])
def test_other_module_trained_in_full_declares_nothing(tmp_path: Path, saved: str) -> None:
    folder = save_whole(tmp_path / "a", PEFT | {"modules_to_save": [saved]}, "blocks.0.attn2.to_k.weight")
    with pytest.raises(WeightsError, match="no place declares it as trained in full"):
        Lora.load(folder, SHAPES, id="style")


def test_parameters_trained_in_full_must_be_declared(tmp_path: Path) -> None:
    folder = save_whole(tmp_path / "a", PEFT, "proj_out.bias")
    with pytest.raises(WeightsError, match="no place declares it as trained in full"):
        Lora.load(folder, SHAPES, id="style")


def test_parameters_trained_in_full_cannot_be_scaled(tmp_path: Path) -> None:
    folder = save_whole(tmp_path / "a", WHOLE, "proj_out.weight")
    with pytest.raises(WeightsError, match=r"scale must be 1, not 0\.5: it replaces proj_out\.weight"):
        Lora.load(folder, SHAPES, id="style", scale=0.5)


def test_two_adapters_must_not_replace_one_parameter(tmp_path: Path) -> None:
    first, second = (
        Lora.load(save_whole(tmp_path / name, WHOLE, "proj_out.weight"), SHAPES, id=name) for name in "ab"
    )
    check_overlap([first], list(SHAPES))
    with pytest.raises(WeightsError, match=r"replaces proj_out\.weight, which .*/b/.* changes as well"):
        check_overlap([first, second], list(SHAPES))
