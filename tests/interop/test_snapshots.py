# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: ours for QEMU, QEMU's for us, and what the commands print and refuse."""
import json
import random
import re
import shutil
import subprocess
import time

import pytest
from qvtest import paths
from qvtest.command import Daemon, run

MIB = 1 << 20
VERSIONS = [("1.1", 65536, 16), ("1.1", 4096, 16), ("1.1", 512, 8), ("0.10", 65536, 16), ("1.1", 65536, 64)]


def qemu_img(*args, code=0):
    return run(paths.engine_program("qemu-img"), *args, code=code)


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


def clean(image):
    found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image).stdout)
    assert not found.get("corruptions") and not found.get("leaks") and found["check-errors"] == 0, found


def their_list(image):
    return json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image).stdout).get("snapshots", [])


def pattern(image, seed, size=4 * MIB):
    """Writes something of its own all over the disk."""
    rand = random.Random(seed)
    for _ in range(12):
        at = rand.randrange(0, size, 512)
        length = min(rand.choice([512, 4096, 70000 // 512 * 512, 300 * 1024]), size - at)
        op = rand.choice(["write -P %d" % rand.randrange(1, 255)] * 3 + ["write -z -u", "discard"])
        qemu_io(image, f"{op} {at} {length}")


def raw_of(image, folder, name, snapshot=None):
    out = folder / name
    how = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    qemu_img("convert", "-f", "qcow2", "-O", "raw", *how, image, out)
    return out.read_bytes()


@pytest.fixture
def image(tmpfs_dir):
    """Makes an image with qemu-img, and gives its path."""

    def make(name="a", compat="1.1", cluster=65536, bits=16, size="4M"):
        made = tmpfs_dir / f"{name}.qcow2"
        options = f"compat={compat},cluster_size={cluster}" + (f",refcount_bits={bits}" if compat == "1.1" else "")
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, made, size)
        return made

    return make


class Snapshots:
    """The commands, on a file of any maker."""

    TOOL = paths.BUILD / "tests/support/qcow2_snapshot"

    def __init__(self, path):
        self.path = path

    def __call__(self, what, *args, code=0):
        return run(self.TOOL, what, self.path, *args, code=code)


@pytest.mark.parametrize("compat,cluster,bits", VERSIONS)
def test_qemu_lists_applies_and_deletes_ours(tmpfs_dir, image, compat, cluster, bits):
    path = image("a", compat, cluster, bits)
    ours = Snapshots(path)
    content = {}
    for i, name in enumerate(["one", "two", "three"]):
        pattern(path, i)
        ours("create", name)
        clean(path)
        content[name] = raw_of(path, tmpfs_dir, "r")
    pattern(path, 9)
    clean(path)
    listed = their_list(path)
    assert [(s["id"], s["name"], s["vm-state-size"], s["vm-clock-sec"]) for s in listed] == [
        ("1", "one", 0, 0), ("2", "two", 0, 0), ("3", "three", 0, 0)]
    assert abs(listed[0]["date-sec"] - time.time()) < 600
    for name, want in content.items():
        assert raw_of(path, tmpfs_dir, "r", name) == want
    for name in ["two", "one", "three"]:
        qemu_img("snapshot", "-a", name, path)
        clean(path)
        assert raw_of(path, tmpfs_dir, "r") == content[name]
        qemu_img("snapshot", "-d", name, path)
        clean(path)
    assert their_list(path) == []


@pytest.mark.parametrize("compat,cluster,bits", VERSIONS)
def test_we_list_apply_and_delete_qemus(tmpfs_dir, image, compat, cluster, bits):
    path = image("a", compat, cluster, bits)
    ours = Snapshots(path)
    content = {}
    for i, name in enumerate(["one", "two", "three"]):
        pattern(path, 20 + i)
        qemu_img("snapshot", "-c", name, path)
        content[name] = raw_of(path, tmpfs_dir, "r")
    pattern(path, 29)
    assert [s["name"] for s in json.loads(ours("list").stdout)] == ["one", "two", "three"]
    for name in ["two", "one", "three"]:
        ours("restore", name)
        clean(path)
        assert raw_of(path, tmpfs_dir, "r") == content[name]
        ours("delete", name)
        clean(path)
    assert their_list(path) == []


@pytest.mark.parametrize("seed", range(2))
def test_both_in_turn(tmpfs_dir, image, seed):
    """Whoever does what, the content is right and the check finds nothing."""
    rand = random.Random(seed)
    path = image("a", "1.1", rand.choice([512, 4096, 65536]), 16)
    ours = Snapshots(path)
    content = {}
    theirs = {"create": "-c", "restore": "-a", "delete": "-d"}
    for step in range(14):
        pattern(path, 100 * seed + step)
        what = rand.choice(["create", "create", "restore", "delete"])
        name = f"s{step}" if what == "create" or not content else rand.choice(sorted(content))
        if what != "create" and not content:
            continue
        if rand.random() < 0.5:
            ours(what, name)
        else:
            qemu_img("snapshot", theirs[what], name, path)
        clean(path)
        if what == "create":
            content[name] = raw_of(path, tmpfs_dir, "r")
        elif what == "restore":
            assert raw_of(path, tmpfs_dir, "r") == content[name]
        else:
            del content[name]
        for other, want in content.items():
            assert raw_of(path, tmpfs_dir, "r", other) == want


def test_the_size_comes_back(tmpfs_dir, image):
    path = image(size="4M")
    ours = Snapshots(path)
    pattern(path, 1)
    ours("create", "small")
    before = raw_of(path, tmpfs_dir, "r")
    qemu_img("resize", "-q", "-f", "qcow2", path, "9M")
    qemu_io(path, "write -P 7 6M 1M")
    ours("create", "large")
    ours("restore", "small")
    clean(path)
    assert raw_of(path, tmpfs_dir, "r") == before and len(before) == 4 * MIB
    qemu_img("resize", "-q", "-f", "qcow2", path, "9M")
    assert raw_of(path, tmpfs_dir, "r") == before + bytes(5 * MIB)
    qemu_img("snapshot", "-a", "large", path)
    clean(path)
    assert len(raw_of(path, tmpfs_dir, "r")) == 9 * MIB


def test_compressed_clusters(tmpfs_dir, image):
    packed = tmpfs_dir / "packed.qcow2"
    path = image(cluster=4096)
    pattern(path, 5)
    qemu_img("convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=4096", path, packed)
    ours = Snapshots(packed)
    ours("create", "s")
    clean(packed)
    want = raw_of(packed, tmpfs_dir, "r")
    pattern(packed, 6)
    ours("restore", "s")
    clean(packed)
    assert raw_of(packed, tmpfs_dir, "r") == want
    ours("delete", "s")
    clean(packed)
    assert raw_of(packed, tmpfs_dir, "r") == want
    assert ours("restore", "s", code=3).stderr


def test_space_comes_back(image):
    path = image(size="64M")
    ours = Snapshots(path)
    qemu_io(path, "write -P 1 0 32M")
    ours("create", "s")
    qemu_io(path, "write -P 2 0 32M")
    full = path.stat().st_blocks * 512
    ours("delete", "s")
    assert path.stat().st_blocks * 512 < full - 30 * MIB
    clean(path)


def monitor(path, commands, *options):
    """A paused QEMU with the disk; what its monitor says."""
    argv = [paths.engine_program("qemu-system-x86_64"), "-nodefaults", "-display", "none", "-S", "-m", "16", "-drive",
            f"file={path},format=qcow2,if=virtio", "-monitor", "stdio", *options]
    result = subprocess.run([str(a) for a in argv], input=commands + "quit\n", capture_output=True, text=True, timeout=60,
                            check=True)
    assert "rror" not in result.stdout + result.stderr, result
    return result.stdout


def test_snapshot_with_the_memory_of_a_vm(quantavirt, root, image, tmpfs_dir):
    """QEMU's savevm, between our operations, is still there for its loadvm; grown disks do not show it."""
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "4M")
    path = root / "images/a.qcow2"
    shutil.copyfile(image(cluster=4096), path)
    pattern(path, 3)
    before = raw_of(path, tmpfs_dir, "r")
    monitor(path, "savevm vm1\n")
    quantavirt("storage", "snapshot", "create", "a", "--name", "ours")
    quantavirt("storage", "snapshot", "restore", "a", "--name", "vm1")
    clean(path)
    assert [s["has_memory"] for s in quantavirt("storage", "snapshot", "list", "a", "--json").json()] == [True, False]
    monitor(path, "", "-loadvm", "vm1")
    qemu_img("snapshot", "-a", "vm1", path)  # leaves the VM's state behind the disk's end
    quantavirt("storage", "resize", "a", "--size", "20M")
    clean(path)
    assert raw_of(path, tmpfs_dir, "r") == before + bytes(16 * MIB)
    quantavirt("storage", "snapshot", "delete", "a", "--name", "vm1")
    clean(path)


def test_narrow_refcounts_are_refused(image):
    path = image(bits=1)
    qemu_io(path, "write 0 64k")
    before = path.read_bytes()
    assert "cannot count" in Snapshots(path)("create", "s", code=1).stderr
    assert path.read_bytes()[:len(before)] == before
    clean(path)


def test_unknown_extra_data_is_kept(image):
    path = image(size="4M")
    ours = Snapshots(path)
    ours("create", "plain")
    data = bytearray(path.read_bytes())
    at = int.from_bytes(data[64:72], "big")
    assert int.from_bytes(data[at + 36:at + 40], "big") == 24
    entry = bytes(data[at:at + 40 + 24])
    tail = bytes(data[at + 64:at + 64 + 6])
    data[at:at + 40] = entry[:36] + (32).to_bytes(4, "big")
    data[at + 64:at + 72] = b"UNKNOWN!"
    data[at + 72:at + 78] = tail
    path.write_bytes(data)
    assert their_list(path)[0]["name"] == "plain"
    ours("create", "second")
    assert b"UNKNOWN!1plain" in path.read_bytes()
    assert [s["name"] for s in their_list(path)] == ["plain", "second"]
    clean(path)


# ---- the commands ----

def test_commands(quantavirt, root, tmpfs_dir):
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "8M")
    path = root / "images/a.qcow2"
    qemu_io(path, "write -P 1 0 1M")
    quantavirt("storage", "snapshot", "create", "a", "--name", "first")
    made = quantavirt("storage", "snapshot", "create", "a", "--name", "second", "--json").json()
    assert [s["name"] for s in made["snapshots"]] == ["first", "second"]
    qemu_io(path, "write -P 2 0 1M")
    assert "Snapshots:    2" in quantavirt("storage", "info", "a").stdout
    listed = quantavirt("storage", "snapshot", "list", "a", "--json").json()
    assert listed == quantavirt("storage", "info", "a", "--json").json()["snapshots"]
    assert set(listed[0]) == {"name", "id", "created", "size", "has_memory", "description"}
    assert listed[0]["name"] == "first" and listed[0]["id"] == "1" and listed[0]["size"] == 8 * MIB
    assert listed[0]["has_memory"] is False and listed[0]["description"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", listed[0]["created"])
    table = quantavirt("storage", "snapshot", "list", "a").stdout.splitlines()
    assert table[0].split() == ["ID", "NAME", "SIZE", "MEMORY", "CREATED"] and table[2].split()[:2] == ["2", "second"]
    quantavirt("storage", "export", "a", tmpfs_dir / "s.raw", "--format", "raw", "--snapshot", "first")
    quantavirt("storage", "export", "a", tmpfs_dir / "now.raw", "--format", "raw")
    assert (tmpfs_dir / "s.raw").read_bytes() == b"\1" * MIB + bytes(7 * MIB)
    assert (tmpfs_dir / "now.raw").read_bytes() == b"\2" * MIB + bytes(7 * MIB)
    quantavirt("storage", "snapshot", "restore", "a", "--name", "first")
    quantavirt("storage", "snapshot", "delete", "a", "--name", "1")
    assert [s["name"] for s in their_list(path)] == ["second"]
    clean(path)
    assert raw_of(path, tmpfs_dir, "r")[:MIB] == b"\1" * MIB


def test_refusals(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "8M")
    quantavirt("storage", "create", "--name", "r", "--format", "raw", "--size", "8M")
    quantavirt("storage", "snapshot", "create", "a", "--name", "s")
    for args, code in [(("create", "a", "--name", "s"), 1), (("create", "r", "--name", "s"), 1),
                       (("create", "a", "--name", "-x"), 2), (("create", "a", "--name", "b/c"), 2),
                       (("create", "a"), 2), (("restore", "a", "--name", "none"), 3),
                       (("delete", "a", "--name", "none"), 3), (("create", "none", "--name", "s"), 3)]:
        result = quantavirt("storage", "snapshot", *args, code=code)
        assert result.stderr.startswith("quantavirt: "), result
    quantavirt("storage", "export", "a", root / "x", "--snapshot", "none", code=3)
    assert not (root / "x").exists()
    quantavirt("storage", "serve", "a", "--protocol", "nbd", "--socket", root / "x", "--snapshot", "none", code=3)
    assert quantavirt("storage", "snapshot", "list", "r").stdout.splitlines()[1:] == []
    assert [s["name"] for s in their_list(root / "images/a.qcow2")] == ["s"]


@pytest.mark.parametrize("protocol", ["nbd", "vhost-user-blk"])
def test_serve_shows_the_snapshot(quantavirt, root, tmpfs_dir, protocol):
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "8M")
    qemu_io(root / "images/a.qcow2", "write -P 1 0 1M")
    quantavirt("storage", "snapshot", "create", "a", "--name", "s")
    qemu_io(root / "images/a.qcow2", "write -P 2 0 1M")
    socket = tmpfs_dir / "s"
    daemon = Daemon(paths.QUANTAVIRT, "--root", root, "storage", "serve", "a", "--protocol", protocol,
                    "--socket", socket, "--snapshot", "s")
    try:
        assert "in use" in quantavirt("storage", "snapshot", "delete", "a", "--name", "s", code=4).stderr
        if protocol == "nbd":
            qemu_img("convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={socket}", tmpfs_dir / "r")
            assert (tmpfs_dir / "r").read_bytes() == b"\1" * MIB + bytes(7 * MIB)
    finally:
        assert daemon.stop() == 0
