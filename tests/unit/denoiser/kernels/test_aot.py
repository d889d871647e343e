"""Verifies how compiled kernels are written to disk, loaded and rejected."""

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from services.denoiser.kernels import aot
from services.denoiser.kernels.aot import Kernel, KernelError
from services.denoiser.kernels.signature import ARGUMENTS

PTX = """
.version 8.0
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3
)
.reqntid 128
{
	ld.param.b64 	%rd1, [k_param_0];
	ret;
}
"""


def build_sm90(folder: Path, progress: Callable[[str], object] = lambda line: None) -> Path:
    return aot.build(folder, archs=[90], dtypes=["bf16"], head_dims=[128], progress=progress)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton", reason="Triton is not installed")
    return build_sm90(tmp_path_factory.mktemp("aot"))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """Copy of the built folder that a test may modify."""
    (tmp_path / "kernels").mkdir()
    for path in (built, *built.parent.glob("kernels/*.ptx")):
        (tmp_path / path.relative_to(built.parent)).write_bytes(path.read_bytes())
    return tmp_path


def test_both_tactics_are_built_without_scratch_parameters(built: Path) -> None:
    for tactic in aot.TACTICS:
        kernel = aot.load(built, 90, "bf16", 128, tactic)
        assert [name for name, _ in kernel.parameters] == list(ARGUMENTS)
        header = kernel.ptx[kernel.ptx.index(".entry") : kernel.ptx.index(".reqntid")]
        assert header.count(".param") == len(ARGUMENTS)
        assert ".target sm_90a" in kernel.ptx
        assert "services/denoiser" not in kernel.ptx  # the digest does not depend on the build path
    assert aot.load(built, 90, "bf16", 128, "small").shared <= 48 * 1024


def test_ptx_is_accepted_by_the_assembler(built: Path, tmp_path: Path) -> None:
    triton = importlib.import_module("triton")
    assert triton.__file__ is not None
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for file in built.parent.glob("kernels/*_small.ptx"):
        command = [str(ptxas), "--gpu-name", "sm_90a", str(file), "-o", str(tmp_path / "out.cubin")]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr


def test_build_keeps_intact_kernels_and_recompiles_truncated_ones(folder: Path) -> None:
    (folder / "kernels/amplified_attention_sm90_bf16_d128_small.ptx").write_text(".version 8.0\n")
    lines: list[str] = []
    manifest = build_sm90(folder, lines.append)
    assert [line.rpartition(": ")[2] for line in lines] == ["compiling", "up to date"]
    assert aot.load(manifest, 90, "bf16", 128, "small").ptx.rstrip().endswith("}")


def test_build_recompiles_all_after_a_change_of_source_or_triton(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "_compile", lambda *args: pytest.fail("compiles"))
    build_sm90(folder)
    manifest = folder / "manifest.json"
    for field in ("triton", "source_sha256"):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {field: "another"}))
        with pytest.raises(pytest.fail.Exception, match="compiles"):
            build_sm90(folder)
        manifest.write_text(json.dumps(content))


def test_load_rejects_changed_or_missing_files(folder: Path) -> None:
    file = folder / "kernels/amplified_attention_sm90_bf16_d128_fast.ptx"
    file.write_text(file.read_text().replace("ex2.approx", "lg2.approx", 1))
    with pytest.raises(KernelError, match="SHA-256"):
        aot.load(folder / "manifest.json", 90, "bf16", 128)
    file.unlink()
    with pytest.raises(KernelError, match=r"\.ptx: is missing"):
        aot.load(folder / "manifest.json", 90, "bf16", 128)


def test_load_names_the_kernel_that_was_not_compiled(folder: Path) -> None:
    with pytest.raises(KernelError, match=r"\(80, 'bf16', 128, 'fast'\).*it has \(90, 'bf16', 128, 'fast'\)"):
        aot.load(folder / "manifest.json", 80, "bf16", 128)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "not a kernel manifest"),
        ("[]", "not a kernel manifest"),
        ('{"version": 9}', "version 9"),
        (
            '{"version": 1, "triton": "3", "source_sha256": "", "kernels": [{"file": "a", "arch": 90}]}',
            "no name",
        ),
        (
            '{"version": 1, "triton": "3", "source_sha256": "", "kernels": [{"file": "a", "evil": 1}]}',
            "unknown",
        ),
    ],
)
def test_load_rejects_invalid_manifests(tmp_path: Path, content: str | None, message: str) -> None:
    manifest = tmp_path / "manifest.json"
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(KernelError, match=message):
        aot.load(manifest, 90, "bf16", 128)


def test_load_rejects_a_manifest_with_foreign_file_names(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("kernels/amplified", "../amplified", 1))
    with pytest.raises(KernelError, match="does not match its kernel"):
        aot.load(manifest, 90, "bf16", 128)


def test_strip_scratch_removes_scratch_pointers() -> None:
    stripped = aot.strip_scratch(PTX, ["*fp16", "i32"])
    assert stripped.count(".param ") == 2
    assert "k_param_2" not in stripped
    assert stripped.endswith(PTX[PTX.index(")\n.reqntid") :])


@pytest.mark.parametrize(
    ("ptx", "types", "message"),
    [
        (
            PTX.replace("[k_param_0]", "[k_param_3]"),
            ["*fp16", "i32"],
            "uses its scratch parameter k_param_3",
        ),
        (PTX, ["*fp16", "*fp16"], "instead of a parameter of type .u64"),
        (PTX, ["*fp16"], "4 parameters, of which 1"),
        (PTX, ["*fp16", "i32", "*fp16", "*fp16", "i32"], "4 parameters"),
        (".version 8.0", [], "no entry"),
    ],
)
def test_strip_scratch_rejects_unexpected_parameters(ptx: str, types: list[str], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        aot.strip_scratch(ptx, types)


def test_select_arch_returns_a_compatible_architecture() -> None:
    capabilities = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    selected = [aot.select_arch(*capability) for capability in capabilities]
    assert selected == [80, 80, 89, 90, 100, 89, 89]
    with pytest.raises(KernelError, match=r"7\.5"):
        aot.select_arch(7, 5)


def test_kernel_round_trips_through_json(built: Path) -> None:
    kernel = aot.load(built, 90, "bf16", 128)
    assert Kernel.from_json(json.loads(json.dumps(kernel.to_json(ptx=True)))).checked() == kernel
    with pytest.raises(KernelError, match="SHA-256"):
        Kernel.from_json(kernel.to_json(ptx=True) | {"ptx": kernel.ptx + " "}).checked()
