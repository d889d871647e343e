"""Kernel compiled ahead of time to PTX, stored on disk for TensorRT plugins.

A kernel folder contains `manifest.json` and one PTX file under `kernels/` for each kernel in the manifest.
Building needs Triton and no GPU; loading needs neither.
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

from services.denoiser.kernels.signature import ARGUMENTS, get_parameter_type

ARCHS = (80, 89, 90, 100)
DTYPES = ("fp16", "bf16")
HEAD_DIMS = (64, 128)
TACTICS = ("small", "fast")
SOURCES = tuple(Path(__file__).with_name(name) for name in ("amplified_attention.py", "signature.py"))
_VERSION = 1
_ENTRY = re.compile(r"(\.visible\s+\.entry\s+(\w+)\s*\()(.*?)(\s*\))", re.DOTALL)
_THREADS = re.compile(r"\.reqntid\s+(\d+)")


class KernelError(ValueError):
    """Fault of a kernel: missing, different from its manifest, or not suitable for a request."""


@dataclass(frozen=True)
class Kernel:
    """Compiled kernel.

    Attributes:
        name: Name of the entry point in the PTX.
        arch: Target architecture, 10 times the compute capability.
        dtype: Type of q, k, v and the output, "fp16" or "bf16".
        head_dim: Channels of one attention head.
        tactic: Name of the launch configuration.
        block_m: Queries per block; the grid is (ceil(N / block_m), B · H).
        block_n: Keys per block.
        num_warps: Warps of 32 threads per block.
        num_stages: Software pipeline depth.
        shared: Dynamic shared memory, in bytes; more than 48 KiB must be requested from the driver.
        parameters: Names and types in order; "*" marks a pointer.
        sha256: SHA-256 of the PTX.
        ptx: PTX text; empty if not loaded.
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
        """Path of the PTX file, relative to the kernel folder."""
        return f"kernels/{self.name}_sm{self.arch}_{self.dtype}_d{self.head_dim}_{self.tactic}.ptx"

    def grid(self, batch: int, heads: int, queries: int) -> tuple[int, int, int]:
        """Returns the launch grid."""
        return -(-queries // self.block_m), batch * heads, 1

    def checked(self) -> Kernel:
        """Returns this kernel. Raises KernelError if the PTX does not match its digest."""
        if (digest := _digest(self.ptx.encode())) != self.sha256:
            raise KernelError(f"{self.file}: has SHA-256 {digest}, not {self.sha256}")
        return self

    @classmethod
    def from_json(cls, value: Any) -> Kernel:
        """Parses the output of `to_json`. Raises KernelError."""
        types = {field.name: {"int": int, "str": str}.get(str(field.type), list) for field in fields(cls)}
        if not isinstance(value, dict) or not set(value) <= set(types):
            raise KernelError("a kernel's description has unknown fields")
        for name, type_ in types.items():
            if name != "ptx" and type(value.get(name)) is not type_:
                raise KernelError(f"a kernel's description has no {name} of type {type_.__name__}")
        parameters = tuple((str(name), str(type_)) for name, type_ in value["parameters"])
        return cls(**{**value, "parameters": parameters})

    def to_json(self, *, ptx: bool = False) -> dict[str, Any]:
        """Returns a JSON-serialisable dictionary, with or without the PTX."""
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
    """Compiles the requested kernels that the folder lacks. Returns the path of the manifest.

    Existing kernels are kept while kernel source, Triton version and digests match; otherwise they are
    compiled again.

    Raises:
        KernelError: A compiled kernel does not have the expected parameters.
    """
    manifest = folder / "manifest.json"
    triton_version = importlib.metadata.version("triton")
    source_digest = _digest(b"".join(path.read_bytes() for path in SOURCES))
    kept = {kernel.file: kernel for kernel in _load_intact(manifest, triton_version, source_digest)}
    requested = list(product(archs, dtypes, head_dims, tactics))
    for i, (arch, dtype, head_dim, tactic) in enumerate(requested, 1):
        label = f"[{i}/{len(requested)}] sm_{arch} {dtype} head size {head_dim} {tactic}"
        if any(
            (k.arch, k.dtype, k.head_dim, k.tactic) == (arch, dtype, head_dim, tactic) for k in kept.values()
        ):
            progress(f"{label}: up to date")
            continue
        progress(f"{label}: compiling")
        kernel = _compile(arch, dtype, head_dim, tactic)
        _write(folder / kernel.file, kernel.ptx)
        kept[kernel.file] = kernel
        # The manifest is written after each kernel, so that an interrupted build resumes where it stopped.
        content = {
            "version": _VERSION,
            "triton": triton_version,
            "source_sha256": source_digest,
            "kernels": [k.to_json() | {"file": k.file} for k in sorted(kept.values(), key=lambda k: k.file)],
        }
        _write(manifest, json.dumps(content, indent=1) + "\n")
    return manifest


def load(manifest: Path, arch: int, dtype: str, head_dim: int, tactic: str = "fast") -> Kernel:
    """Loads a kernel with its PTX and verifies the digest. Raises KernelError."""
    kernels = _read(manifest)["kernels"]
    for kernel in kernels:
        if (kernel.arch, kernel.dtype, kernel.head_dim, kernel.tactic) == (arch, dtype, head_dim, tactic):
            return _load_ptx(manifest.parent, kernel)
    available = sorted({(k.arch, k.dtype, k.head_dim, k.tactic) for k in kernels})
    requested = (arch, dtype, head_dim, tactic)
    raise KernelError(
        f"{manifest}: has no kernel {requested}; it has {', '.join(map(str, available)) or 'none'}"
    )


def select_arch(major: int, minor: int) -> int:
    """Returns the architecture to use for a GPU of a compute capability.

    PTX for 9.0 and 10.0 runs on these capabilities only; PTX for 8.0 and 8.9 also runs on later ones.
    Raises KernelError for older GPUs.
    """
    exact = 10 * major + minor
    if exact in ARCHS:
        return exact
    if exact < min(ARCHS):
        raise KernelError(f"no kernel for compute capability {major}.{minor}: the minimum is 8.0")
    return 89 if exact > 89 else 80


def strip_scratch(ptx: str, types: Iterable[str]) -> str:
    """Removes the scratch pointers that Triton appends to the parameters; plugins do not pass them.

    Args:
        types: Parameter types in Triton's notation, in order.

    Raises:
        KernelError: The PTX has other parameters, or its code reads a scratch pointer.
    """
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise KernelError("the PTX has no entry")
    parameters = [p.strip() for p in entry[3].split(",")]
    expected = [".u64" if t.startswith("*") else ".u32" for t in types]
    for parameter, kind in zip(parameters, expected, strict=False):
        if parameter.split()[:2] != [".param", kind]:
            raise KernelError(f"the PTX has '{parameter}' instead of a parameter of type {kind}")
    extra = parameters[len(expected) :]
    if len(parameters) < len(expected) or len(extra) > 2 or any(p.split()[1] != ".u64" for p in extra):
        raise KernelError(f"the PTX has {len(parameters)} parameters, of which {len(expected)} are known")
    for parameter in extra:
        name = parameter.split()[-1]
        if len(re.findall(rf"\b{re.escape(name)}\b", ptx)) != 1:
            raise KernelError(f"the PTX uses its scratch parameter {name}")
    body = "\n\t" + ",\n\t".join(parameters[: len(expected)])
    return ptx[: entry.start(3)] + body + ptx[entry.end(3) :]


def _compile(arch: int, dtype: str, head_dim: int, tactic: str) -> Kernel:
    from services.denoiser.kernels import amplified_attention as triton_kernel  # imports Triton

    launch = triton_kernel.TACTICS[tactic]
    compiled = triton_kernel.compile_kernel(arch, dtype, head_dim, launch)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise KernelError(
            "the compiled kernel needs scratch memory or clusters, which plugins do not provide"
        )
    parameters = tuple((name, get_parameter_type(name, dtype)) for name in ARGUMENTS)
    ptx = strip_scratch(compiled.asm["ptx"], (type_ for _, type_ in parameters))
    threads = _THREADS.search(ptx)
    if threads is None or int(threads[1]) != 32 * launch.warps:
        raise KernelError(
            f"the compiled kernel requires {threads and threads[1]} threads, not {32 * launch.warps}"
        )
    return Kernel(
        name=metadata.name,
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        tactic=tactic,
        block_m=launch.block_m,
        block_n=launch.block_n,
        num_warps=launch.warps,
        num_stages=launch.stages,
        shared=metadata.shared,
        parameters=parameters,
        sha256=_digest(ptx.encode()),
        ptx=ptx,
    )


def _load_intact(manifest: Path, triton: str, source: str) -> list[Kernel]:
    """Loads the kernels of a manifest that do not need to be compiled again."""
    try:
        content = _read(manifest)
    except KernelError:
        return []
    if (content["triton"], content["source_sha256"]) != (triton, source):
        return []
    intact = []
    for kernel in content["kernels"]:
        try:
            intact.append(_load_ptx(manifest.parent, kernel))
        except KernelError:
            continue
    return intact


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json.loads(manifest.read_text())
        if content["version"] != _VERSION:
            raise KernelError(f"{manifest}: has version {content['version']}, not {_VERSION}")
        files = [entry.pop("file") for entry in content["kernels"]]
        kernels = [Kernel.from_json(entry) for entry in content["kernels"]]
        if files != [kernel.file for kernel in kernels]:
            raise KernelError(f"{manifest}: lists a file name that does not match its kernel")
        return {"triton": content["triton"], "source_sha256": content["source_sha256"], "kernels": kernels}
    except FileNotFoundError as error:
        raise KernelError(
            f"{manifest}: is missing; create it with python -m services.denoiser.kernels"
        ) from error
    except KernelError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise KernelError(f"{manifest}: is not a kernel manifest: {error!r}") from error


def _load_ptx(folder: Path, kernel: Kernel) -> Kernel:
    """Returns the kernel with its PTX. Raises KernelError if the file is missing or differs."""
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
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.replace(path)
