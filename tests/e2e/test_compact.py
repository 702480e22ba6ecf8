# SPDX-License-Identifier: Apache-2.0
"""`storage compact`: space comes back, nothing else changes; it may be killed at any moment."""
import random
import signal
import subprocess
import time

import pytest

from qvtest import paths
from qvtest.command import run

MIB = 1 << 20


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


def content(image, folder, *options):
    run(paths.engine_program("qemu-img"), "convert", "-f", "qcow2", *options, "-O", "raw", image, folder / "content")
    return (folder / "content").read_bytes()


def used_image(quantavirt, root, options=()):
    """64 MiB that were full once: a third is noise still, a third zeros, the rest was discarded; a snapshot."""
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "64M", *options)
    image = root / "images/a.qcow2"
    dice = random.Random(5)
    noise = root / "noise"
    noise.write_bytes(dice.randbytes(8 * MIB))
    qemu_io(image, *(f"write -s {noise} {k * 8}M 8M" for k in range(8)))
    quantavirt("storage", "snapshot", "create", "a", "--name", "s")
    qemu_io(image, "write -P 0 0 20M", "discard 20M 20M", "write -P 7 50M 1M")
    quantavirt("storage", "snapshot", "create", "a", "--name", "t")
    quantavirt("storage", "snapshot", "delete", "a", "--name", "s")
    return image


@pytest.mark.parametrize("options", [(), ("--cluster-size", "4K")], ids=["64K", "4K"])
def test_space_comes_back(quantavirt, root, disk_dir, qemu_img, options):
    image = used_image(quantavirt, root, options)
    disk, then = content(image, disk_dir), content(image, disk_dir, "-l", "snapshot.name=t")
    result = quantavirt("storage", "compact", "a", "--json").json()
    assert result["image"] == "a" and result["bytes_before"] > result["bytes_after"] + 15 * MIB, result
    assert image.stat().st_size < 30 * MIB
    assert result["bytes_after"] == image.stat().st_blocks * 512
    assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    quantavirt("storage", "check", "a")
    assert content(image, disk_dir) == disk
    assert content(image, disk_dir, "-l", "snapshot.name=t") == then
    line = quantavirt("storage", "compact", "a").stdout
    assert line.startswith("a: took ") and "0 B came back" in line, line


def test_compressed_clusters_move(quantavirt, root, disk_dir, qemu_img):
    raw = disk_dir / "raw"
    dice = random.Random(6)
    raw.write_bytes(b"".join(bytes([dice.randrange(256)]) * 700 + dice.randbytes(100) for _ in range(20000)))
    image = disk_dir / "c.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", raw, image)
    qemu_io(image, "write -z -u 0 5M")
    before, disk = image.stat().st_size, content(image, disk_dir)
    quantavirt("storage", "compact", image, "--format", "qcow2")
    assert image.stat().st_size < before * 0.85, (before, image.stat().st_size)
    quantavirt("storage", "check", image, "--format", "qcow2")
    assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    assert content(image, disk_dir) == disk


def test_zeros_of_a_clone_hide_what_is_below(quantavirt, root, disk_dir):
    quantavirt("storage", "create", "--name", "base", "--format", "qcow2", "--size", "8M")
    qemu_io(root / "images/base.qcow2", "write -P 1 0 8M")
    quantavirt("storage", "create", "--name", "c", "--format", "qcow2", "--backing", "base")
    image = root / "images/c.qcow2"
    qemu_io(image, "write -P 0 1M 4M")
    quantavirt("storage", "compact", "c")
    assert image.stat().st_size < MIB
    qemu_io(image, "read -P 1 0 1M", "read -P 0 1M 4M", "read -P 1 5M 3M")
    quantavirt("storage", "check", "c")


def test_raw_gets_holes(quantavirt, root):
    quantavirt("storage", "create", "--name", "r", "--format", "raw", "--size", "16M", "--prealloc", "full")
    image = root / "images/r.raw"
    noise = random.Random(2).randbytes(MIB)
    with open(image, "r+b") as f:
        f.seek(3 * MIB + 512)
        f.write(noise)
    data = image.read_bytes()
    result = quantavirt("storage", "compact", "r", "--json").json()
    assert result["bytes_before"] >= 16 * MIB and result["bytes_after"] < 2 * MIB, result
    assert image.read_bytes() == data and image.stat().st_size == 16 * MIB


def test_an_image_in_use_by_others_is_refused(quantavirt, serve):
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "1M")
    serve("a", "vhost-user-blk")
    result = quantavirt("storage", "compact", "a", code=4)
    assert "serve" in result.stderr


def test_a_damaged_image_is_not_touched(quantavirt, root, disk_dir):
    image = used_image(quantavirt, root)
    data = bytearray(image.read_bytes())
    refcounts = int.from_bytes(data[int.from_bytes(data[48:56], "big"):][:8], "big")
    l1 = int.from_bytes(data[40:48], "big") // 65536
    data[refcounts + 2 * l1:refcounts + 2 * l1 + 2] = bytes(2)
    image.write_bytes(data)
    result = quantavirt("storage", "compact", "a", code=5)
    assert "--repair" in result.stderr
    assert image.read_bytes() == data


@pytest.mark.parametrize("delay", [0.01, 0.03, 0.06, 0.1, 0.2])
def test_it_may_be_killed(quantavirt, root, disk_dir, delay):
    image = used_image(quantavirt, root, ("--cluster-size", "4K"))
    disk, then = content(image, disk_dir), content(image, disk_dir, "-l", "snapshot.name=t")
    process = subprocess.Popen([str(paths.QUANTAVIRT), "--root", str(root), "storage", "compact", "a"],
                               stdout=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 10
    code = 4
    while code == 4 and time.monotonic() < end:  # the kernel closes the ring, and with it the lock, a little later
        code = quantavirt("storage", "check", "a", code=None).code
    assert code in (0, 6)
    assert content(image, disk_dir) == disk
    quantavirt("storage", "compact", "a")
    quantavirt("storage", "check", "a")
    assert content(image, disk_dir) == disk
    assert content(image, disk_dir, "-l", "snapshot.name=t") == then


def test_bitmaps_of_qemu_move(quantavirt, disk_dir, qemu_img):
    image = disk_dir / "b.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", image, "64M")
    qemu_io(image, "write -P 3 0 64M")
    for name, enable in (("one", "--enable"), ("two", "--disable")):
        qemu_img("bitmap", "--add", "-g", "512", enable, image, name)
    qemu_io(image, "write -P 5 33M 1M", "discard 0 32M")
    disk = content(image, disk_dir)
    result = quantavirt("storage", "compact", image, "--format", "qcow2", "--json").json()
    assert result["bytes_stuck"] == 0
    assert image.stat().st_size < 33 * MIB
    quantavirt("storage", "check", image, "--format", "qcow2")
    assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    bitmaps = qemu_img("info", "--output=json", image)["format-specific"]["data"]["bitmaps"]
    assert sorted((b["name"], b["flags"]) for b in bitmaps) == [("one", ["auto"]), ("two", [])]
    assert content(image, disk_dir) == disk
    qemu_img("bitmap", "--merge", "one", image, "two")  # both can be read


@pytest.mark.parametrize("bits", [1, 8])
def test_compressed_clusters_move_with_narrow_refcounts(quantavirt, disk_dir, qemu_img, bits):
    raw, image = disk_dir / "raw", disk_dir / "c.qcow2"
    dice = random.Random(bits)
    raw.write_bytes(b"".join(dice.randbytes(1024) + bytes(3072) for _ in range(2000)))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", "-o", f"cluster_size=4k,refcount_bits={bits}", raw, image)
    qemu_io(image, "write -z -u 0 5M")
    before, disk = image.stat().st_size, content(image, disk_dir)
    assert quantavirt("storage", "compact", image, "--format", "qcow2", "--json").json()["bytes_stuck"] == 0
    assert image.stat().st_size < before * 0.85, (before, image.stat().st_size)
    quantavirt("storage", "check", image, "--format", "qcow2")
    assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    assert content(image, disk_dir) == disk


def test_what_cannot_move_is_told(quantavirt, disk_dir, qemu_img):
    """Two L1 entries name the table at the end of the file; a step sees one at a time."""
    image = disk_dir / "d.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k,preallocation=metadata", image, "4M")
    qemu_io(image, "write -P 1 0 2M", "write -P 2 2M 2M")
    data = bytearray(image.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    entry = int.from_bytes(data[l1 + 8:l1 + 16], "big") & ~(1 << 63)
    for at in (l1, l1 + 8):
        data[at:at + 8] = entry.to_bytes(8, "big")
    for at in range(entry, entry + 4096, 8):
        data[at] &= 0x7f
    image.write_bytes(data)
    qemu_img("check", "-q", "-r", "all", image)
    assert content(image, disk_dir) == bytes([2]) * 4 * MIB
    quantavirt("storage", "check", image, "--format", "qcow2")
    assert quantavirt("storage", "compact", image, "--format", "qcow2", "--json").json()["bytes_stuck"] >= 2 * MIB
    assert "at the end of the file could not be moved" in \
        quantavirt("storage", "compact", image, "--format", "qcow2").stdout
    assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    assert content(image, disk_dir) == bytes([2]) * 4 * MIB
