# SPDX-License-Identifier: Apache-2.0
"""The I/O process under a supervisor of ours: requests, confinement, orderly end."""
import fcntl
import json
import os
import signal
import struct
import time

import pytest

from qvtest import paths
from qvtest.command import run
from qvtest.io_process import IoProcess, Refused


@pytest.fixture
def io():
    """A running I/O process; it must end cleanly when its channel closes."""
    process = IoProcess()
    yield process
    if process.process.poll() is None:
        code, stderr = process.stop()
        assert code == 0, stderr


@pytest.fixture
def raw(disk_dir):
    path = disk_dir / "a.raw"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    return path


def lock(fd):
    """An OFD write lock on the first byte; OSError when another open file description holds it."""
    F_OFD_SETLK = 37
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


def test_hello(io):
    hello = io.call("hello")
    assert hello["pid"] == io.pid
    assert hello["threads"] == 2
    assert hello["seccomp"] is True


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_disk_from_add_to_remove(io, disk_dir, raw, qemu_img, fmt):
    path = raw
    if fmt == "qcow2":
        path = disk_dir / "a.qcow2"
        qemu_img("create", "-f", "qcow2", path, "1M")
    added = io.add_disk("d", path, fmt, cache="none")
    assert added == {"size": 1 << 20, "readonly": False, "io": added["io"], "cache": added["cache"]}
    io.call("disk-flush", id="d")
    assert io.call("disk-resize", id="d", size=2 << 20)["size"] == 2 << 20
    with pytest.raises(Refused):
        io.call("disk-resize", id="d", size=1 << 20)
    stats = io.call("stats", id="d")
    assert (stats["size"], stats["stopped"], stats["in_flight"]) == (2 << 20, 0, 0)
    io.call("disk-remove", id="d")
    assert qemu_img("info", "-f", fmt, "--output=json", path)["virtual-size"] == 2 << 20


def test_paused_disk_can_be_flushed_and_removed(io, raw):
    io.add_disk("d", raw, "raw")
    io.call("disk-pause", id="d")
    io.call("disk-pause", id="d")
    io.call("disk-flush", id="d")
    io.call("disk-resume", id="d")
    io.call("disk-remove", id="d")
    io.add_disk("d", raw, "raw")
    with pytest.raises(Refused):
        io.call("disk-resume", id="d")


def test_many_disks_at_once(io, disk_dir):
    requests = []
    for i in range(40):
        path = disk_dir / f"{i}"
        path.write_bytes(b"\0" * 4096)
        fd = os.open(path, os.O_RDWR)
        requests.append(io.send("disk-add", [fd], id=f"d{i}", chain=[{"fd": 0, "format": "raw"}]))
        os.close(fd)
    for r in requests:
        io.reply(r)
    for i in range(40):
        io.call("disk-remove", id=f"d{i}")


def test_requests_for_one_disk_keep_their_order(io, raw):
    fd = os.open(raw, os.O_RDWR)
    ids = [io.send("disk-add", [fd], id="d", chain=[{"fd": 0, "format": "raw"}])]
    os.close(fd)
    ids += [io.send("disk-resize", id="d", size=(2 + i) << 20) for i in range(8)]
    ids += [io.send("disk-remove", id="d")]
    seen = []
    while len(seen) < len(ids):
        message = io.receive()
        if "id" in message:
            assert message["ok"], message
            seen.append(message["id"])
    assert seen == ids
    assert raw.stat().st_size == 9 << 20


@pytest.mark.parametrize("args, kind", [
    ({}, "usage"),
    ({"id": ""}, "usage"),
    ({"id": "x" * 65}, "usage"),
    ({"chain": []}, "usage"),
    ({"chain": [{"fd": 0}]}, "usage"),
    ({"chain": [{"fd": 9, "format": "raw"}]}, "usage"),
    ({"chain": [{"fd": -1, "format": "raw"}]}, "usage"),
    ({"chain": [{"fd": 0, "format": "raw"}, {"fd": 0, "format": "raw"}]}, "usage"),
    ({"chain": [{"fd": 0, "format": "vmdk"}]}, "usage"),
    ({"chain": [{"fd": 0, "format": "raw", "colour": "red"}]}, "usage"),
    ({"chain": [{"fd": 0, "format": "raw", "io": "fast"}]}, "usage"),
    ({"chain": [{"fd": 0, "format": "raw", "cache": "none", "io": 7}]}, "usage"),
    ({"on_error": "panic"}, "usage"),
    ({"chain": [{"fd": 0, "format": "qcow2"}]}, "corrupt"),
])
def test_bad_disk_is_refused_and_leaves_nothing(io, raw, args, kind):
    before = len(os.listdir(f"/proc/{io.pid}/fd")) if io.call("hello") else None
    fd = os.open(raw, os.O_RDWR)
    with pytest.raises(Refused) as refused:
        io.call("disk-add", [fd], **({"id": "d", "chain": [{"fd": 0, "format": "raw"}]} | args if args else {}))
    os.close(fd)
    assert refused.value.kind == kind
    with pytest.raises(Refused):
        io.call("stats", id="d")
    assert len(os.listdir(f"/proc/{io.pid}/fd")) == before  # every descriptor was closed


def test_unknown_requests_are_refused(io):
    with pytest.raises(Refused) as refused:
        io.call("fly")
    assert refused.value.kind == "usage"
    with pytest.raises(Refused) as refused:
        io.call("stats", id="d")
    assert refused.value.kind == "not-found"
    io.socket.send(b'{"id": 5, "command": 7, "arguments": {}}')
    with pytest.raises(Refused):
        io.reply(5)


def test_confinement(io, raw):
    io.add_disk("d", raw, "raw")
    with open(f"/proc/{io.pid}/status", encoding="ascii") as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    with open(f"/proc/{io.pid}/limits", encoding="ascii") as f:
        core = next(line for line in f if line.startswith("Max core file size")).split()
    assert core[4:6] == ["0", "0"]
    if os.geteuid() == 0:
        assert os.readlink(f"/proc/{io.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    for fd in os.listdir(f"/proc/{io.pid}/fd"):  # nothing inherited: this test's own files, for instance
        target = os.readlink(f"/proc/{io.pid}/fd/{fd}")
        assert int(fd) < 3 or target.startswith(("anon_inode:", "socket:", str(raw))), target


def test_end_of_the_channel_ends_it_and_frees_the_lock(io, raw):
    fd = os.open(raw, os.O_RDWR)
    lock(fd)
    io.call("disk-add", [fd], id="d", chain=[{"fd": 0, "format": "raw"}])
    os.close(fd)
    other = os.open(raw, os.O_RDWR)
    with pytest.raises(OSError):
        lock(other)  # the I/O process holds it alone now
    assert io.stop() == (0, "")
    lock(other)
    os.close(other)


def test_killed_it_leaves_no_lock(io, raw):
    fd = os.open(raw, os.O_RDWR)
    lock(fd)
    io.call("disk-add", [fd], id="d", chain=[{"fd": 0, "format": "raw"}])
    os.close(fd)
    io.process.send_signal(signal.SIGKILL)
    assert io.process.wait(10) == -signal.SIGKILL
    other = os.open(raw, os.O_RDWR)
    lock(other)
    os.close(other)


@pytest.mark.parametrize("how", ["quit", "sigterm", "garbage"])
def test_ways_to_end(io, raw, how):
    io.add_disk("d", raw, "raw")
    io.call("disk-pause", id="d")
    if how == "quit":
        io.call("quit")
    elif how == "sigterm":
        io.process.send_signal(signal.SIGTERM)
    else:
        io.socket.send(b"[]")
    assert io.process.wait(10) == 0


def test_it_is_not_for_use_by_hand():
    import subprocess

    from qvtest import paths
    result = subprocess.run([paths.BUILD / "quantavirt-io"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "not by hand" in result.stderr


@pytest.fixture
def snapshots(disk_dir, qemu_img):
    """An image with 64 GiB of metadata, all of it shared with the snapshots s and t."""
    path = disk_dir / "a.qcow2"
    run(paths.BUILD / "tests/support/qcow2_tool", "create", path, 64 << 30, 65536, 16, 3, "metadata")
    for name in "st":
        run(paths.BUILD / "tests/support/qcow2_snapshot", "create", path, name)
    return path


def names(path):
    return [s["name"] for s in json.loads(run(paths.BUILD / "tests/support/qcow2_snapshot", "list", path).stdout)]


def test_a_snapshot_is_deleted_beside_other_requests(io, snapshots, qemu_img):
    io.add_disk("d", snapshots, "qcow2")
    with pytest.raises(Refused, match="not-found"):
        io.call("snapshot-delete", id="d", name="none")
    with pytest.raises(Refused, match="name"):
        io.call("snapshot-delete", id="d")
    job = io.send("snapshot-delete", id="d", name="s", rate=1 << 30)  # would take a minute
    end = time.monotonic() + 20
    while not 0 < io.call("stats", id="d")["job"]["progress"] < 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(Refused, match="in-use"):
        io.call("snapshot-delete", id="d", name="t")
    io.call("disk-pause", id="d")
    io.call("disk-resume", id="d")
    # A change of the image waits for the job, which then takes no more time than it must.
    assert io.call("disk-resize", id="d", size=65 << 30)["size"] == 65 << 30
    assert "job" not in io.call("stats", id="d")
    with pytest.raises(Refused, match="not-found"):
        io.call("snapshot-delete", id="d", name="s")
    io.send("snapshot-delete", id="d", name="t", rate=1 << 30)
    while "job" not in io.call("stats", id="d"):
        pass
    io.call("disk-remove", id="d")
    assert names(snapshots) == []
    assert qemu_img("check", "--output=json", snapshots).get("leaks", 0) == 0
    del job


def test_the_end_of_the_process_hurries_a_job(snapshots, qemu_img):
    io = IoProcess()
    io.add_disk("d", snapshots, "qcow2")
    io.send("snapshot-delete", id="d", name="s", rate=1 << 30)
    io.call("stats", id="d")
    code, stderr = io.stop()
    assert code == 0, stderr
    assert names(snapshots) == ["t"]
    assert qemu_img("check", "--output=json", snapshots).get("leaks", 0) == 0


@pytest.mark.parametrize("opened_by", ["us", "qemu"])
def test_what_a_killed_deletion_leaves_is_free_when_opened_again(snapshots, qemu_img, opened_by):
    io = IoProcess()
    io.add_disk("d", snapshots, "qcow2")
    io.send("snapshot-delete", id="d", name="s", rate=1 << 30)
    end = time.monotonic() + 20
    while not 0 < io.call("stats", id="d")["job"]["progress"] < 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    io.process.kill()
    io.process.wait()
    assert names(snapshots) == ["t"]
    left = qemu_img("check", "--output=json", snapshots, code=3)
    assert left["leaks"] > 0 and left.get("corruptions", 0) == 0 and left["check-errors"] == 0
    if opened_by == "us":
        run(paths.BUILD / "tests/support/qcow2_snapshot", "create", snapshots, "u")
    else:
        run(paths.engine_program("qemu-io"), "-f", "qcow2", "-c", "write -P 1 0 64k", snapshots)
    after = qemu_img("check", "--output=json", snapshots)
    assert after.get("leaks", 0) == 0 and after.get("corruptions", 0) == 0 and after["check-errors"] == 0
