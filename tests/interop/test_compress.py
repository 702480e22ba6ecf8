# SPDX-License-Identifier: Apache-2.0
"""Compressed images: ours read by QEMU, QEMU's read and written by us."""
import json
import os
import random

import pytest
from qvtest import paths
from qvtest.command import run

RW = paths.BUILD / "tests/support/qcow2_rw"
KIB, MIB = 1 << 10, 1 << 20


def qemu_img(*args, code=0):
    return run(paths.engine_program("qemu-img"), *args, code=code)


def checked(image):
    found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image).stdout)
    assert found.get("corruptions", 0) == 0 and found.get("leaks", 0) == 0 and found["check-errors"] == 0
    return found


def rw(folder, image, *lines):
    script = folder / "script"
    script.write_text("".join(line + "\n" for line in lines))
    with open(script) as stdin:
        run(RW, image, stdin=stdin)


def mixed(size, seed=1):
    """Text-like runs, random runs that do not shrink, zeros; in pieces of odd lengths."""
    dice, out = random.Random(seed), bytearray()
    words = [dice.randbytes(dice.randint(2, 9)) for _ in range(400)]
    while len(out) < size:
        kind, length = dice.randrange(3), dice.randint(1000, 200000)
        if kind == 0:
            out += b"".join(dice.choices(words, k=length // 6))
        else:
            out += dice.randbytes(length) if kind == 1 else bytes(length)
    return bytes(out[:size])


def convert(quantavirt, source, name, *options, form="raw", code=0):
    return quantavirt("storage", "convert", source, "--format", form, "--target-format", "qcow2", "--output", name,
                      "--compress", *options, code=code)


@pytest.mark.parametrize("cluster", ["512", "4K", "64K", "2M"])
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_qemu_reads_what_we_compress(quantavirt, root, disk_dir, kind, cluster):
    source = disk_dir / "a.raw"
    source.write_bytes(mixed(9 * MIB + 512 * 3))
    convert(quantavirt, source, "a", "--compression", kind, "--cluster-size", cluster)
    image = root / "images/a.qcow2"
    found = checked(image)
    assert cluster == "512" or found["compressed-clusters"] > 0
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, image)
    facts = json.loads(qemu_img("info", "--output=json", image).stdout)["format-specific"]["data"]
    assert facts["compression-type"] == kind
    assert quantavirt("storage", "info", "a", "--json").json()["compression"] == kind
    if cluster in ("4K", "64K"):
        assert image.stat().st_size < source.stat().st_size * 0.9


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_as_small_as_qemus(quantavirt, root, disk_dir, kind):
    source, theirs = disk_dir / "a.raw", disk_dir / "q.qcow2"
    source.write_bytes(mixed(16 * MIB))
    convert(quantavirt, source, "a", "--compression", kind)
    qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", source, theirs)
    assert (root / "images/a.qcow2").stat().st_size < theirs.stat().st_size * 1.03 + 256 * KIB


def test_a_file_of_odd_length(quantavirt, root, disk_dir):
    source, back = disk_dir / "a.raw", disk_dir / "b.raw"
    content = mixed(MIB) + b"the end"
    source.write_bytes(content)
    convert(quantavirt, source, "a")
    image = root / "images/a.qcow2"
    checked(image)
    qemu_img("convert", "-O", "raw", image, back)
    assert back.read_bytes() == content + bytes(512 - 7)


def test_an_empty_disk_stays_empty(quantavirt, root, disk_dir):
    source = disk_dir / "a.raw"
    with open(source, "wb") as f:
        f.truncate(1 << 40)
    convert(quantavirt, source, "a")
    assert checked(root / "images/a.qcow2").get("allocated-clusters", 0) == 0
    assert (root / "images/a.qcow2").stat().st_size < MIB


@pytest.mark.parametrize("made_by", ["us", "qemu"])
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_rewriting_compressed_clusters_frees_their_space(quantavirt, root, disk_dir, kind, made_by):
    source, back, image = disk_dir / "a.raw", disk_dir / "b.raw", root / "images/a.qcow2"
    content = bytearray(mixed(4 * MIB, seed=5))
    source.write_bytes(content)
    if made_by == "us":
        convert(quantavirt, source, "a", "--compression", kind)
    else:
        quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "4M")
        qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", source, image)
    before = checked(image)["compressed-clusters"]
    assert before > 5
    # Parts of clusters: the rest must come out of the compressed data.
    lines = []
    for at in range(0, 2 * MIB, 96 * KIB):
        lines.append(f"write {at + 512} 3584 {at // KIB % 251 + 1}")
        content[at + 512:at + 4096] = bytes([at // KIB % 251 + 1]) * 3584
    rw(disk_dir, image, *lines, "flush")
    assert checked(image)["compressed-clusters"] < before
    qemu_img("convert", "-O", "raw", image, back)
    assert back.read_bytes() == content
    # Once nothing compressed is left, nothing of its space is in use.
    rw(disk_dir, image, f"write 0 {4 * MIB} 9", "flush")
    found = checked(image)
    assert found.get("compressed-clusters", 0) == 0 and found["allocated-clusters"] == 64
    assert image.stat().st_blocks * 512 < 4 * MIB + 640 * KIB


def test_qemu_rewrites_ours(quantavirt, root, disk_dir):
    source, image = disk_dir / "a.raw", root / "images/a.qcow2"
    source.write_bytes(mixed(4 * MIB))
    convert(quantavirt, source, "a", "--compression", "zstd")
    run(paths.engine_program("qemu-io"), "-f", "qcow2", "-c", "write -P 7 100k 900k", image)
    checked(image)
    run(RW, "-r", image, stdin=os.open("/dev/null", os.O_RDONLY))


@pytest.mark.parametrize("options, text", [
    (["--target-format", "raw", "--compress"], "raw images are not compressed"),
    (["--target-format", "qcow2", "--compress", "--prealloc", "full"], "exclude each other"),
])
def test_refused(quantavirt, root, disk_dir, options, text):
    source = disk_dir / "a.raw"
    source.write_bytes(bytes(MIB))
    result = quantavirt("storage", "convert", source, "--format", "raw", "--output", "a", *options, code=2)
    assert text in result.stderr and not list((root / "images").glob("*"))
