# SPDX-License-Identifier: Apache-2.0
"""A Linux guest's virtio-blk driver against our device: rings of every kind, what it sees, kills under load."""
import hashlib
import signal
import socket
import threading
import time

import pytest

from qvtest import guest
from qvtest.io_process import IoProcess

pytestmark = pytest.mark.guest

DISK_SIZE = 64 << 20
BLOCK = b"0123456789abcde\n" * 4096  # 64 KiB
COUNT = 256

# 16 MiB of a fixed pattern, three times over, by four writers at once, each to its own quarter.
FILL = """
yes 0123456789abcde | head -c 4194304 > /tmp/p
for round in 1 2 3; do
    for seek in 0 1024 2048 3072; do
        dd if=/tmp/p of=/dev/vda bs=4k seek=$seek oflag=direct 2>/dev/null &
    done
    wait
done
sync
echo 3 > /proc/sys/vm/drop_caches
head -c 16777216 /dev/vda | sha256sum | cut -c1-64
"""
WANTED = hashlib.sha256(BLOCK * COUNT).hexdigest()

RINGS = {
    "split": "packed=off",
    "split-plain": "packed=off,event_idx=off,indirect_desc=off",
    "packed": "packed=on",
    "packed-plain": "packed=on,event_idx=off,indirect_desc=off,queue-size=64",
}


class Guest(threading.Thread):
    """A guest that runs a script in the background; `.finish()` gives what it printed."""

    def __init__(self, script, path, props):
        super().__init__(daemon=True)
        self.args = (script, ["-chardev", f"socket,id=c,path={path},reconnect-ms=100", "-device",
                              f"vhost-user-blk-pci,chardev=c,num-queues=2,{props}"])
        self.result = None
        self.start()

    def run(self):
        self.result = guest.boot(*self.args, wait=["/dev/vda"], memory="256M", timeout=300)

    def finish(self):
        self.join(310)
        assert self.result is not None, "the guest hangs"
        return self.result.check().output


def export(io, image, path):
    io.add_disk("d", image, "raw", cache="writeback")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        io.call("export-add", [sock.fileno()], id="e", disk="d", protocol="vhost-user-blk", fd=0, queues=2,
                serial="qv-test")


@pytest.fixture
def raw(disk_dir):
    path = disk_dir / "a.raw"
    with open(path, "wb") as f:
        f.truncate(DISK_SIZE)
    return path


def written(io):
    return io.call("stats", id="d")["ops"]["write"]["ops"]


@pytest.mark.parametrize("ring", sorted(RINGS))
def test_data_survives_kills_on_every_kind_of_ring(disk_dir, raw, ring):
    io = IoProcess()
    export(io, raw, disk_dir / "s")
    vm = Guest(FILL, disk_dir / "s", RINGS[ring])
    for _ in range(2):
        limit = time.monotonic() + 150
        while written(io) < 200 and vm.result is None:
            assert time.monotonic() < limit, "the guest does not write"
            time.sleep(0.005)
        io.process.send_signal(signal.SIGKILL)
        io.process.wait(10)
        io = IoProcess()
        export(io, raw, disk_dir / "s")
    assert vm.finish().split()[-1] == WANTED
    assert io.stop()[0] == 0
    with open(raw, "rb") as f:
        assert hashlib.sha256(f.read(len(BLOCK) * COUNT)).hexdigest() == WANTED


def test_what_the_guest_sees(disk_dir, raw):
    io = IoProcess()
    export(io, raw, disk_dir / "s")
    script = """
cd /sys/block/vda
for f in size serial cache_type ro queue/logical_block_size queue/write_cache queue/max_segments; do
    echo $f $(cat $f)
done
echo mq $(ls mq | wc -l)
echo discard $(($(cat queue/discard_max_bytes) > 0))
echo zeroes $(($(cat queue/write_zeroes_max_bytes) > 0))
echo 'write through' > cache_type
echo then $(cat cache_type), $(cat queue/write_cache)
"""
    out = Guest(script, disk_dir / "s", "packed=off").finish()
    lines = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
    assert io.stop()[0] == 0
    assert lines["size"] == str(DISK_SIZE // 512)
    assert lines["serial"] == "qv-test"
    assert lines["cache_type"] == "write back"
    assert lines["ro"] == "0"
    assert lines["queue/logical_block_size"] == "512"
    assert lines["queue/write_cache"] == "write back"
    assert lines["queue/max_segments"] == "126"
    assert lines["mq"] == "2" or lines["mq"] == "1"  # no more than CPUs
    assert lines["discard"] == "1"
    assert lines["zeroes"] == "1"
    assert lines["then"] == "write through, write through"
