"""Verifies the process owner of the test servers, and with the marker `servers` the servers themselves."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.testservers import command
from infra.testservers.install import install_debian_packages
from infra.testservers.main import main
from infra.testservers.processes import Processes, ServerError

ROOT = Path(__file__).resolve().parents[3]
PYTHON = sys.executable


def has_ended(pid: int) -> bool:
    """Returns whether no such process runs. A zombie, which only waits to be reaped, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def test_start_logs_output_and_adds_variables(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        server = processes.start("greeter", ["sh", "-c", "echo hello $WHO; sleep 60"], env={"WHO": "there"})
        server.wait_until(lambda: b"hello there" in server.log.read_bytes(), 30)


def test_stop_kills_a_process_that_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; wait"
    with Processes(tmp_path) as processes:
        server = processes.start("stubborn", ["sh", "-c", script])
        server.wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 30)
    for pid in pids.read_text().split():
        wait_for(functools.partial(has_ended, int(pid)))


def test_start_after_stop_is_rejected(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.stop()
    with pytest.raises(ServerError, match="late is not started"):
        processes.start("late", ["sleep", "600"])


def test_early_exit_is_reported_with_the_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        server = processes.start("broken", ["sh", "-c", "echo no disk here; exit 3"])
        with pytest.raises(
            ServerError, match=r"broken ended with status 3[\s\S]*no disk here[\s\S]*broken\.log"
        ):
            server.wait_until(lambda: False, 30)


def test_wait_until_raises_at_the_deadline(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        server = processes.start("slow", ["sleep", "600"])
        with pytest.raises(ServerError, match=r"slow was not ready within 0\.2 s"):
            server.wait_until(lambda: False, 0.2)


def test_call_raises_for_a_failed_command(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.call("step", ["true"], seconds=30)
        with pytest.raises(ServerError, match="step ended with status 1"):
            processes.call("step", ["false"], seconds=30)


def test_servers_end_with_a_killed_owner(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import time; from pathlib import Path; from infra.testservers.processes import Processes\n"
        f"command = ['sh', '-c', 'echo $$ > {pid_file}; exec sleep 600']\n"
        f"Processes(Path({str(tmp_path)!r})).start('server', command)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen([PYTHON, "-c", script], cwd=ROOT)
    try:
        wait_for(lambda: pid_file.exists() and bool(pid_file.read_text().strip()))
        server = int(pid_file.read_text())
        assert not has_ended(server)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_for(lambda: has_ended(server))


def test_install_names_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"a-package": ["no-such-program"], "coreutils": ["true"]}
    log = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        patch.setattr("shutil.which", lambda name: None if name == "no-such-program" else f"/bin/{name}")
        with pytest.raises(ServerError, match=r"not installed: a-package\. Run this once as root"):
            install_debian_packages(packages, log)
        patch.setattr("shutil.which", lambda name: "/bin/true" if name == "true" else None)
        with pytest.raises(ServerError, match=r"not installed: no-such-program\. This is not Debian"):
            install_debian_packages(packages, log)
    install_debian_packages({"coreutils": ["true"]}, log)


def test_unknown_command_starts_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["no-such-command-at-all"]) == 127
    assert "no such command: no-such-command-at-all" in capsys.readouterr().err


def test_run_passes_variables_and_returns_the_status() -> None:
    assert command.run(["sh", "-c", 'exit "$STATUS"'], {"STATUS": "7"}) == 7
    assert command.run(["sh", "-c", "kill -KILL $$"], {}) == 128 + signal.SIGKILL


def test_checkout_has_one_run_at_a_time(tmp_path: Path) -> None:
    home = tmp_path / "build" / "servers"
    with command.exclusive(home), pytest.raises(ServerError, match="another run"), command.exclusive(home):
        pass
    with command.exclusive(home):
        pass


def require_variable(name: str) -> str:
    return os.environ.get(name) or pytest.skip(f"{name} is not set: make test-servers starts such a server")


@pytest.mark.servers
def test_milvus_has_the_pinned_version() -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(uri=require_variable("CHORUS_TEST_MILVUS_URI"), timeout=30)
    assert client.get_server_version().startswith("v2.3.5")


@pytest.mark.servers
def test_s3_accepts_only_valid_signatures() -> None:
    from minio import Minio
    from minio.error import S3Error

    endpoint, access = (
        require_variable("CHORUS_TEST_S3_ENDPOINT"),
        require_variable("CHORUS_TEST_S3_ACCESS_KEY"),
    )
    bucket = f"chorus-test-{uuid.uuid4().hex[:12]}"
    good = Minio(endpoint, access, require_variable("CHORUS_TEST_S3_SECRET_KEY"), secure=False)
    good.make_bucket(bucket)
    good.put_object(bucket, "kept", io.BytesIO(b"data"), 4)
    for access_key, secret, code in [
        (access, "a-guess", "SignatureDoesNotMatch"),
        ("unknown", "a-guess", "InvalidAccessKeyId"),
        (None, None, "AccessDenied"),
    ]:
        with pytest.raises(S3Error) as refused:
            Minio(endpoint, access_key, secret, secure=False).remove_object(bucket, "kept")
        assert refused.value.code == code
    assert good.stat_object(bucket, "kept").size == 4
