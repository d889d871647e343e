"""Service processes for tests: started on a free port, ready by health, ended by pid."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[1]
# Ports above that of Milvus, and below those of outgoing connections on Linux, a range for each worker.
_FIRST_PORT = 20_000
_PORTS_OF_WORKER = 1_500
_WORKERS = 8
SERVICES = ("embedder", "cache", "denoiser", "scheduler", "gateway")


def _order_ports() -> Iterator[int]:
    """Yields the ports of this worker of pytest again and again, from a distant one on in each process."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    begin = _FIRST_PORT + worker * _PORTS_OF_WORKER
    for number in itertools.count(97 * os.getpid()):
        yield begin + number % _PORTS_OF_WORKER


_ports = _order_ports()


def free_port() -> int:
    """Returns a port that is free, and is returned to no other caller soon.

    The system would give one of those from which it also serves outgoing connections, so that another process
    could have it before the caller does.
    """
    for port in itertools.islice(_ports, _PORTS_OF_WORKER):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError(f"none of {_PORTS_OF_WORKER} ports from {_FIRST_PORT} on is free")


def choose_port_variables() -> dict[str, str]:
    """Returns variables that keep a `chorus up` off the default ports, which another test may use."""
    ports: set[int] = set()
    while len(ports) < len(SERVICES):
        ports.add(free_port())
    return {
        f"CHORUS_{service.upper()}_PORT": str(port) for service, port in zip(SERVICES, ports, strict=True)
    }


def wait_until_serving(target: str, seconds: float, alive: object = None) -> None:
    """Waits until the server at `target` is SERVING; raises TimeoutError after `seconds`.

    Args:
        alive: process of the server; raises ChildProcessError if it ends first.
    """
    end = time.monotonic() + seconds
    with grpc.insecure_channel(
        target, options=[("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stub lacks Watch
        while time.monotonic() < end:
            if isinstance(alive, subprocess.Popen) and alive.poll() is not None:
                raise ChildProcessError(f"the process ended with status {alive.returncode}")
            try:
                # The watch blocks until the status changes; its timeout allows the check for a dead process.
                for reply in stub.Watch(
                    health_pb2.HealthCheckRequest(service=""),
                    timeout=min(1.0, max(0.05, end - time.monotonic())),
                    wait_for_ready=True,
                ):
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.RpcError:
                continue
    raise TimeoutError(f"{target} is not serving after {seconds:g} s")


@dataclass
class ServiceProcess:
    """A running `python -m services.<name>`; kill and restart keep its port and environment."""

    name: str
    env: Mapping[str, str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, seconds: float = 90.0, wait: bool = True) -> None:
        prefix = f"CHORUS_{self.name.upper()}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.name}"],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self.env,
                    f"{prefix}_HOST": "127.0.0.1",
                    f"{prefix}_PORT": str(self.port),
                },
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait(seconds)

    def wait(self, seconds: float = 90.0) -> None:
        """Waits until the service serves; otherwise kills it and raises with the end of its log."""
        try:
            wait_until_serving(self.target, seconds, self.process)
        except (TimeoutError, ChildProcessError) as error:
            self.kill()
            raise type(error)(f"{self.name}: {error}\n{self.tail()}") from None

    def kill(self) -> None:
        """Sends SIGKILL and reaps the process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def terminate(self, seconds: float = 30.0) -> int:
        """Sends SIGTERM and waits for the drain; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends the process in any state."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def start_service(
    name: str, env: Mapping[str, str], log_dir: Path, port: int | None = None, seconds: float = 90.0
) -> Iterator[ServiceProcess]:
    """Runs `python -m services.<name>`, SERVING inside the block and ended after it."""
    service = ServiceProcess(name, env, port or free_port(), log_dir / f"{name}.log")
    service.start(seconds)
    try:
        yield service
    finally:
        service.stop()
