"""Milvus standalone from the pinned Python package that contains its binary.

The package's `milvus-server` runs the binary as a grandchild that outlives it. So the package only writes the
configuration and the files, and the binary is started here as a child process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.testservers.install import install_python_program
from infra.testservers.processes import Processes, answers, find_free_port

REQUIREMENT = "milvus==2.3.5"
UNPACK_SECONDS = 180
READY_SECONDS = 240

# Runs in the Python of the environment; arguments are the data directory and the port of the proxy. The
# package chooses the other ports, upwards from the default ones. Parts find each other by the address that
# they register: 127.0.0.1 instead of the machine's first address.
PREPARE = """
import sys, milvus
config = milvus.MilvusServerConfig(data_dir=sys.argv[1], proxy_port=int(sys.argv[2]))
for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
    config.set(f"{part}.ip", "127.0.0.1")
config.resolve()
milvus._initialize_data_files(config.base_data_dir)
"""

# Configuration of the embedded etcd, which otherwise uses ports 2379 and 2380.
ETCD = """\
name: default
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""


def start(processes: Processes, home: Path, state: Path, logs: Path) -> dict[str, str]:
    """Installs and starts the server and waits for it. Returns the environment variables with its address.

    Args:
        home: directory of the installation and the unpacked binaries (330 MB), kept for the next run.
        state: directory of the data.
    """
    program = install_python_program(REQUIREMENT, "milvus-server", home, logs / "install-milvus.log")
    unpacked = program.parent.parent / "unpacked"
    unpacked.mkdir(exist_ok=True)
    (state / "bin").symlink_to(unpacked)
    port, health = find_free_port(), find_free_port()
    python = program.with_name("python")
    processes.call("milvus-prepare", [python, "-c", PREPARE, state, str(port)], seconds=UNPACK_SECONDS)
    etcd = state / "etcd.yaml"
    etcd.write_text(ETCD.format(client=find_free_port(), peer=find_free_port()))
    server = processes.start(
        "milvus",
        [state / "bin" / "milvus", "run", "standalone"],
        env={
            "DEPLOY_MODE": "STANDALONE",
            "ETCD_CONFIG_PATH": str(etcd),
            "LD_LIBRARY_PATH": str(state / "bin"),
            "METRICS_PORT": str(health),
        },
        cwd=state,
    )
    server.wait_until(lambda: answers(f"http://127.0.0.1:{health}/healthz"), READY_SECONDS)
    return {"CHORUS_TEST_MILVUS_URI": f"http://127.0.0.1:{port}"}


@contextmanager
def remove_leftovers() -> Iterator[None]:
    """Removes on exit the files that a killed Milvus leaves in fixed directories outside its data.

    Keeps the files of a running Milvus and those of other users.
    """
    yield
    for directory in (Path("/run/milvus"), Path("/tmp/milvus")):
        # OSError: the directory belongs to another user, does not exist, or is not empty.
        with suppress(OSError):
            named = {path: path.name.removeprefix("server_id_") for path in directory.glob("server_id_*")}
            named |= {path: path.read_text().strip() for path in directory.glob("standalone.pid")}
            for path, pid in named.items():
                if not Path("/proc", pid).exists():
                    path.unlink()
            directory.rmdir()
