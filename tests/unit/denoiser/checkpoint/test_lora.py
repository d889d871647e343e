"""Tests of adapters: merging equals diffusers' result, and files that do not fit are rejected by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from bench import parity
from services.denoiser.checkpoint.lora import Adapter, Lora
from services.denoiser.checkpoint.names import to_original_name
from services.denoiser.checkpoint.weights import WeightsError, weights_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.wan import WanConfig, WanTransformer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
VIDEO = (5, 32, 48)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity.save_checkpoint(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def reference(model_file: Path) -> Any:
    make: Any = WanTransformer3DModel
    return make.from_pretrained(model_file.parent / "pipeline" / "transformer").eval()


@torch.no_grad()
def output(network: Any) -> Tensor:
    """Returns the output of diffusers' network for fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 16, 2, 4, 6, generator=generator)
    text = torch.randn(1, 6, 32, generator=generator)
    found: Tensor = network(latents, torch.tensor([937.5]), text, return_dict=False)[0]
    return found


@torch.no_grad()
def ours(model_file: Path, adapters: str) -> Tensor:
    """Returns the output of our model with adapters for the same inputs."""
    path = model_file.with_name("adapted.toml")
    path.write_text(model_file.read_text().replace("max_tokens = 512", "max_tokens = 6") + adapters)
    model = LoadedModel.load(path)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(16, 2, 4, 6, generator=generator)
    text = model.prepare_text(torch.randn(6, 32, generator=generator))
    return Predictor.eager(model).latent_velocity(latents, 0.9375, text)[None]


def entry(file: Path, scale: float = 1.0, name: str = "style") -> str:
    digest = weights_digest(file)
    return f'\n[[adapters]]\nid = "{name}"\nfile = "{file}"\nsha256 = "{digest}"\nscale = {scale}\n'


def close(got: Tensor, want: Tensor) -> bool:
    return parity.relative_error(got, want) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_adapters_of_diffusers_and_peft_give_the_same_output(
    model_file: Path, reference: Any, tmp_path: Path, scale: float
) -> None:
    plain = output(reference)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="gaussian")
    untyped: Any = config
    reference.add_adapter(config, adapter_name="default")
    for name, parameter in reference.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    WanPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(reference),
        transformer_lora_adapter_metadata=untyped.to_dict(),
    )
    reference.set_adapters("default", scale)
    want = output(reference)
    [file] = tmp_path.glob("*.safetensors")
    assert close(ours(model_file, entry(file, scale)), want)
    assert not close(plain, want)
    assert close(ours(model_file, ""), plain)


def lightx2v(network: Any, rank: int = 4) -> dict[str, Tensor]:
    """Returns a random LoRA of the attention and feed-forward layers, in original names."""
    generator = torch.Generator().manual_seed(2)
    found = {}
    for name, parameter in network.named_parameters():
        module, _, leaf = to_original_name(name).rpartition(".")
        if not any(part in name for part in (".to_", ".ffn.")):
            continue
        key = f"diffusion_model.{module}"
        if leaf == "weight":
            out, inner = parameter.shape
            found[f"{key}.lora_down.weight"] = 0.2 * torch.randn(rank, inner, generator=generator)
            found[f"{key}.lora_up.weight"] = 0.2 * torch.randn(out, rank, generator=generator)
            found[f"{key}.alpha"] = torch.tensor(2.0)
        else:
            found[f"{key}.diff_b"] = 0.2 * torch.randn(parameter.shape, generator=generator)
    return found


def test_lightx2v_files_give_the_output_of_diffusers(
    model_file: Path, reference: Any, tmp_path: Path
) -> None:
    file = tmp_path / "distill.safetensors"
    save_file(lightx2v(reference), file)
    pipeline: Any = WanPipeline
    state: Any = pipeline.lora_state_dict(file)
    reference.load_lora_adapter(state, prefix="transformer")
    assert close(ours(model_file, entry(file)), output(reference))


def test_kohyas_names_give_the_same_output(model_file: Path, reference: Any, tmp_path: Path) -> None:
    plain, kohya = tmp_path / "plain.safetensors", tmp_path / "kohya.safetensors"
    state = {k: v for k, v in lightx2v(reference).items() if not k.endswith("diff_b")}
    save_file(state, plain)
    flat = {}
    for key, tensor in state.items():
        module, dot, leaf = key.removeprefix("diffusion_model.").partition(
            ".lora" if ".lora" in key else ".alpha"
        )
        flat[f"lora_unet_{module.replace('.', '_')}{dot}{leaf}"] = tensor
    save_file(flat, kohya)
    assert torch.equal(ours(model_file, entry(kohya)), ours(model_file, entry(plain)))


def test_whole_differences_apply_to_any_parameter(model_file: Path, reference: Any, tmp_path: Path) -> None:
    """Norms, biases, modulation and the convolution of the patches: base weights changed by hand."""
    suffixes = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    torch.manual_seed(3)
    changes = {name: 0.1 * torch.randn_like(p) for name, p in reference.named_parameters()}
    state = {}
    for name, change in changes.items():
        module, _, leaf = to_original_name(name).rpartition(".")
        state[f"diffusion_model.{module}.{suffixes[leaf]}"] = change
    file = tmp_path / "differences.safetensors"
    save_file(state, file)
    for name, parameter in reference.named_parameters():
        parameter.data += 0.5 * changes[name]
    assert close(ours(model_file, entry(file, 0.5)), output(reference))


def test_several_adapters_add_up(model_file: Path, reference: Any, tmp_path: Path) -> None:
    name = "blocks.1.attn2.to_v.weight"
    network, text = dict(reference.named_parameters()), ""
    for i, scale in enumerate((0.5, -2.0)):
        down, up = torch.randn(2, 24), 0.1 * torch.randn(24, 2)
        file = tmp_path / f"{i}.safetensors"
        module = f"transformer.{name.removesuffix('.weight')}"
        save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, file)
        network[name].data += scale * up @ down
        text += entry(file, scale, f"adapter-{i}")
    assert close(ours(model_file, text), output(reference))


CONFIG = WanConfig(in_channels=4, out_channels=4, heads=2, head_dim=6, ffn_dim=8, layers=1, text_dim=5)
SHAPES = {name: tensor.shape for name, tensor in WanTransformer(CONFIG).state_dict().items()}
Q = "transformer.blocks.0.attn1.to_q"
GOOD = {f"{Q}.lora_A.weight": torch.ones(2, 12), f"{Q}.lora_B.weight": torch.ones(12, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.blocks.7.attn1.to_q.lora_A.weight": torch.ones(2, 12)}, "tensor transformer.blocks.7"),
        (
            {"diffusion_model.blocks.0.cross_attn.k_img.diff": torch.ones(1)},
            "k_img.diff: changes no known parameter",
        ),
        ({f"{Q}.lora_magnitude_vector": torch.ones(12)}, "lora_magnitude_vector: the kind .* DoRA"),
        ({f"{Q}.lora_B.weight": torch.ones(12, 3)}, r"up \[12, 3\] times down \[2, 12\], expected \[12, r\]"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 11)}, r"down \[2, 11\].* times \[r, 12\]"),
        ({f"{Q}.lora_A.weight": torch.ones(0, 12), f"{Q}.lora_B.weight": torch.ones(12, 0)}, "times"),
        ({f"{Q}.lora_A.weight": torch.ones(12)}, "times"),
        ({f"{Q}.lora_B.weight": None}, r"attn1.to_q.weight: has \['down'\], expected down and up"),
        ({f"{Q}.diff": torch.ones(12, 12)}, "expected down and up, or only diff"),
        ({f"{Q}.alpha": torch.ones(3)}, "alpha of .*to_q.weight: shape"),
        ({f"{Q}.diff_b": torch.ones(11)}, r"difference of .*to_q.bias: shape \[11\], expected \[12\]"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(2, 12)}, "the same part"),
        ({f"{Q}.diff_b": torch.ones(12, dtype=torch.int32)}, "type I32"),
        ({f"{Q}.alpha": torch.ones(1, dtype=torch.bool)}, "type BOOL"),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({k: v for k, v in {**GOOD, **change}.items() if v is not None}, file)
    with pytest.raises(WeightsError, match=f"lora.safetensors: .*{message}"):
        Lora.load(file, SHAPES, id="style")


def test_file_with_another_digest_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(GOOD, file)
    adapter = Lora.load(file, SHAPES, id="style", sha256=weights_digest(file)).adapter
    assert adapter == Adapter("style", Lora.load(file, SHAPES, id="style").adapter.digest, 1.0)
    with pytest.raises(WeightsError, match="not the weights"):
        Lora.load(file, SHAPES, id="style", sha256="0" * 64)


def test_merging_is_exact_in_float32(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({k: v.bfloat16() for k, v in GOOD.items()}, file)
    adapter = Lora.load(file, SHAPES, id="style", scale=1e-3)
    merged = adapter.merge("blocks.0.attn1.to_q.weight", torch.full((12, 12), 8.0).bfloat16())
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, torch.full((12, 12), 8.002))
    other = torch.ones(12).bfloat16()
    assert adapter.merge("blocks.0.attn1.to_q.bias", other) is other
