# SPDX-License-Identifier: Apache-2.0
"""The nbdkit plugin, by itself, under other projects' NBD clients."""
import json
import subprocess
import time

import pytest

from qvtest import paths
from qvtest.command import run

PLUGIN = paths.BUILD / "nbdkit-quantavirt-plugin.so"


@pytest.fixture
def nbd(disk_dir):
    """nbd("a.raw", "raw", "readonly=true"): a running nbdkit with the plugin; its URI. SIGTERM must end it."""
    processes = []

    def start(file, fmt, *params, name="n"):
        socket = disk_dir / name
        process = subprocess.Popen([str(a) for a in (
            paths.system_program("nbdkit"), "-f", "-U", socket, PLUGIN, file, f"format={fmt}", *params)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        end = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        return f"nbd+unix:///?socket={socket}"

    yield start
    for process in processes:
        process.terminate()
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr


def make(path, fmt, size, qemu_img):
    if fmt == "raw":  # qemu-img writes the first block
        with open(path, "wb") as f:
            f.truncate(int(size[:-1]) << 20)
    else:
        qemu_img("create", "-f", fmt, path, size)
    return path


def nbd_map(uri):
    rows = json.loads(run(paths.system_program("nbdinfo"), "--map", "--json", uri).stdout)
    return [(r["offset"], r["length"], r["type"]) for r in rows]


def qemu_io(uri, *commands, read_only=False):
    argv = [paths.system_program("qemu-io"), "-f", "raw", *(["-r"] if read_only else [])]
    for c in commands:
        argv += ["-c", c]
    result = run(*argv, uri)
    assert "failed" not in result.stdout + result.stderr, str(result)
    return result


def test_server_says_what_it_can(nbd, disk_dir, qemu_img):
    uri = nbd(make(disk_dir / "a.raw", "raw", "64M", qemu_img), "raw")
    info = json.loads(run(paths.system_program("nbdinfo"), "--json", uri).stdout)["exports"][0]
    assert info["export-size"] == 64 << 20
    for ability in ("can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_cache"):
        assert info[ability], ability
    assert not info["is_read_only"]
    assert info["block_size_minimum"] == 512


def test_holes_stay_holes(nbd, disk_dir, qemu_img):
    uri = nbd(make(disk_dir / "a.raw", "raw", "8M", qemu_img), "raw")
    qemu_io(uri, "write -P 7 1M 1M", "write -P 8 4M 64k", "discard 1M 512k", "write -z 1984k 64k")
    # zeros that may not be unmapped are kept as allocated space, or written out: no hole either way
    rows = nbd_map(uri)
    assert rows[0] == (0, 1536 << 10, 3)
    assert (4 << 20, 64 << 10, 0) in rows
    assert rows[-1] == (4160 << 10, (8 << 20) - (4160 << 10), 3)
    run(paths.system_program("nbdcopy"), uri, disk_dir / "b.raw")
    qemu_img("compare", "-f", "raw", "-F", "raw", disk_dir / "a.raw", disk_dir / "b.raw")
    assert (disk_dir / "b.raw").stat().st_blocks * 512 < 2 << 20


def test_many_connections_write_what_they_say(nbd, disk_dir, qemu_img):
    """nbdcopy opens several connections with many requests each, as the server is multi-conn."""
    source = disk_dir / "source"
    with open("/dev/urandom", "rb") as rnd:
        source.write_bytes(rnd.read(16 << 20))
    uri = nbd(make(disk_dir / "a.raw", "raw", "16M", qemu_img), "raw", "threads=4")
    run(paths.system_program("nbdcopy"), "--connections=4", "--requests=32", source, uri)
    run(paths.system_program("nbdcopy"), "--connections=4", uri, disk_dir / "back")
    assert (disk_dir / "back").read_bytes() == source.read_bytes()
    assert (disk_dir / "a.raw").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
@pytest.mark.parametrize("io", ["io_uring", "native", "threads"])
def test_every_cache_mode_and_engine_moves_data(nbd, disk_dir, qemu_img, cache, io):
    uri = nbd(make(disk_dir / "a.raw", "raw", "4M", qemu_img), "raw", f"cache={cache}", f"io={io}")
    qemu_io(uri, "write -P 1 512 4096", "write -f -P 2 1M 64k", "flush", "read -P 1 512 4096", "read -P 2 1M 64k",
            "read -P 0 0 512")


def test_read_only_image_is_not_written(nbd, disk_dir, qemu_img):
    uri = nbd(make(disk_dir / "a.raw", "raw", "1M", qemu_img), "raw", "readonly=true")
    info = json.loads(run(paths.system_program("nbdinfo"), "--json", uri).stdout)["exports"][0]
    assert info["is_read_only"]
    qemu_io(uri, "read -P 0 0 1M", read_only=True)


def test_fua_reaches_the_disk_before_the_answer(disk_dir, qemu_img):
    """Seen from outside: the write carries RWF_DSYNC or is followed by a sync before the reply."""
    make(disk_dir / "a.raw", "raw", "1M", qemu_img)
    trace = disk_dir / "trace"
    command = 'qemu-io -f raw -c "write -f -P 5 0 4k" "$uri"'
    run(paths.system_program("strace"), "-f", "-e", "trace=pwritev2,fdatasync,fsync", "-o", trace,
        paths.system_program("nbdkit"), "-U", disk_dir / "n", PLUGIN, disk_dir / "a.raw", "format=raw", "io=threads",
        "--run", command)
    text = trace.read_text()
    assert "RWF_DSYNC" in text or "sync(" in text, text


def test_format_must_be_named(disk_dir, qemu_img):
    make(disk_dir / "a.raw", "raw", "1M", qemu_img)
    result = run(paths.system_program("nbdkit"), "-f", "-U", disk_dir / "n", PLUGIN, disk_dir / "a.raw", code=1)
    assert "format" in result.stderr


def test_backing_image_shows_through(nbd, disk_dir, qemu_img):
    base, top = disk_dir / "base", disk_dir / "top"
    make(base, "raw", "8M", qemu_img)
    with open(base, "r+b") as f:
        f.write(b"\1" * 65536)
        f.seek(4 << 20)
        f.write(b"\2" * 65536)
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", top, "16M")
    uri = nbd(top, "qcow2", f"file={base}", "format=raw")
    qemu_io(uri, "write -P 3 64k 64k", "read -P 1 0 64k", "read -P 2 4M 64k", "read -P 0 8M 8M")
    assert nbd_map(uri) == [(0, 128 << 10, 0), (128 << 10, (4 << 20) - (128 << 10), 3), (4 << 20, 64 << 10, 0),
                            (4160 << 10, (16 << 20) - (4160 << 10), 3)]
    with open(base, "rb") as f:
        assert f.read(131072) == b"\1" * 65536 + b"\0" * 65536  # the write went to the top


def test_backing_image_that_is_not_given_is_an_error(disk_dir, qemu_img):
    make(disk_dir / "base", "raw", "1M", qemu_img)
    qemu_img("create", "-f", "qcow2", "-b", disk_dir / "base", "-F", "raw", disk_dir / "top")
    result = run(paths.system_program("nbdkit"), "-f", "-U", disk_dir / "n", PLUGIN, disk_dir / "top", "format=qcow2",
                 code=1)
    assert "backing image" in result.stderr
