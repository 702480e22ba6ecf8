# SPDX-License-Identifier: Apache-2.0
"""`storage rekey --reencrypt` beside a guest that writes, whichever process dies on the way."""
import hashlib
import os
import signal
import subprocess
import time

import pytest

from qvtest import paths
from qvtest.vm import Vm, disk, wait_gone

pytestmark = pytest.mark.guest

SIZE = 48 << 20
MIB = 1 << 20
# Writes a MiB of random bytes, one of eight in turn, reads it back from the disk, discards another; says what it wrote.
WRITER = """powerbutton & i=0
while :; do i=$((i+1)); n=$((i%8)); head -c 1048576 /dev/urandom >/r; s=$(sha256sum </r)
dd if=/r of=/dev/vda bs=64k seek=$((n*16)) conv=fsync,notrunc 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
t=$(dd if=/dev/vda bs=64k skip=$((n*16)) count=16 2>/dev/null | sha256sum)
blkdiscard -o $((12582912+n*1048576)) -l 1048576 /dev/vda 2>/dev/null
[ "$s" = "$t" ] && echo "sum $n $s" && echo "count $i" || echo "BAD $i"; done"""


class Online:
    """A VM whose guest writes to `a`, which has a snapshot, and keys `k` and `l` for it."""

    def __init__(self, quantavirt, root):
        self.q, self.root = quantavirt, root
        self.content = os.urandom(SIZE)
        (root.parent / "first").write_bytes(self.content)
        quantavirt("storage", "import", "--name", "a", root.parent / "first", "--source-format", "raw", "--format", "encrypted")
        quantavirt("storage", "snapshot", "create", "a", "--name", "s")
        for name in "kl":
            quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", name)
        quantavirt("storage", "key-slot", "add", "a", "--key", "l")
        quantavirt("storage", "header-backup", "a", root.parent / "area")
        self.vm = Vm(quantavirt, root, "web", [disk("a")], WRITER).create().start()
        self.vm.wait_count(2)

    def rekey(self, *options):
        return subprocess.Popen([paths.QUANTAVIRT, "--root", self.root, "storage", "rekey", "a", "--key", "k", "--reencrypt",
                                 *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def replacing(self):
        return "being replaced" in self.q("storage", "info", "a").stdout

    def wait_replacing(self):
        self.vm.wait("the replacement to begin", self.replacing, 30)

    def done(self):
        """All is sealed with another key, and says what it should."""
        assert not self.replacing()
        assert [s["key"] for s in self.q("storage", "key-slot", "list", "a", "--json").json()] == ["k", "l"]
        self.q("pqc", "key-delete", "a")
        self.check()
        assert "another data key" in self.q("storage", "header-restore", "a", self.root.parent / "area", code=5).stderr

    def check(self):
        """After the VM has stopped. A killed process leaks what it had reserved."""
        result = self.q("storage", "check", "a", "--data", "--json", code=None).json()
        assert result["corruptions"] == 0 and result["sectors_bad"] == []
        assert self.export("--snapshot", "s") == self.content
        now, said = self.export(), {}
        console = self.vm.console()
        assert "BAD" not in console
        for line in console.splitlines():
            if line.startswith("sum ") and len(line.split()[-2]) == 64:
                said[int(line.split()[1])] = line.split()[2]
        last = self.vm.count() % 8
        for n, want in said.items():
            if n != (last + 1) % 8:  # that one may have been under way
                assert hashlib.sha256(now[n * MIB:(n + 1) * MIB]).hexdigest() == want, n
        assert now[8 * MIB:12 * MIB] == self.content[8 * MIB:12 * MIB] and now[20 * MIB:SIZE] == self.content[20 * MIB:]

    def export(self, *options):
        out = self.root.parent / "out"
        out.unlink(missing_ok=True)
        self.q("storage", "export", "a", out, "--format", "raw", *options)
        return out.read_bytes()


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    return out, err


def test_the_io_process_dies_and_the_next_one_goes_on(quantavirt, root):
    online = Online(quantavirt, root)
    job = online.rekey()
    online.wait_replacing()
    for _ in range(2):
        pid = online.vm.info()["io_pid"]
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        online.vm.wait_count(1)
    out, _ = finish(job)
    assert "has another data key" in out
    online.vm.wait_count(2)
    # An I/O process that is started anew gets the new key.
    os.kill(online.vm.info()["io_pid"], signal.SIGKILL)
    online.vm.wait_count(2)
    online.vm("stop", "--force")
    online.done()


def test_the_command_and_the_supervisor_die_and_the_same_command_goes_on(quantavirt, root):
    online = Online(quantavirt, root)
    job = online.rekey()
    online.wait_replacing()
    job.kill()
    job.wait(20)
    online.vm.wait_count(1)
    info = online.vm.info()
    for pid in (info["pid"], info["io_pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_gone(info["pid"], info["io_pid"], info["qemu_pid"])
    online.vm.wait("the image's lock to go", lambda: not quantavirt("storage", "info", "a", "--json").json()["locked"], 20)
    out, _ = finish(online.rekey())
    assert "has another data key" in out
    online.done()


def test_it_can_be_stopped_and_goes_on_beside_the_guest(quantavirt, root):
    online = Online(quantavirt, root)
    job = online.rekey("--json")
    online.wait_replacing()
    quantavirt("storage", "rekey", "a", "--stop", code=None)
    _, err = job.communicate(timeout=60)
    if job.returncode:  # it was in time
        assert "stopped before its end" in err and "the same command goes on" in err
        assert online.replacing()
        assert "goes on" not in quantavirt("storage", "rekey", "a", "--stop", code=1).stdout
        quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "m")
        assert "run it again with --key k" in quantavirt("storage", "rekey", "a", "--key", "m", "--reencrypt", code=2).stderr
    # Others may change keys, and the disk may grow, while it goes on.
    job = online.rekey("--json")
    quantavirt("storage", "resize", "a", "--size", str(SIZE + (4 << 20)))
    finish(job)
    online.vm.wait_count(2)
    assert not online.replacing()
    quantavirt("pqc", "key-delete", "a")
    online.vm("stop", "--force")
    online.check()
