"""Verifies that a part of a model is not served as the whole: experts, and networks of other pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoints import save_wan_pipeline, write_model_file
from services.denoiser.checkpoint.config import read_network_sizes
from services.denoiser.checkpoint.weights import WeightsError
from services.denoiser.model.loaded import LoadedModel

EXPERT = ["diffusers", "WanTransformer3DModel"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video pipeline and its model file, which loads."""
    folder = tmp_path_factory.mktemp("models")
    write_model_file(folder, save_wan_pipeline(folder / "wan"), encoder_id="umt5@unused")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "models")


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_bytes()) | values))


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize("null", [None, [None, None]])
def test_transformer_of_a_text_to_video_pipeline_is_served(folder: Path, null: Any) -> None:
    rewrite(folder / "wan" / "model_index.json", transformer_2=null, boundary_ratio=None, image_encoder=null)
    assert LoadedModel.load(folder / "model.toml").spec.id == "random-wan"


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize("name", ["WanPipeline", "WanDMDPipeline"])
def test_pipelines_with_one_transformer_are_served(folder: Path, name: str) -> None:
    # With a mask of ones, the timesteps of all tokens are equal: text-to-video of Wan2.2-TI2V-5B.
    rewrite(folder / "wan" / "model_index.json", _class_name=name, expand_timesteps=True)
    assert LoadedModel.load(folder / "model.toml").spec.id == "random-wan"


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_2": EXPERT}, "transformer_2: .*one of two transformers"),
        ({"boundary_ratio": 0.875}, "boundary_ratio: .*one of two transformers"),
        (
            {"_class_name": "WanImageToVideoPipeline"},
            "_class_name: must be WanPipeline or WanDMDPipeline, not",
        ),
        ({"_class_name": "WanVACEPipeline"}, "_class_name: must be"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder: .*image-to-video"),
    ],
)
def test_transformer_of_another_pipeline_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    rewrite(folder / "wan" / "model_index.json", **change)
    with pytest.raises(WeightsError, match=rf"model_index\.json: {message}"):
        LoadedModel.load(folder / "model.toml")
    # The same for one file of the folder.
    model_file = folder / "model.toml"
    model_file.write_text(
        model_file.read_text().replace(
            'wan/transformer"\n', 'wan/transformer/diffusion_pytorch_model.safetensors"\n', 1
        )
    )
    with pytest.raises(WeightsError, match=rf"model_index\.json: {message}"):
        LoadedModel.load(folder / "model.toml")


@pytest.mark.fault("partial-model")
def test_expert_without_its_pipeline_is_refused_by_its_neighbour(folder: Path) -> None:
    (folder / "wan" / "model_index.json").unlink()
    assert LoadedModel.load(folder / "model.toml").spec.id == "random-wan"
    shutil.copytree(folder / "wan" / "transformer", folder / "wan" / "transformer_2")
    with pytest.raises(WeightsError, match=r"transformer: .*transformer_2.*one of two transformers"):
        LoadedModel.load(folder / "model.toml")


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize(
    "name",
    [
        "high_noise_model",
        "low_noise_model",
        "wan2.2_t2v_A14b_high_noise_4step",
        "Wan22-LowNoise",
        "a-low-noise",
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_expert_is_refused_by_its_name(folder: Path, name: str, single: bool) -> None:
    """Verifies the layouts of the original release and of single files, which state it nowhere else."""
    source = folder / "wan" / "transformer"
    if single:
        target = folder / f"{name}.safetensors"
        shutil.copy(source / "diffusion_pytorch_model.safetensors", target)
    else:
        target = shutil.copytree(source, folder / name)
    model_file = folder / "model.toml"
    model_file.write_text(model_file.read_text().replace('"wan/transformer"', f'"{target.name}"', 1))
    with pytest.raises(WeightsError, match=f"{name}.*one of two transformers"):
        LoadedModel.load(model_file)


@pytest.mark.fault("partial-model")
def test_other_index_next_to_the_folder_is_ignored(folder: Path) -> None:
    shutil.move(folder / "wan" / "transformer", folder / "wan" / "distilled")
    rewrite(folder / "wan" / "model_index.json", boundary_ratio=0.875, transformer_2=EXPERT)
    model_file = folder / "model.toml"
    model_file.write_text(model_file.read_text().replace("wan/transformer", "wan/distilled"))
    assert LoadedModel.load(model_file).spec.id == "random-wan"


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "epsilon"},
            "prediction_type: must be flow",
        ),
        (
            {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
            "prediction_type: must be flow",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, None),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, None),
    ],
)
def test_prediction_that_is_no_velocity_is_refused(
    folder: Path, scheduler: dict[str, str], message: str | None
) -> None:
    (folder / "wan" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if message is None:
        assert LoadedModel.load(folder / "model.toml").spec.id == "random-wan"
    else:
        with pytest.raises(WeightsError, match=rf"scheduler_config\.json: {message}"):
            LoadedModel.load(folder / "model.toml")


@pytest.mark.fault("partial-model")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "WanVACETransformer3DModel"}, "_class_name: must be"),
        ({"image_dim": 1280}, "image_dim: must be None"),
        ({"in_channels": 36}, "in_channels: must be out_channels = 16, not 36: .*image-to-video"),
    ],
)
def test_configuration_next_to_the_weights_is_checked_although_the_file_states_the_sizes(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    config = folder / "wan" / "transformer" / "config.json"
    (folder / "sizes.json").write_text(config.read_text())
    rewrite(config, **change)
    model_file = folder / "model.toml"
    model_file.write_text(model_file.read_text().replace("wan/transformer/config.json", "sizes.json"))
    with pytest.raises(WeightsError, match=rf"config\.json: {message}"):
        LoadedModel.load(model_file)


@pytest.mark.fault("partial-model")
def test_original_text_and_image_to_video_config_is_read(tmp_path: Path) -> None:
    """Verifies Wan2.2-TI2V-5B, whose text-to-video is that of Wan2.1 with another autoencoder."""
    config = {
        "_class_name": "WanModel", "model_type": "ti2v", "dim": 3072, "num_heads": 24, "in_dim": 48,
        "out_dim": 48, "ffn_dim": 14336, "freq_dim": 256, "num_layers": 30, "text_len": 512, "eps": 1e-6,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = read_network_sizes(tmp_path / "config.json")
    assert (sizes["heads"], sizes["head_dim"], sizes["in_channels"]) == (24, 128, 48)
    for change, message in (
        ({"model_type": "i2v"}, "model_type: must be"),
        ({"in_dim": 100}, "in_channels: "),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            read_network_sizes(tmp_path / "config.json")
