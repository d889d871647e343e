"""Milvus standalone, from the pinned Python package that carries its binary.

The package's own `milvus-server` runs the binary as a grandchild that outlives it. Its configuration and
its files are made by the package, the binary is then our child.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.testservers.install import python_program
from infra.testservers.processes import Processes, answers, free_port

REQUIREMENT = "milvus==2.3.5"
UNPACK_SECONDS = 180
READY_SECONDS = 240

# Run by the environment's own Python: arguments are the data directory and the port of the proxy. The
# package looks for the other ports itself, upwards from the usual ones. Parts find each other by the
# address they register: 127.0.0.1 instead of the machine's first one.
PREPARE = """
import sys, milvus
config = milvus.MilvusServerConfig(data_dir=sys.argv[1], proxy_port=int(sys.argv[2]))
for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
    config.set(f"{part}.ip", "127.0.0.1")
config.resolve()
milvus._initialize_data_files(config.base_data_dir)
"""

# The etcd inside: without this, always on 2379 and 2380.
ETCD = """\
name: default
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""


def start(processes: Processes, home: Path, state: Path, logs: Path) -> dict[str, str]:
    """Installs, starts and waits. Returns the environment variables that lead to the server.

    Args:
        home: keeps the installation and the unpacked binaries (330 MB) for the next run.
        state: a directory for the data.
    """
    program = python_program(REQUIREMENT, "milvus-server", home, logs / "install-milvus.log")
    unpacked = program.parent.parent / "unpacked"
    unpacked.mkdir(exist_ok=True)
    (state / "bin").symlink_to(unpacked)
    port, health = free_port(), free_port()
    python = program.with_name("python")
    processes.call("milvus-prepare", [python, "-c", PREPARE, state, str(port)], seconds=UNPACK_SECONDS)
    etcd = state / "etcd.yaml"
    etcd.write_text(ETCD.format(client=free_port(), peer=free_port()))
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
def tidied() -> Iterator[None]:
    """Removes, at the end, what Milvus writes to fixed places outside its data and a SIGKILL leaves there.

    Files of a Milvus that still runs, and those of other users, stay.
    """
    yield
    for directory in (Path("/run/milvus"), Path("/tmp/milvus")):
        # Not ours to remove, not there, or not empty: OSError.
        with suppress(OSError):
            named = {path: path.name.removeprefix("server_id_") for path in directory.glob("server_id_*")}
            named |= {path: path.read_text().strip() for path in directory.glob("standalone.pid")}
            for path, pid in named.items():
                if not Path("/proc", pid).exists():
                    path.unlink()
            directory.rmdir()
