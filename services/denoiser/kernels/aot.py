"""The kernel, compiled ahead of time to PTX: what TensorRT's plugins read from a disk.

A folder holds `manifest.json` and, under `kernels/`, one file of PTX for each kernel that it lists. Making it
needs Triton and no GPU; reading it needs neither.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from services.denoiser.kernels.signature import ARGUMENTS, parameter_type

ARCHS = (80, 89, 90, 100)
DTYPES = ("fp16", "bf16")
HEAD_DIMS = (64, 128)
TACTICS = ("small", "fast")
SOURCES = tuple(Path(__file__).with_name(name) for name in ("amplified_attention.py", "signature.py"))
_VERSION = 1
_ENTRY = re.compile(r"(\.visible\s+\.entry\s+(\w+)\s*\()(.*?)(\s*\))", re.DOTALL)
_THREADS = re.compile(r"\.reqntid\s+(\d+)")


class KernelError(ValueError):
    """A kernel is missing, is not what its manifest says, or cannot be used as asked."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        name: of its entry in the PTX.
        arch: 10 times the compute capability.
        dtype: of q, k, v and the output; "fp16" or "bf16".
        block_m, block_n: queries and keys of a block; the grid is (N / block_m rounded up, B · H).
        shared: bytes of dynamic shared memory; more than 48 KiB have to be asked for.
        parameters: names and types, in order; "*" marks a pointer.
        sha256: of the PTX.
        ptx: the PTX, where it was loaded.
    """

    name: str
    arch: int
    dtype: str
    head_dim: int
    tactic: str
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    shared: int
    parameters: tuple[tuple[str, str], ...]
    sha256: str
    ptx: str = ""

    @property
    def file(self) -> str:
        """Its place in the folder."""
        return f"kernels/{self.name}_sm{self.arch}_{self.dtype}_d{self.head_dim}_{self.tactic}.ptx"

    def grid(self, batch: int, heads: int, queries: int) -> tuple[int, int, int]:
        """Blocks to launch."""
        return -(-queries // self.block_m), batch * heads, 1

    def checked(self) -> Kernel:
        """This kernel. Raises KernelError where its PTX is not what its digest says."""
        if (digest := _digest(self.ptx.encode())) != self.sha256:
            raise KernelError(f"{self.file}: has SHA-256 {digest}, not {self.sha256}")
        return self

    @classmethod
    def from_json(cls, value: Any) -> Kernel:
        """The inverse of `to_json`. Raises KernelError."""
        types = {field.name: {"int": int, "str": str}.get(str(field.type), list) for field in fields(cls)}
        if not isinstance(value, dict) or not set(value) <= set(types):
            raise KernelError("a kernel's description has unknown fields")
        for name, wanted in types.items():
            if name != "ptx" and type(value.get(name)) is not wanted:
                raise KernelError(
                    f"a kernel's description has no {name}, or of another type than {wanted.__name__}"
                )
        parameters = tuple((str(name), str(type_)) for name, type_ in value["parameters"])
        return cls(**{**value, "parameters": parameters})

    def to_json(self, *, ptx: bool = False) -> dict[str, Any]:
        """As plain values, with or without the PTX."""
        value = asdict(self) | {"parameters": [list(parameter) for parameter in self.parameters]}
        return value if ptx else {k: v for k, v in value.items() if k != "ptx"}


def build(
    folder: Path,
    *,
    archs: Iterable[int] = ARCHS,
    dtypes: Iterable[str] = DTYPES,
    head_dims: Iterable[int] = HEAD_DIMS,
    tactics: Iterable[str] = TACTICS,
    progress: Callable[[str], object] = print,
) -> Path:
    """Compile what is asked for and not there yet; the path of the manifest.

    What is there stays when kernel source, Triton and digests are the same, and is made again otherwise.
    Raises KernelError when a compiled kernel does not have the parameters it should have.
    """
    manifest = folder / "manifest.json"
    made = importlib.metadata.version("triton"), _digest(b"".join(path.read_bytes() for path in SOURCES))
    kept = {kernel.file: kernel for kernel in _intact(manifest, *made)}
    wanted = list(product(archs, dtypes, head_dims, tactics))
    for i, (arch, dtype, head_dim, tactic) in enumerate(wanted, 1):
        label = f"[{i}/{len(wanted)}] sm_{arch} {dtype} head size {head_dim} {tactic}"
        if any(
            (k.arch, k.dtype, k.head_dim, k.tactic) == (arch, dtype, head_dim, tactic) for k in kept.values()
        ):
            progress(f"{label}: there already")
            continue
        progress(f"{label}: compiling")
        kernel = _compiled(arch, dtype, head_dim, tactic)
        _write(folder / kernel.file, kernel.ptx)
        kept[kernel.file] = kernel
        # After each kernel, so that whoever is interrupted goes on where it stopped.
        listed = [k.to_json() | {"file": k.file} for k in sorted(kept.values(), key=lambda k: k.file)]
        content = {"version": _VERSION, "triton": made[0], "source_sha256": made[1], "kernels": listed}
        _write(manifest, json.dumps(content, indent=1) + "\n")
    return manifest


def load(manifest: Path, arch: int, dtype: str, head_dim: int, tactic: str = "fast") -> Kernel:
    """A kernel with its PTX, whose digest was verified. Raises KernelError."""
    kernels = _read(manifest)["kernels"]
    for kernel in kernels:
        if (kernel.arch, kernel.dtype, kernel.head_dim, kernel.tactic) == (arch, dtype, head_dim, tactic):
            return _verified(manifest.parent, kernel)
    there = sorted({(k.arch, k.dtype, k.head_dim, k.tactic) for k in kernels})
    asked = (arch, dtype, head_dim, tactic)
    raise KernelError(f"{manifest}: has no kernel {asked}; it has {', '.join(map(str, there)) or 'none'}")


def arch_for(major: int, minor: int) -> int:
    """The arch whose PTX a GPU of a compute capability takes.

    That of 9.0 and 10.0 is for these alone; that of 8.0 and 8.9 is also for what came after.
    Raises KernelError for older GPUs.
    """
    exact = 10 * major + minor
    if exact in ARCHS:
        return exact
    if exact < min(ARCHS):
        raise KernelError(f"no kernel for compute capability {major}.{minor}: 8.0 is the oldest")
    return 89 if exact > 89 else 80


def strip_scratch(ptx: str, types: Iterable[str]) -> str:
    """PTX without the scratch pointers that Triton appends to the parameters, which plugins do not pass.

    `types` are the parameters' types as Triton writes them. Raises KernelError where the PTX has others, or
    refers to what is to go.
    """
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise KernelError("the PTX has no entry")
    found = [p.strip() for p in entry[3].split(",")]
    wanted = [".u64" if t.startswith("*") else ".u32" for t in types]
    for parameter, kind in zip(found, wanted, strict=False):
        if parameter.split()[:2] != [".param", kind]:
            raise KernelError(f"the PTX has '{parameter}' where a parameter of type {kind} should be")
    extra = found[len(wanted) :]
    if len(found) < len(wanted) or len(extra) > 2 or any(p.split()[1] != ".u64" for p in extra):
        raise KernelError(f"the PTX has {len(found)} parameters, of which {len(wanted)} are known")
    for parameter in extra:
        name = parameter.split()[-1]
        if len(re.findall(rf"\b{re.escape(name)}\b", ptx)) != 1:
            raise KernelError(f"the PTX refers to its scratch parameter {name}")
    body = "\n\t" + ",\n\t".join(found[: len(wanted)])
    return ptx[: entry.start(3)] + body + ptx[entry.end(3) :]


def _compiled(arch: int, dtype: str, head_dim: int, tactic: str) -> Kernel:
    from services.denoiser.kernels import amplified_attention as triton_kernel  # loads Triton

    launch = triton_kernel.TACTICS[tactic]
    compiled = triton_kernel.compile_for(arch, dtype, head_dim, launch)
    about = compiled.metadata
    if about.global_scratch_size or about.profile_scratch_size or about.num_ctas != 1:
        raise KernelError("the compiled kernel wants scratch memory or clusters, which plugins do not give")
    parameters = tuple((name, parameter_type(name, dtype)) for name in ARGUMENTS)
    ptx = strip_scratch(compiled.asm["ptx"], (type_ for _, type_ in parameters))
    threads = _THREADS.search(ptx)
    if threads is None or int(threads[1]) != 32 * launch.warps:
        raise KernelError(
            f"the compiled kernel wants {threads and threads[1]} threads, not {32 * launch.warps}"
        )
    return Kernel(
        name=about.name,
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        tactic=tactic,
        block_m=launch.block_m,
        block_n=launch.block_n,
        num_warps=launch.warps,
        num_stages=launch.stages,
        shared=about.shared,
        parameters=parameters,
        sha256=_digest(ptx.encode()),
        ptx=ptx,
    )


def _intact(manifest: Path, triton: str, source: str) -> list[Kernel]:
    """The kernels of a manifest that need not be made again."""
    try:
        content = _read(manifest)
    except KernelError:
        return []
    if (content["triton"], content["source_sha256"]) != (triton, source):
        return []
    intact = []
    for kernel in content["kernels"]:
        try:
            intact.append(_verified(manifest.parent, kernel))
        except KernelError:
            continue
    return intact


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json.loads(manifest.read_text())
        if content["version"] != _VERSION:
            raise KernelError(f"{manifest}: is of version {content['version']}, not {_VERSION}")
        files = [entry.pop("file") for entry in content["kernels"]]
        kernels = [Kernel.from_json(entry) for entry in content["kernels"]]
        if files != [kernel.file for kernel in kernels]:
            raise KernelError(f"{manifest}: names files that are not its kernels'")
        return {"triton": content["triton"], "source_sha256": content["source_sha256"], "kernels": kernels}
    except FileNotFoundError as error:
        raise KernelError(f"{manifest}: is missing; python -m services.denoiser.kernels makes it") from error
    except KernelError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise KernelError(f"{manifest}: is no manifest of kernels: {error!r}") from error


def _verified(folder: Path, kernel: Kernel) -> Kernel:
    path = folder / kernel.file
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise KernelError(f"{path}: is missing") from error
    return replace(kernel, ptx=content.decode(errors="replace")).checked()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
