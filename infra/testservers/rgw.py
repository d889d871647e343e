"""S3 server: a Ceph cluster of one monitor and one OSD with its RADOS gateway, from Debian packages."""

from __future__ import annotations

import secrets
import uuid
from pathlib import Path

from infra.testservers.install import install_debian_packages
from infra.testservers.processes import Processes, answers, find_free_port

PACKAGES = {
    "ceph-mon": ["ceph-mon"],
    "ceph-osd": ["ceph-osd"],
    "ceph-common": ["ceph", "ceph-authtool", "radosgw-admin"],
    "ceph-base": ["monmaptool"],
    "radosgw": ["radosgw"],
}
STEP_SECONDS = 120
READY_SECONDS = 120

# One copy on one OSD, few placement groups, a sparse file as the disk. The gateway needs no manager daemon.
CONFIG = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {state}/keyring
run_dir = {state}
admin_socket = {state}/$cluster-$name.asok
log_file = {logs}/$name.log
mon_cluster_log_file = {logs}/ceph-cluster.log
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true

[mon]
mon_data = {state}/mon
paxos_propose_interval = 0.1

[osd]
osd_data = {state}/osd
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096

[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_rados_pool_pg_num_min = 1
rgw_thread_pool_size = 32
"""
IDENTITIES = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
}


def start(processes: Processes, state: Path, logs: Path) -> dict[str, str]:
    """Installs and starts the server and waits for it. Returns the environment variables with its address.

    Args:
        state: directory of the data. Its path must be short, because it contains Unix sockets.
    """
    install_debian_packages(PACKAGES, logs / "install-ceph.log")
    fsid, disk, port, mon_port = str(uuid.uuid4()), str(uuid.uuid4()), find_free_port(), find_free_port()
    config, keyring, monmap = state / "ceph.conf", state / "keyring", state / "monmap"
    config.write_text(CONFIG.format(fsid=fsid, state=state, logs=logs, port=port, mon_port=mon_port))
    (state / "mon").mkdir()
    (state / "osd").mkdir()

    def call(*command: str | Path) -> None:
        processes.call("ceph-setup", command, seconds=STEP_SECONDS)

    keyring.touch(mode=0o600)
    for name, caps in IDENTITIES.items():
        pairs = [word for i in range(0, len(caps), 2) for word in ("--cap", *caps[i : i + 2])]
        call("ceph-authtool", keyring, "--gen-key", "-n", name, *pairs)

    address = f"[v2:127.0.0.1:{mon_port}]"
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    # The monitor reads the keys of all identities from the keyring.
    call("ceph-mon", "-c", config, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    processes.start("ceph-mon", ["ceph-mon", "-c", config, "-f", "-i", "a"])

    call("ceph", "-c", config, "--connect-timeout", str(STEP_SECONDS), "osd", "new", disk, "0")
    call("ceph-osd", "-c", config, "--mkfs", "-i", "0", "--osd-uuid", disk)
    processes.start("ceph-osd", ["ceph-osd", "-c", config, "-f", "-i", "0"])

    access, secret = "chorus-test", secrets.token_hex(20)
    # Waits for the OSD and creates the gateway's pools.
    user = [
        "--uid",
        "chorus",
        "--display-name",
        "Chorus tests",
        "--access-key",
        access,
        "--secret-key",
        secret,
    ]
    call("radosgw-admin", "-c", config, "-n", "client.rgw", "user", "create", *user)
    gateway = processes.start("radosgw", ["radosgw", "-c", config, "-f", "-n", "client.rgw"])
    gateway.wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), READY_SECONDS)
    return {
        "CHORUS_TEST_S3_ENDPOINT": f"127.0.0.1:{port}",
        "CHORUS_TEST_S3_ACCESS_KEY": access,
        "CHORUS_TEST_S3_SECRET_KEY": secret,
    }
