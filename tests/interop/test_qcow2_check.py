# SPDX-License-Identifier: Apache-2.0
"""Our qcow2 create, check and rebuild, judged by qemu-img: on images of both makers, whole and damaged."""
import json
import random
import shutil
import struct

import pytest
from qvtest import paths
from qvtest.command import run

TOOL = paths.BUILD / "tests/support/qcow2_tool"
COUNTS = ["corruptions", "leaks", "total-clusters", "allocated-clusters", "fragmented-clusters",
          "compressed-clusters", "image-end-offset"]


def ours(image):
    result = run(TOOL, "check", image, code=None)
    assert result.code in (0, 2, 3), result
    return json.loads(result.stdout)


def theirs(image):
    result = run(paths.engine_program("qemu-img"), "check", "--output=json", "-f", "qcow2", image, code=None)
    assert result.code in (0, 2, 3), result
    return json.loads(result.stdout)


def qemu_img(*args):
    run(paths.engine_program("qemu-img"), *args)


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


def same(image):
    """Both find the same; returns it."""
    mine, their = ours(image), theirs(image)
    for word in COUNTS:
        assert mine[word] == their.get(word, 0), (word, mine, their)
    return mine


def expect_clean(image):
    found = same(image)
    assert found["corruptions"] == found["leaks"] == 0, found


@pytest.mark.parametrize("prealloc", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 << 20])
@pytest.mark.parametrize("bits,version", [(16, 2), (1, 3), (16, 3), (64, 3)])
def test_created_image_is_clean(tmpfs_dir, cluster, bits, version, prealloc):
    image = tmpfs_dir / "a.qcow2"
    size = 20 * cluster + 512
    run(TOOL, "create", image, size, cluster, bits, version, prealloc)
    expect_clean(image)
    if prealloc == "full":
        assert image.stat().st_blocks * 512 >= size
    last = (size - 1) // 512 * 512
    qemu_io(image, "read -P 0 0 %d" % size, "write -P 7 0 512", "write -P 9 %d 512" % last,
            "read -P 7 0 512", "read -P 9 %d 512" % last)
    expect_clean(image)


@pytest.mark.parametrize("size", [512, 1 << 40, 64 << 40])
def test_sizes_are_read_by_qemu(tmpfs_dir, size):
    image = tmpfs_dir / "a.qcow2"
    run(TOOL, "create", image, size, 65536, 16, 3, "off")
    info = json.loads(run(paths.engine_program("qemu-img"), "info", "--output=json", image).stdout)
    assert info["virtual-size"] == size
    expect_clean(image)


def rich_image(folder, options="", name="a.qcow2"):
    """An image of QEMU's with snapshots, compressed and zero clusters, holes, a bitmap."""
    image, raw = folder / name, folder / "raw"
    raw.write_bytes(random.Random(1).randbytes(300_000) + bytes(700_000) + b"text" * 100_000)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", *(["-o", options] if options else []), raw, image)
    qemu_img("resize", image, "8M")
    qemu_io(image, "write -P 1 2M 300k", "write -z 3M 100k", "write -P 2 3M 512", "write -z -u 2M 64k")
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 3 2M 100k", "discard 2200k 64k", "write -P 4 6M 1M")
    qemu_img("snapshot", "-c", "a longer name", image)
    qemu_io(image, "write -P 5 0 70k")
    return image


GEOMETRIES = ["", "cluster_size=512", "cluster_size=4k,refcount_bits=32", "cluster_size=2M", "compat=0.10",
              "extended_l2=on", "compression_type=zstd,refcount_bits=64,cluster_size=16k"]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_images_of_qemu_count_alike(tmpfs_dir, options):
    image = rich_image(tmpfs_dir, options)
    expect_clean(image)
    qemu_img("snapshot", "-d", "one", image)
    expect_clean(image)


def test_bitmaps_are_followed(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "64M")
    for name in ["one", "two"]:
        qemu_img("bitmap", "--add", "-g", "512", image, name)
    qemu_io(image, "write 1M 1M", "write 40M 64k")
    expect_clean(image)


def test_data_file_is_not_counted(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmpfs_dir}/d", image, "4M")
    qemu_io(image, "write 1M 1M")
    expect_clean(image)


def be64(data, at):
    return struct.unpack_from(">Q", data, at)[0]


def metadata_entries(data):
    """Positions of the entries of refcount table and blocks, L1 and L2 tables, and the header's fields."""
    cs = 1 << struct.unpack_from(">I", data, 20)[0]
    rt, l1, n_l1 = be64(data, 48), be64(data, 40), struct.unpack_from(">I", data, 36)[0]
    at = [*range(rt, rt + 64, 8), *range(l1, l1 + 8 * n_l1, 8)]
    blocks = [be64(data, p) for p in range(rt, rt + 64, 8) if be64(data, p)]
    tables = [be64(data, p) & 0x00FFFFFFFFFFFE00 for p in range(l1, l1 + 8 * n_l1, 8)]
    for table in filter(None, blocks + tables):
        at += range(table, table + cs, 8)
    return at


@pytest.mark.parametrize("options", ["cluster_size=4k", "cluster_size=64k,compat=0.10", "cluster_size=512"])
def test_random_damage_is_found_like_qemu_does(tmpfs_dir, options):
    """One changed entry each: qemu-img and we agree whether the image is clean, leaks or is corrupt."""
    whole = rich_image(tmpfs_dir, options)
    data, rng = whole.read_bytes(), random.Random(7)
    places = metadata_entries(data)
    used = [p for p in places if be64(data, p)]
    image = tmpfs_dir / "b.qcow2"
    verdicts = set()
    for _ in range(60):
        bad = bytearray(data)
        at = rng.choice(rng.choice([places, used]))
        value = rng.choice([0, be64(data, at) ^ 1 << rng.randrange(64), be64(data, rng.choice(used)),
                            be64(data, at) + 512, rng.getrandbits(64)])
        if "0.10" in options:
            value &= ~1  # a zero flag in version 2: QEMU refuses to read it, but its check does not mind
        struct.pack_into(">Q", bad, at, value)
        image.write_bytes(bad)
        result = run(paths.engine_program("qemu-img"), "check", "--output=json", "-f", "qcow2", image, code=None)
        if result.code not in (0, 2, 3):
            continue  # qemu-img gave up
        their, mine = result.json(), ours(image)
        verdict = (their.get("corruptions", 0) > 0, their.get("leaks", 0) > 0)
        assert (mine["corruptions"] > 0) == verdict[0], (hex(at), hex(value), mine, their)
        if not verdict[0]:
            assert mine["leaks"] == their.get("leaks", 0), (hex(at), hex(value), mine, their)
        verdicts.add(verdict)
    assert len(verdicts) >= 3  # the damage was of several kinds


@pytest.mark.parametrize("options", ["cluster_size=4k", "", "cluster_size=512", "cluster_size=16k,refcount_bits=32"])
@pytest.mark.parametrize("damage", ["counts", "blocks", "table"])
def test_rebuilt_image_is_clean_for_qemu(tmpfs_dir, options, damage):
    """A dirty image with refcounts lost: after the rebuild QEMU finds it clean, and reads the same."""
    image = rich_image(tmpfs_dir, options)
    shutil.copy(image, tmpfs_dir / "whole")
    data = bytearray(image.read_bytes())
    cs = 1 << struct.unpack_from(">I", data, 20)[0]
    rt = be64(data, 48)
    if damage == "counts":
        block = be64(data, rt)
        data[block:block + cs] = bytes(cs)
    elif damage == "blocks":
        data[rt:rt + cs] = bytes(cs)
    else:
        struct.pack_into(">Q", data, rt, 0x12345)
    data[79] |= 1
    image.write_bytes(data)
    run(TOOL, "rebuild", image)
    expect_clean(image)
    assert image.read_bytes()[79] & 1 == 0
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", image, tmpfs_dir / "whole")
    for snapshot in ["one", "a longer name"]:
        for name in ["a.qcow2", "whole"]:
            qemu_img("convert", "-f", "qcow2", "-l", f"snapshot.name={snapshot}", "-O", "raw", tmpfs_dir / name,
                     tmpfs_dir / (name + ".raw"))
        assert (tmpfs_dir / "a.qcow2.raw").read_bytes() == (tmpfs_dir / "whole.raw").read_bytes()
