# SPDX-License-Identifier: Apache-2.0
"""The I/O process with a Linux guest at its socket: no space, kills, growing disks."""
import hashlib
import os
import signal
import socket
import threading
import time

import pytest

from qvtest import guest
from qvtest.command import run
from qvtest.io_process import IoProcess

pytestmark = pytest.mark.guest

DISK_SIZE = 16 << 20

# A guest's script: writes 8 MiB of a fixed pattern; its status is what the guest sees.
FILL = "yes 0123456789abcde | head -c 8388608 > /tmp/p; dd if=/tmp/p of=/dev/vda bs=64k oflag=direct 2>/dev/null"
PATTERN = b"0123456789abcde\n" * (8388608 // 16)


class Guest(threading.Thread):
    """A guest that runs a script in the background; `.finish()` gives its GuestResult."""

    def __init__(self, script, path):
        super().__init__(daemon=True)
        self.args = (script, ["-chardev", f"socket,id=c,path={path},reconnect-ms=100", "-device",
                              "vhost-user-blk-pci,chardev=c,num-queues=2"])
        self.result = None
        self.start()

    def run(self):
        self.result = guest.boot(*self.args, wait=["/dev/vda"], memory="256M", timeout=90)

    def finish(self):
        self.join(100)
        assert self.result is not None, "the guest hangs"
        return self.result


def listen(path):
    if os.path.exists(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def export(io, image, path, fmt="raw", **args):
    """One disk "d" on a socket at `path`."""
    io.add_disk("d", image, fmt, **args)
    with listen(path) as sock:
        io.call("export-add", [sock.fileno()], id="e", disk="d", protocol="vhost-user-blk", fd=0, queues=2,
                serial="qv-test")


@pytest.fixture
def io():
    process = IoProcess()
    process.socket.settimeout(60)
    yield process
    if process.process.poll() is None:
        code, stderr = process.stop()
        assert code == 0, stderr


@pytest.fixture
def small_fs(disk_dir):
    """A file system of 12 MiB, in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = disk_dir / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder)
    yield folder
    run("umount", folder)


@pytest.fixture
def raw(disk_dir):
    return sparse(disk_dir / "a.raw")


def sparse(path):
    with open(path, "wb") as f:
        f.truncate(DISK_SIZE)
    return path


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read(len(PATTERN))).hexdigest()


WANTED = hashlib.sha256(PATTERN).hexdigest()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_full_disk_stops_and_goes_on_when_space_is_back(small_fs, disk_dir, io, qemu_img, fmt):
    (small_fs / "filler").write_bytes(b"\1" * (6 << 20))
    image = small_fs / "image"
    if fmt == "raw":
        sparse(image)
    else:
        qemu_img("create", "-f", "qcow2", image, str(DISK_SIZE))
    export(io, image, disk_dir / "s", fmt, cache="writeback")
    vm = Guest(FILL, disk_dir / "s")
    stopped = io.event("disk-stopped")
    assert (stopped["id"], stopped["errno"], stopped["op"]) == ("d", 28, "write")
    assert stopped["reason"] == "No space left on device"
    assert io.call("stats", id="d")["stopped"] == 28
    run("mount", "-o", "remount,size=48m", small_fs)
    assert io.event("disk-resumed") == {"id": "d"}
    vm.finish().check()
    assert io.call("stats", id="d")["stopped"] == 0
    io.call("export-remove", id="e")
    io.call("disk-remove", id="d")
    if fmt == "qcow2":
        assert qemu_img("check", "--output=json", image).get("corruptions", 0) == 0
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, disk_dir / "flat")
    assert digest(image if fmt == "raw" else disk_dir / "flat") == WANTED


def test_process_ends_while_a_disk_is_stopped(small_fs, disk_dir, io):
    (small_fs / "filler").write_bytes(b"\1" * (8 << 20))
    export(io, sparse(small_fs / "image"), disk_dir / "s", cache="writeback")
    vm = Guest(FILL, disk_dir / "s")
    io.event("disk-stopped")
    began = time.monotonic()
    code, stderr = io.stop()
    assert code == 0, stderr
    assert time.monotonic() - began < 5
    with listen(disk_dir / "s"):  # whoever comes next: the guest's request was kept, not failed
        (small_fs / "filler").unlink()
        run("mount", "-o", "remount,size=48m", small_fs)
    second = IoProcess()
    second.socket.settimeout(60)
    export(second, small_fs / "image", disk_dir / "s", cache="writeback")
    vm.finish().check()
    assert second.stop()[0] == 0
    assert digest(small_fs / "image") == WANTED


def test_enospc_is_reported_where_asked_for(small_fs, disk_dir, io):
    (small_fs / "filler").write_bytes(b"\1" * (8 << 20))
    export(io, sparse(small_fs / "image"), disk_dir / "s", cache="writeback", on_enospc="report")
    assert Guest(FILL, disk_dir / "s").finish().status not in (0, None)
    assert io.call("stats", id="d")["ops"]["write"]["errors"] > 0


def test_guest_goes_on_when_the_process_is_killed(disk_dir, raw, io):
    export(io, raw, disk_dir / "s", cache="writeback")
    script = f"{FILL} && echo 3 > /proc/sys/vm/drop_caches && head -c {len(PATTERN)} /dev/vda | sha256sum | cut -c1-64"
    vm = Guest(script, disk_dir / "s")
    while io.call("stats", id="d")["ops"]["write"]["ops"] < 8:
        time.sleep(0.01)
    io.process.send_signal(signal.SIGKILL)
    io.process.wait(10)
    second = IoProcess()
    export(second, raw, disk_dir / "s", cache="writeback")
    assert vm.finish().check().output.split()[-1] == WANTED  # QEMU's words about the kill come before
    assert second.call("stats", id="d")["ops"]["write"]["ops"] > 0  # it did some of the work
    assert second.stop()[0] == 0
    assert digest(raw) == WANTED


def test_guest_sees_a_grown_disk(disk_dir, raw, io):
    export(io, raw, disk_dir / "s")
    want = (2 * DISK_SIZE) // 512
    vm = Guest(f"for i in $(seq 200); do [ $(cat /sys/block/vda/size) = {want} ] && exit 0; usleep 100000; done; "
               "cat /sys/block/vda/size; exit 1", disk_dir / "s")
    while io.call("stats", id="d")["ops"]["read"]["ops"] == 0:  # its kernel looks for partitions
        time.sleep(0.05)
    io.call("disk-resize", id="d", size=2 * DISK_SIZE)
    vm.finish().check()


def test_pause_holds_the_guest_back(disk_dir, raw, io):
    export(io, raw, disk_dir / "s", cache="writeback")
    vm = Guest(FILL, disk_dir / "s")
    while io.call("stats", id="d")["ops"]["write"]["ops"] < 4:
        time.sleep(0.01)
    io.call("disk-pause", id="d")
    before = io.call("stats", id="d")
    assert before["in_flight"] == 0
    time.sleep(0.3)
    assert io.call("stats", id="d")["ops"] == before["ops"]
    io.call("disk-resume", id="d")
    vm.finish().check()
    assert digest(raw) == WANTED
