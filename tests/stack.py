"""All four services as processes, wired as in a deployment, on the shipped model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.processes import ServiceProcess, free_port

NAMES = ("embedder", "cache", "denoiser", "scheduler")


class Stack:
    """Services by name: `stack["cache"].kill()`, `stack["cache"].start()`."""

    def __init__(
        self, directory: Path, extra: Mapping[str, str], ports: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        ports = {name: ports.get(name) or free_port() for name in NAMES}
        target = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        env = {
            "CHORUS_CACHE_MILVUS_URI": str(directory / "milvus.db"),
            "CHORUS_CACHE_BLOB_DIR": str(directory / "blobs"),
            "CHORUS_DENOISER_CACHE_TARGET": target["cache"],
            "CHORUS_DENOISER_THREADS": "1",
            "CHORUS_SCHEDULER_EMBEDDER_TARGET": target["embedder"],
            "CHORUS_SCHEDULER_CACHE_TARGET": target["cache"],
            "CHORUS_SCHEDULER_DENOISER_TARGET": target["denoiser"],
            "CHORUS_SCHEDULER_DATABASE": str(directory / "jobs.db"),
            "CHORUS_SCHEDULER_VIDEO_DIR": str(directory / "videos"),
            **extra,
        }
        self.environment = env
        self.services = {
            name: ServiceProcess(name, env, ports[name], directory / f"{name}.log") for name in NAMES
        }

    def __getitem__(self, name: str) -> ServiceProcess:
        return self.services[name]

    @property
    def target(self) -> str:
        """Address of the public API."""
        return self.services["scheduler"].target

    def start(self) -> None:
        for service in self.services.values():
            service.start(wait=False)
        for service in self.services.values():
            service.wait()

    def stop(self) -> None:
        for service in reversed(self.services.values()):
            service.stop()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{service.tail()}" for name, service in self.services.items())


@contextmanager
def running_stack(
    directory: Path, extra: Mapping[str, str] | None = None, *, ports: Mapping[str, int] | None = None
) -> Iterator[Stack]:
    """Runs all four services, SERVING inside the block and ended after it.

    Args:
        ports: by service, if it must listen on a certain one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stack = Stack(directory, extra or {}, ports or {})
    with ExitStack() as cleanup:
        cleanup.callback(stack.stop)
        stack.start()
        yield stack
