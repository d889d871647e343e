"""The compiled kernel on the disk: what is written, what is read back, and what is refused."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from services.denoiser.kernels import aot
from services.denoiser.kernels.aot import Kernel, KernelError
from services.denoiser.kernels.signature import ARGUMENTS

SM90 = {"archs": [90], "dtypes": ["bf16"], "head_dims": [128]}
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton", reason="Triton is not installed")
    return aot.build(tmp_path_factory.mktemp("aot"), **SM90, progress=lambda line: None)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    (tmp_path / "kernels").mkdir()
    for path in (built, *built.parent.glob("kernels/*.ptx")):
        (tmp_path / path.relative_to(built.parent)).write_bytes(path.read_bytes())
    return tmp_path


def test_both_tactics_are_there_without_scratch_parameters(built: Path) -> None:
    for tactic in aot.TACTICS:
        kernel = aot.load(built, 90, "bf16", 128, tactic)
        assert [name for name, _ in kernel.parameters] == list(ARGUMENTS)
        header = kernel.ptx[kernel.ptx.index(".entry") : kernel.ptx.index(".reqntid")]
        assert header.count(".param") == len(ARGUMENTS)
        assert ".target sm_90a" in kernel.ptx
        assert "services/denoiser" not in kernel.ptx  # the digest does not depend on where it was made
    assert aot.load(built, 90, "bf16", 128, "small").shared <= 48 * 1024


def test_the_assembler_takes_it(built: Path, tmp_path: Path) -> None:
    triton = importlib.import_module("triton")
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for file in built.parent.glob("kernels/*_small.ptx"):
        command = [str(ptxas), "--gpu-name", "sm_90a", str(file), "-o", str(tmp_path / "out.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_is_there_is_kept_and_what_is_cut_short_is_made_again(folder: Path) -> None:
    (folder / "kernels/amplified_attention_sm90_bf16_d128_small.ptx").write_text(".version 8.0\n")
    lines: list[str] = []
    manifest = aot.build(folder, **SM90, progress=lines.append)
    assert [line.rpartition(": ")[2] for line in lines] == ["compiling", "there already"]
    assert aot.load(manifest, 90, "bf16", 128, "small").ptx.rstrip().endswith("}")


def test_other_source_or_another_triton_makes_all_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "_compiled", lambda *asked: pytest.fail("compiles"))
    aot.build(folder, **SM90, progress=lambda line: None)
    manifest = folder / "manifest.json"
    for field in ("triton", "source_sha256"):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {field: "another"}))
        with pytest.raises(pytest.fail.Exception, match="compiles"):
            aot.build(folder, **SM90, progress=lambda line: None)
        manifest.write_text(json.dumps(content))


def test_a_changed_file_is_refused(folder: Path) -> None:
    file = folder / "kernels/amplified_attention_sm90_bf16_d128_fast.ptx"
    file.write_text(file.read_text().replace("ex2.approx", "lg2.approx", 1))
    with pytest.raises(KernelError, match="SHA-256"):
        aot.load(folder / "manifest.json", 90, "bf16", 128)
    file.unlink()
    with pytest.raises(KernelError, match=r"\.ptx: is missing"):
        aot.load(folder / "manifest.json", 90, "bf16", 128)


def test_what_was_not_compiled_is_refused_and_named(folder: Path) -> None:
    with pytest.raises(KernelError, match=r"\(80, 'bf16', 128, 'fast'\).*it has \(90, 'bf16', 128, 'fast'\)"):
        aot.load(folder / "manifest.json", 80, "bf16", 128)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is missing"),
        ("{", "no manifest"),
        ("[]", "no manifest"),
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
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    manifest = tmp_path / "manifest.json"
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(KernelError, match=complaint):
        aot.load(manifest, 90, "bf16", 128)


def test_a_manifest_names_no_file_of_its_own_choice(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("kernels/amplified", "../amplified", 1))
    with pytest.raises(KernelError, match="not its kernels'"):
        aot.load(manifest, 90, "bf16", 128)


def test_scratch_pointers_are_taken_off() -> None:
    stripped = aot.strip_scratch(PTX, ["*fp16", "i32"])
    assert stripped.count(".param ") == 2
    assert "k_param_2" not in stripped
    assert stripped.endswith(PTX[PTX.index(")\n.reqntid") :])


@pytest.mark.parametrize(
    ("ptx", "types", "complaint"),
    [
        (
            PTX.replace("[k_param_0]", "[k_param_3]"),
            ["*fp16", "i32"],
            "refers to its scratch parameter k_param_3",
        ),
        (PTX, ["*fp16", "*fp16"], "where a parameter of type .u64 should be"),
        (PTX, ["*fp16"], "4 parameters, of which 1"),
        (PTX, ["*fp16", "i32", "*fp16", "*fp16", "i32"], "4 parameters"),
        (".version 8.0", [], "no entry"),
    ],
)
def test_what_is_not_known_of_the_parameters_is_refused(ptx: str, types: list[str], complaint: str) -> None:
    with pytest.raises(KernelError, match=complaint):
        aot.strip_scratch(ptx, types)


def test_every_gpu_gets_what_it_can_read() -> None:
    got = {cc: aot.arch_for(*cc) for cc in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]}
    assert list(got.values()) == [80, 80, 89, 90, 100, 89, 89]
    with pytest.raises(KernelError, match=r"7\.5"):
        aot.arch_for(7, 5)


def test_a_kernel_comes_back_from_json(built: Path) -> None:
    kernel = aot.load(built, 90, "bf16", 128)
    assert Kernel.from_json(json.loads(json.dumps(kernel.to_json(ptx=True)))).checked() == kernel
    with pytest.raises(KernelError, match="SHA-256"):
        Kernel.from_json(kernel.to_json(ptx=True) | {"ptx": kernel.ptx + " "}).checked()
