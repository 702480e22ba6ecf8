# SPDX-License-Identifier: Apache-2.0
"""Guests on encrypted disks: their data, and where it must never be."""
import base64
import os
import signal
import struct
from pathlib import Path

import pytest

from qvtest import paths
from qvtest.command import run
from qvtest.vm import COUNTER, Vm, disk, wait_gone

pytest.importorskip("cryptography")
from qvtest.encrypted import Image  # noqa: E402

pytestmark = pytest.mark.guest

# The guest makes the marker itself, so that it stands in no command line and no configuration.
WRITE = """M=$(printf 'qv%s%s' plain text); for d in vda vdb; do mkdir /mnt/$d
mke2fs /dev/$d >/dev/null && mount -t ext4 /dev/$d /mnt/$d || exit 1; yes $M | head -c 3000000 >/mnt/$d/f; sync
sha256sum </mnt/$d/f; umount /mnt/$d; done"""
READ = """for d in vda vdb; do mkdir /mnt/$d; mount -t ext4 -o ro /dev/$d /mnt/$d || exit 1
sha256sum < /mnt/$d/f; done"""
MARKER = b"qvplaintext\nqvplaintext"


def files_with(folder, needle):
    """Files below FOLDER that hold NEEDLE."""
    return [str(f) for f in Path(folder).rglob("*") if f.is_file() and not f.is_symlink() and needle in f.read_bytes()]


def private_key(path):
    text = "".join(line for line in path.read_text().splitlines() if not line.startswith("-"))
    return base64.b64decode(text)


def memory_of(pid, dumpable_only=True):
    """Yields the memory of a process; with dumpable_only what its core file would hold."""
    mappings, flags = [], None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            mappings.append([*(int(x, 16) for x in first.split("-")), line.split()[1], True])
        elif first == "VmFlags:":
            mappings[-1][3] = " dd" not in line
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for start, end, mode, dumped in mappings:
            if "r" not in mode or (dumpable_only and not dumped) or end > 1 << 63:
                continue
            try:
                mem.seek(start)
                yield mem.read(end - start)
            except OSError:
                pass


def test_files_survive_and_plaintext_never_reaches_the_disk(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "24M")
    quantavirt("storage", "create", "--name", "b", "--format", "encrypted", "--size", "24M", "--aead", "ChaCha20-Poly1305",
               "--kem", "ML-KEM-1024")
    vm = Vm(quantavirt, root, "web", [disk("a"), disk("b", "encrypted")], WRITE).create().start()
    sums = vm.result().check().output.split()
    assert sums[0] == sums[2]
    assert files_with(root, MARKER) == []
    for image in "ab":
        quantavirt("storage", "export", image, root.parent / f"{image}.raw", "--format", "raw")
    assert files_with(root.parent, MARKER) == [str(root.parent / "a.raw"), str(root.parent / "b.raw")]  # the search works
    vm("delete")
    vm.config["storage"] = [disk("a"), disk("b")]
    vm.set_script(READ, ["/dev/vda", "/dev/vdb"])
    vm.create().start()
    assert vm.result().check().output.split() == sums


def test_the_process_that_faces_the_guest_holds_no_private_key(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "8M")
    secret = private_key(root / "keys/a.pem")
    needles = [secret[-2400:][i:i + 32] for i in (0, 700, 2368)] + [secret[-2400 - 68:][:32]]  # dk, and the seed
    vm = Vm(quantavirt, root, "web", [disk("a")], COUNTER).create().start()
    vm.wait_count()
    info = vm.info()
    for pid in (info["io_pid"], info["pid"]):
        for part in memory_of(pid, dumpable_only=False):
            assert not any(n in part for n in needles), pid
    for pid in (info["io_pid"], info["pid"], info["qemu_pid"]):
        said = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(n in said or base64.b64encode(n)[:24] in said for n in needles)
    limits = Path(f"/proc/{info['io_pid']}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")] == [["0", "0"]]
    # Killed as a crash would kill it: no core file, and the guest goes on.
    os.kill(info["io_pid"], signal.SIGABRT)
    wait_gone(info["io_pid"])
    vm.wait_count()
    vm("stop", "--force")
    assert list(root.rglob("core*")) == [] and files_with(root, needles[0]) == []


# Whole sectors, parts of sectors, and all of it read again; then the guest stays.
BUSY = """M=$(printf 'qv%s%s' plain text); yes $M | head -c 983040 >/tmp/m
for how in 'bs=64k' 'bs=512 seek=3001 count=600'; do dd if=/tmp/m of=/dev/vda $how oflag=direct conv=notrunc,fsync || exit 1; done
for i in 1 2; do dd if=/dev/vda of=/dev/null bs=512 iflag=direct count=3000 skip=1 2>/dev/null
dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2>/dev/null; done
echo it is on the disk; while :; do dd if=/tmp/m of=/dev/vda bs=4k seek=500 count=1 oflag=direct conv=notrunc 2>/dev/null
sleep 0.2; done"""


def core_of(pid, folder):
    """The memory in the core file that gdb makes of a process: what the kernel would put into one, were it allowed to
    write it. Without the registers, where the last bytes that were copied may stand."""
    run(paths.system_program("gcore"), "-o", folder / "core", str(pid))
    path = folder / f"core.{pid}"
    content = path.read_bytes()
    path.unlink()
    assert content[:6] == b"\x7fELF\x02\x01"
    table, = struct.unpack_from("<Q", content, 32)
    entry, count = struct.unpack_from("<HH", content, 54)
    memory = b""
    for i in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", content, table + i * entry)
        memory += content[offset:offset + length] if kind == 1 else b""
    return memory


def test_cores_hold_no_keys_and_no_data(quantavirt, root, disk_dir):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "8M")
    private = private_key(root / "keys/a.pem")[-2400:]
    vm = Vm(quantavirt, root, "web", [disk("a")], BUSY).create().start()
    vm.wait_console("it is on the disk")
    info = vm.info()
    names = ("io_pid", "pid", "qemu_pid")
    everything = {name: b"".join(memory_of(info[name], dumpable_only=False)) for name in names}
    dumpable = {name: b"".join(memory_of(info[name])) for name in names}
    cores = {name: core_of(info[name], disk_dir) for name in ("io_pid", "pid")}
    vm("stop", "--force")
    image = Image(root / "images/a.qcow2", private_key=private)
    assert MARKER in image.content() and files_with(root, MARKER) == []
    symmetric = {key: f"key {i}" for i, key in enumerate(image.secrets)}
    needles = {**symmetric, private[:32]: "the private key", private[-32:]: "its secret seed", MARKER: "the guest's data"}
    # The search works: all of the I/O process's memory has the data key, and the guest's memory.
    assert image.secrets[0] in everything["io_pid"] and MARKER in everything["io_pid"]
    assert len(cores["io_pid"]) < 1 << 20 < len(cores["pid"])  # it has only what the kernel maps for all
    for name, core in cores.items():
        assert [what for needle, what in needles.items() if needle in core] == [], name
        # Keys are in no page that might be dumped at all, whatever /proc/PID/coredump_filter says.
        assert [what for needle, what in needles.items() if needle in dumpable[name] and needle != MARKER] == [], name
    # A core of QEMU is the guest's memory; of keys it knows nothing.
    assert not any(needle in everything["qemu_pid"] for needle in [*symmetric, private[:32], private[-32:]])


def test_a_crash_of_the_io_process_loses_nothing_the_guest_was_told(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "8M")
    vm = Vm(quantavirt, root, "web", [disk("a")], COUNTER).create().start()
    for _ in range(3):
        vm.wait_count()
        os.kill(vm.info()["io_pid"], signal.SIGKILL)
    vm.wait_count()
    count = vm.count()
    vm("stop", "--force")
    quantavirt("storage", "export", "a", root.parent / "a.raw", "--format", "raw")
    assert int((root.parent / "a.raw").read_bytes()[:8]) >= count


def test_keys_change_beside_the_guest(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "8M")
    for name in "kl":
        quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-1024", "--name", name)
    vm = Vm(quantavirt, root, "web", [disk("a")], COUNTER).create().start()
    vm.wait_count()
    quantavirt("storage", "key-slot", "add", "a", "--key", "k")
    quantavirt("storage", "rekey", "a", "--key", "l")
    assert sorted(s["key"] for s in quantavirt("storage", "key-slot", "list", "a", "--json").json()) == ["k", "l"]
    quantavirt("storage", "key-slot", "remove", "a", "--key", "k")
    for name in "ak":
        quantavirt("pqc", "key-delete", name)
    assert "needed by image a" in quantavirt("pqc", "key-delete", "l", code=4).stderr
    vm.wait_count()
    # The I/O process that is started anew gets the data key, by way of the new slot or from memory.
    pid = vm.info()["io_pid"]
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    vm.wait_count()
    count = vm.count()
    vm("stop", "--force")
    quantavirt("storage", "export", "a", root.parent / "a.raw", "--format", "raw")
    assert int((root.parent / "a.raw").read_bytes()[:8]) >= count


def test_a_vm_whose_key_is_missing_says_which(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "8M")
    vm = Vm(quantavirt, root, "web", [disk("a")], COUNTER).create()
    for f in (root / "keys").glob("a.*"):
        f.rename(root.parent / f.name)
    failed = vm("start", code=3).stderr
    assert "it needs key a (ML-KEM-768" in failed and "store software answered: no such key" in failed
    for f in root.parent.glob("a.*"):
        f.rename(root / "keys" / f.name)
    vm.start()
    vm.wait_count()
    vm("stop", "--force")
