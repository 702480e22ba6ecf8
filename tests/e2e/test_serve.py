# SPDX-License-Identifier: Apache-2.0
"""`storage serve` and `storage stat`: life, locks, sockets, counters. Where no protocol is named, for all."""
import json
import os
import signal
import socket
import stat
import time

import pytest

from qvtest import paths
from qvtest.command import processes_naming, run

PROTOCOLS = ["nbd", "vhost-user-blk"]


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return request.param


@pytest.fixture
def raw(disk_dir):
    """A sparse raw file of 16 MiB."""
    path = disk_dir / "a.raw"
    with open(path, "wb") as f:
        f.truncate(16 << 20)
    return path


def children(pid):
    return [int(p) for p in open(f"/proc/{pid}/task/{pid}/children", encoding="ascii").read().split()]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def qemu_io(uri, *commands):
    argv = [paths.system_program("qemu-io"), "-f", "raw"]
    for c in commands:
        argv += ["-c", c]
    result = run(*argv, uri)
    assert "failed" not in result.stdout + result.stderr, str(result)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ready_line_private_socket_and_clean_end(serve, raw, protocol, sig):
    daemon = serve(raw, protocol, "--format", "raw")
    assert daemon.ready_line == f"ready {daemon.socket}"
    mode = os.lstat(daemon.socket).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    helper = children(daemon.pid)
    assert len(helper) == 1
    assert daemon.stop(sig) == 0
    assert not daemon.socket.exists()
    assert not os.path.exists(f"/proc/{helper[0]}")


def test_image_in_use_names_its_owner(serve, quantavirt, raw, protocol, disk_dir):
    daemon = serve(raw, protocol, "--format", "raw")
    result = quantavirt("storage", "serve", raw, "--format", "raw", "--protocol", protocol, "--socket", disk_dir / "x",
                        code=4)
    assert f"in use by serve {protocol} (pid {daemon.pid} on " in result.stderr
    assert not (disk_dir / "x").exists()


def test_qemu_img_sees_the_lock(serve, raw, protocol, qemu_img):
    serve(raw, protocol, "--format", "raw")
    result = qemu_img("resize", "-f", "raw", raw, "32M", code=1)
    assert "lock" in result.stderr


def test_readers_share_an_image(serve, raw, protocol):
    serve(raw, protocol, "--format", "raw", "--read-only")
    serve(raw, protocol, "--format", "raw", "--read-only")


def test_busy_socket_is_refused(serve, quantavirt, raw, protocol, disk_dir):
    path = disk_dir / "busy"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        quantavirt("storage", "serve", raw, "--format", "raw", "--protocol", protocol, "--socket", path, code=4)
        assert path.exists()


def test_stale_socket_is_replaced_other_files_are_not(serve, quantavirt, raw, protocol, disk_dir):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(disk_dir / "s0"))  # where the fixture's first daemon will listen
    serve(raw, protocol, "--format", "raw").stop()
    (disk_dir / "file").write_text("mine")
    quantavirt("storage", "serve", raw, "--format", "raw", "--protocol", protocol, "--socket", disk_dir / "file", code=1)
    assert (disk_dir / "file").read_text() == "mine"


def test_killed_serve_leaves_no_orphan_and_no_lock(serve, raw, protocol):
    daemon = serve(raw, protocol, "--format", "raw")
    helper = children(daemon.pid)[0]
    daemon.stop(signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{helper}"))
    assert serve(raw, protocol, "--format", "raw").stop() == 0  # unlocked; its socket is another


def test_killed_helper_ends_serve_and_frees_the_image(serve, raw, protocol):
    daemon = serve(raw, protocol, "--format", "raw")
    os.kill(children(daemon.pid)[0], signal.SIGKILL)
    assert daemon.process.wait(10) == 1
    _, stderr = daemon.process.communicate()
    assert "signal 9" in stderr
    assert not daemon.socket.exists()
    serve(raw, protocol, "--format", "raw")


def test_what_cannot_be_opened_is_an_error_not_a_server(quantavirt, protocol, disk_dir, root):
    (disk_dir / "b").write_bytes(b"\0" * 4096)
    result = quantavirt("storage", "serve", disk_dir / "b", "--format", "qcow2", "--protocol", protocol, "--socket",
                        disk_dir / "x", code=5)
    assert result.stdout == ""
    assert not (disk_dir / "x").exists()
    assert not processes_naming(disk_dir / "x")


def test_cache_none_that_is_refused_is_an_error(tmpfs_dir, serve, quantavirt, protocol):
    """tmpfs takes O_DIRECT on new kernels only; either way the answer is what was asked for."""
    path = tmpfs_dir / "a"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
        serve(path, protocol, "--format", "raw", "--cache", "none")
    except OSError:
        quantavirt("storage", "serve", path, "--format", "raw", "--protocol", protocol, "--socket", tmpfs_dir / "x",
                   "--cache", "none", code=1)


# ---- stat ----


def test_stat_tells_who_serves_and_how(serve, quantavirt, raw, protocol):
    daemon = serve(raw, protocol, "--format", "raw", "--cache", "writethrough", "--io", "threads")
    doc = quantavirt("storage", "stat", raw, "--format", "raw", "--json").json()
    assert (doc["kind"], doc["name"], doc["pid"]) == ("serve", protocol, daemon.pid)
    assert (doc["cache"], doc["io"], doc["size"]) == ("writethrough", "threads", 16 << 20)
    assert set(doc["ops"]) == {"read", "write", "zero", "discard", "flush"}
    text = quantavirt("storage", "stat", raw, "--format", "raw").stdout
    assert f"serve {protocol} (pid {daemon.pid})" in text and "OPERATION" in text


def test_stat_of_an_idle_image_says_so(quantavirt, raw):
    assert "not in use" in quantavirt("storage", "stat", raw, "--format", "raw", code=1).stderr


def test_stat_counts_what_nbd_clients_do(serve, quantavirt, raw):
    daemon = serve(raw, "nbd", "--format", "raw", "--discard")
    uri = f"nbd+unix:///?socket={daemon.socket}"
    qemu_io(uri, "write -P 1 0 64k", "write -P 2 64k 64k", "read 0 128k", "discard 64k 64k", "write -z 1M 64k", "flush")
    ops = quantavirt("storage", "stat", raw, "--format", "raw", "--json").json()["ops"]
    assert (ops["write"]["ops"], ops["write"]["bytes"]) == (2, 128 << 10)
    assert ops["read"]["bytes"] >= 128 << 10
    assert ops["discard"]["bytes"] == 64 << 10
    assert ops["zero"]["bytes"] == 64 << 10
    assert ops["flush"]["ops"] >= 1
    assert all(o["errors"] == 0 for o in ops.values())


def test_stat_watch_ends_with_the_server(serve, quantavirt, raw, root):
    import subprocess
    daemon = serve(raw, "nbd", "--format", "raw")
    with subprocess.Popen([paths.QUANTAVIRT, "--root", root, "--json", "storage", "stat", raw, "--format", "raw",
                           "--watch"], stdout=subprocess.PIPE, text=True) as watch:
        line = watch.stdout.readline()
        assert json.loads(line)["pid"] == daemon.pid
        daemon.stop()
        assert watch.wait(5) == 0


# ---- nbd ----


def test_nbd_clients_without_sector_alignment(serve, raw):
    daemon = serve(raw, "nbd", "--format", "raw")
    uri = f"nbd+unix:///?socket={daemon.socket}"
    qemu_io(uri, "write -P 9 1000 3000", "read -P 9 1000 3000", "read -P 0 0 1000", "read -P 0 4000 96")


def test_nbd_write_is_in_the_image_after_the_end(serve, raw):
    daemon = serve(raw, "nbd", "--format", "raw", "--cache", "writeback")
    qemu_io(f"nbd+unix:///?socket={daemon.socket}", "write -P 77 1M 4k")
    assert daemon.stop() == 0
    assert raw.read_bytes()[1 << 20:(1 << 20) + 4096] == b"\x4d" * 4096


# ---- unlock ----


def test_unlock_removes_the_note_of_the_dead_only(serve, quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "raw", "--size", "1M")
    daemon = serve("a", "vhost-user-blk")
    assert f"(pid {daemon.pid} on " in quantavirt("storage", "unlock", "a", "--force", code=4).stderr
    assert quantavirt("storage", "info", "a", "--json").json()["lock_owner"]["pid"] == daemon.pid
    daemon.stop(signal.SIGKILL)
    wait_for(lambda: not quantavirt("storage", "info", "a", "--json").json()["locked"])
    assert "--force is missing" in quantavirt("storage", "unlock", "a", code=2).stderr
    assert quantavirt("storage", "unlock", "a", "--force", "--json").json() == {"name": "a", "removed": 1}
    assert quantavirt("storage", "unlock", "a", "--force", "--json").json() == {"name": "a", "removed": 0}
    quantavirt("storage", "unlock", "b", "--force", code=3)


# ---- engines that a sandbox refuses ----

SYS_IO_SETUP, SYS_IO_URING_SETUP = 206, 425


def refusing(*numbers):
    """For preexec_fn: the kernel answers these system calls of x86-64 with EPERM, for good."""
    def enter():
        import ctypes
        import struct
        load, equal, answer = 0x20, 0x15, 0x06
        code = [(load, 0, 0, 0)] + [(equal, 0, 1, n) if step == 0 else (answer, 0, 0, 0x50001)
                                    for n in numbers for step in range(2)] + [(answer, 0, 0, 0x7fff0000)]
        filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")
    return enter


@pytest.mark.parametrize("refused, used", [
    ([], "io_uring"), ([SYS_IO_URING_SETUP], "native"), ([SYS_IO_URING_SETUP, SYS_IO_SETUP], "threads")])
def test_the_next_engine_is_taken_with_one_warning(serve, quantavirt, raw, refused, used):
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of system calls")
    daemon = serve(raw, "vhost-user-blk", "--format", "raw", preexec_fn=refusing(*refused) if refused else None)
    assert quantavirt("storage", "stat", raw, "--format", "raw", "--json").json()["io"] == used
    assert daemon.stop() == 0
    warnings = [line for line in daemon.stderr.splitlines() if "I/O engine" in line]
    assert len(warnings) == (1 if refused else 0), daemon.stderr
    if refused:
        assert f"I/O engine io_uring is refused here (Operation not permitted); using {used}" in warnings[0]
