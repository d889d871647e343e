"""Tests of the spellings of adapters: the usual ones merge alike, and a refusal states its reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from services.denoiser.checkpoint.lora import Lora
from services.denoiser.checkpoint.lora_names import ModuleNames
from services.denoiser.checkpoint.names import build_renamer, to_original_name
from services.denoiser.checkpoint.weights import WeightsError, check_weights
from services.denoiser.network.wan import WanConfig, WanTransformer

pytestmark = pytest.mark.fault("adapter-spellings")

CONFIG = WanConfig(in_channels=4, out_channels=4, heads=2, head_dim=6, ffn_dim=8, layers=2, text_dim=5)
with torch.device("meta"):
    SHAPES = {name: tensor.shape for name, tensor in WanTransformer(CONFIG).state_dict().items()}
    LARGE = list(WanTransformer(WanConfig(layers=40)).state_dict())
RANK = 2
ALPHA = 3
# Modules that trainers adapt, with a convolution and layers outside the blocks.
MODULES = [
    name.removesuffix(".weight")
    for name, shape in SHAPES.items()
    if name.endswith(".weight") and len(shape) > 1
]

Spelling = Callable[[str], dict[str, str]]  # module -> names of down, up and alpha


def spell(
    prefix: str, down: str, up: str, alpha: str, *, original: bool = False, flat: bool = False
) -> Spelling:
    def names(module: str) -> dict[str, str]:
        found = to_original_name(f"{module}.weight").removesuffix(".weight") if original else module
        found = prefix + (found.replace(".", "_") if flat else found)
        return {"down": f"{found}.{down}", "up": f"{found}.{up}", "alpha": f"{found}.{alpha}"}

    return names


A, B, DOWN, UP = "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight"
SPELLINGS = {
    "plain": spell("", A, B, "alpha"),
    "diffusers": spell("transformer.", A, B, "alpha"),
    "PEFT": spell("base_model.model.", A, B, "alpha"),
    "ComfyUI": spell("diffusion_model.", DOWN, UP, "alpha", original=True),
    "ComfyUI, PEFT's parts": spell("diffusion_model.", A, B, "alpha", original=True),
    "PEFT around ComfyUI": spell("base_model.model.diffusion_model.", A, B, "alpha", original=True),
    "compiled": spell("_orig_mod.module.", A, B, "alpha"),
    "DiffSynth": spell("pipe.dit.", "lora_A.default.weight", "lora_B.default.weight", "alpha", original=True),
    "another name": spell("", "lora_A.my-style.weight", "lora_B.my-style.weight", "alpha.my-style"),
    "old diffusers": spell("transformer.", "lora.down.weight", "lora.up.weight", "alpha"),
    "lora_alpha": spell("", A, B, "lora_alpha"),
    "without weight": spell("", "lora_A", "lora_B", "lora_alpha", original=True),
    "musubi-tuner": spell("lora_unet_", DOWN, UP, "alpha", original=True, flat=True),
    "VideoX-Fun": spell("lora_unet__", DOWN, UP, "alpha", original=True, flat=True),
    "flat diffusers": spell("lora_transformer_", DOWN, UP, "alpha", flat=True),
    "LyCORIS": spell("lycoris_", DOWN, UP, "alpha", original=True, flat=True),
}


def build_state(spelling: Spelling, alpha: Tensor) -> dict[str, Tensor]:
    generator, state = torch.Generator().manual_seed(0), {}
    for module in MODULES:
        shape, names = SHAPES[f"{module}.weight"], spelling(module)
        state[names["down"]] = torch.randn(RANK, *shape[1:], generator=generator)
        state[names["up"]] = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
        state[names["alpha"]] = alpha.clone()
    return state


def merge(folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns all parameters of a network of zeros after merging the adapter."""
    save_file(state, folder / "lora.safetensors")
    lora = Lora.load(folder / "lora.safetensors", SHAPES, id="style")
    return {name: lora.merge(name, torch.zeros(shape)) for name, shape in SHAPES.items()}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert all(torch.equal(got[name], want[name]) for name in SHAPES)


@pytest.mark.parametrize("name", SPELLINGS)
def test_usual_spelling_is_read(tmp_path: Path, name: str) -> None:
    alpha = torch.tensor(float(ALPHA))
    got = merge(tmp_path, build_state(SPELLINGS[name], alpha))
    assert_equal(got, merge(tmp_path, build_state(SPELLINGS["diffusers"], alpha)))
    assert all(got[f"{module}.weight"].any() for module in MODULES)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64, torch.float16, torch.bfloat16])
def test_alpha_of_any_number_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    got = merge(tmp_path, build_state(SPELLINGS["plain"], torch.tensor(ALPHA, dtype=dtype)))
    assert_equal(got, merge(tmp_path, build_state(SPELLINGS["plain"], torch.tensor(float(ALPHA)))))


@pytest.mark.parametrize("bias", ["lora_B.bias", "lora_B.default.bias", "lora_up.bias"])
def test_bias_of_the_up_factor_is_scaled_as_its_product(tmp_path: Path, bias: str) -> None:
    names = SPELLINGS["plain"]("blocks.0.attn1.to_q")
    state = {
        names["down"]: torch.zeros(RANK, 12),
        names["up"]: torch.zeros(12, RANK),
        names["alpha"]: torch.tensor(ALPHA),
        f"blocks.0.attn1.to_q.{bias}": torch.ones(12),
    }
    assert torch.equal(merge(tmp_path, state)["blocks.0.attn1.to_q.bias"], torch.full((12,), ALPHA / RANK))


def test_norms_of_lycoris_are_differences(tmp_path: Path) -> None:
    state = {"blocks.0.norm3.w_norm": torch.ones(12), "blocks.0.norm3.b_norm": torch.full((12,), 2.0)}
    merged = merge(tmp_path, state)
    assert torch.equal(merged["blocks.0.norm2.weight"], torch.ones(12))
    assert torch.equal(merged["blocks.0.norm2.bias"], torch.full((12,), 2.0))


def test_flat_names_are_unique_in_a_large_network() -> None:
    names, modules = (
        ModuleNames(LARGE),
        {name.rpartition(".")[0] for name in LARGE if name.endswith(".weight")},
    )
    for module in modules:
        for spelling in ("musubi-tuner", "VideoX-Fun", "flat diffusers"):
            place = names.locate(SPELLINGS[spelling](module)["down"])
            assert place is not None
            assert place.parameter == f"{module}.weight"


PRODUCT = build_state(SPELLINGS["ComfyUI"], torch.tensor(1.0))
BLOCK = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # The kind of adapter.
        ([f"{BLOCK}.hada_w1_a", f"{BLOCK}.hada_w1_b"], r"\(and 1 more\): the kind .* LoHa"),
        (["lora_unet_blocks_0_self_attn_q.lokr_w1"], "the kind of adapter is not supported: LoKr"),
        ([f"{BLOCK}.dora_scale"], "kind .* DoRA"),
        (["transformer.blocks.0.attn1.to_q.lora_magnitude_vector"], "kind .* DoRA"),
        (["base_model.model.blocks.0.attn1.to_q.lora_magnitude_vector.default.weight"], "kind .* DoRA"),
        (["lora_unet_blocks_0_self_attn_q.oft_blocks"], "kind .* OFT"),
        (["base_model.model.blocks.0.attn1.to_q.oft_R.weight"], "kind .* OFT"),
        (["base_model.model.blocks.0.attn1.to_q.boft_R"], "kind .* OFT"),
        (["base_model.model.blocks.0.attn1.to_q.ia3_l"], r"kind .* \(IA\)3"),
        (["lora_unet_blocks_0_self_attn_q.lora_mid.weight"], "kind .* Tucker"),
        (["base_model.model.blocks.0.attn1.to_q.lora_E"], "kind .* AdaLoRA"),
        # The network.
        (
            ["diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight"],
            "another network, image-to-video Wan",
        ),
        (["lora_unet_blocks_0_cross_attn_k_img.lora_down.weight"], "another network, image-to-video Wan"),
        (["diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight"], "another network, VACE"),
        (["transformer_2.blocks.0.attn1.to_q.lora_A.weight"], r"second transformer of Wan2\.2"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"], "a text encoder"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "FLUX or HunyuanVideo"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "Stable Diffusion"),
        (
            ["diffusion_model.blocks.39.self_attn.q.lora_A.weight"],
            "block 39, this network has the blocks 0 to",
        ),
        (
            ["lora_unet__blocks_39_self_attn_q.lora_down.weight"],
            "block 39, this network has the blocks 0 to",
        ),
        (
            [f"diffusion_model.blocks.{i}.self_attn.qq.lora_A.weight" for i in (0, 1)],
            r"blocks\.0\.self_attn\.qq, nearest known blocks\.0\.self_attn\.q; blocks\.1\.self_attn\.qq, ",
        ),
        (["lora_unet_blocks_0_self_attn_qq.lora_down.weight"], "nearest known blocks_0_self_attn_q$"),
        (["elsewhere.lora_A.weight"], "elsewhere resembles no module"),
        # The format.
        ([f"{BLOCK}.lora_up_then_down"], "the format is unknown"),
        (["state.step"], "the format is unknown"),
    ],
)
def test_refusal_states_its_reason(tmp_path: Path, names: list[str], message: str) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(PRODUCT | {name: torch.ones(2, 12) for name in names}, file)
    with pytest.raises(WeightsError, match=message) as caught:
        Lora.load(file, SHAPES, id="style")
    assert names[0] in str(caught.value)


def test_refusal_lists_only_the_first_names(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({f"layers.{i}.lora_A.weight": torch.ones(2, 12) for i in range(300)}, file)
    with pytest.raises(WeightsError, match=r"\(and 299 more\).*; and 297 more$") as caught:
        Lora.load(file, SHAPES, id="style")
    assert len(str(caught.value)) < 600


def test_two_adapters_in_one_file_are_rejected(tmp_path: Path) -> None:
    state = {
        f"blocks.0.attn1.to_{target}.lora_{part}.{name}.weight": torch.ones(shape)
        for target, name in (("q", "first"), ("k", "second"))
        for part, shape in (("A", (2, 12)), ("B", (12, 2)))
    }
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(WeightsError, match="holds several adapters, first, second: save each"):
        Lora.load(tmp_path / "lora.safetensors", SHAPES, id="style")


@pytest.mark.parametrize("prefix", ["pipe.dit.", "module.", "_orig_mod.", "model.diffusion_model."])
def test_weights_with_a_prefix_of_a_tool_are_read(tmp_path: Path, prefix: str) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({prefix + to_original_name(name): torch.zeros(shape) for name, shape in SHAPES.items()}, file)
    check_weights(file, SHAPES, build_renamer(SHAPES))
