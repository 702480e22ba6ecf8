# SPDX-License-Identifier: Apache-2.0
"""`storage check --repair` on images of QEMU's, damaged in many ways; judged by qemu-img."""
import random
import shutil
import struct

import pytest

from qvtest import paths
from qvtest.command import run

STRESS = paths.BUILD / "tests/stress/qcow2_repair"
COPIED = 1 << 63
OFFSET = 0x00FFFFFFFFFFFE00


def qemu_img(*args, code=0):
    return run(paths.engine_program("qemu-img"), *args, code=code)


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


def rich_image(folder, options="", name="a.qcow2"):
    """Snapshots, compressed and zero clusters, holes."""
    image, raw = folder / name, folder / "raw"
    raw.write_bytes(random.Random(1).randbytes(300_000) + bytes(700_000) + b"text" * 100_000)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", *(["-o", options] if options else []), raw, image)
    qemu_img("resize", image, "8M")
    qemu_io(image, "write -P 1 2M 300k", "write -z 3M 100k", "write -P 2 3M 512")
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 3 2M 100k", "discard 2200k 64k", "write -P 4 6M 1M")
    qemu_img("snapshot", "-c", "two", image)
    qemu_io(image, "write -P 5 0 70k")
    return image


class Image:
    """The bytes of an image, to be damaged."""

    def __init__(self, path):
        self.path, self.data = path, bytearray(path.read_bytes())
        self.cs = 1 << struct.unpack_from(">I", self.data, 20)[0]
        self.l1, self.rt, self.snapshots = self.get(40), self.get(48), self.get(64)
        tables = [e & OFFSET for e in map(self.get, range(self.l1, self.l1 + 8 * struct.unpack_from(">I", self.data, 36)[0], 8)) if e]
        self.l2 = next(t for t in tables if self.has(t, 0) and self.has(t, COPIED))
        self.block = self.get(self.rt)

    def get(self, at):
        return struct.unpack_from(">Q", self.data, at)[0]

    def put(self, at, value):
        struct.pack_into(">Q", self.data, at, value)

    def has(self, table, value):
        return any(self.get(p) == value or (value and self.get(p) & value) for p in range(table, table + self.cs, 8))

    def data_entry(self):
        """Position of an L2 entry of normal data."""
        return next(p for p in range(self.l2, self.l2 + self.cs, 8)
                    if self.get(p) & OFFSET and not self.get(p) >> 62 & 1 and self.get(p) & COPIED)

    def empty_entry(self):
        return next(p for p in range(self.l2, self.l2 + self.cs, 8) if self.get(p) == 0)

    def refcount_at(self, cluster):
        """Position of a cluster's refcount (16 bits); None: no block."""
        block = self.get(self.rt + cluster // (self.cs // 2) * 8)
        return block + cluster % (self.cs // 2) * 2 if block else None

    def save(self):
        self.path.write_bytes(self.data)


def leak(i):
    i.data += bytes(4 * i.cs)
    at = next(filter(None, (i.refcount_at(c) for c in range(len(i.data) // i.cs - 1, 0, -1))))
    struct.pack_into(">H", i.data, at, 1)


def count_too_low(i):
    cluster = (i.get(i.data_entry()) & OFFSET) // i.cs
    struct.pack_into(">H", i.data, i.refcount_at(cluster), 0)


def copied_flag(i):
    at = i.data_entry()
    i.put(at, i.get(at) & ~COPIED)


def corrupt_bit(i):
    i.data[79] |= 2
    copied_flag(i)


def no_refcounts(i):
    i.data[i.rt:i.rt + 64] = b"\xa5" * 64


def refcount_block_is_a_table(i):
    i.put(i.rt, i.l2)


def entry_past_the_end(i):
    i.put(i.empty_entry(), COPIED | 1 << 40)


def table_past_the_end(i):
    free = [p for p in range(i.l1, i.l1 + 8 * struct.unpack_from(">I", i.data, 36)[0], 8) if i.get(p) == 0]
    i.put(free[0] if free else i.empty_entry(), COPIED | 1 << 40)


def entry_not_aligned(i):
    i.put(i.empty_entry(), COPIED | (5 * i.cs + 512))


def data_over_the_l1_table(i):
    i.put(i.empty_entry(), COPIED | i.l1)


def data_over_an_l2_table(i):
    i.put(i.empty_entry(), COPIED | i.l2)


def data_over_refcounts(i):
    i.put(i.empty_entry(), COPIED | i.block)


def compressed_past_the_end(i):
    i.put(i.empty_entry(), 1 << 62 | len(i.data) + 70_000)


def compressed_in_the_header(i):
    i.put(i.empty_entry(), 1 << 62 | 100)


def reserved_bits(i):
    at = i.data_entry()
    i.put(at, i.get(at) | 0x20)


DAMAGE = [leak, count_too_low, copied_flag, corrupt_bit, no_refcounts, refcount_block_is_a_table, entry_past_the_end,
          table_past_the_end, entry_not_aligned, data_over_the_l1_table, data_over_an_l2_table, data_over_refcounts,
          compressed_past_the_end, compressed_in_the_header, reserved_bits]


def contents(folder, image):
    """What the disk and each snapshot hold, read by QEMU."""
    found = []
    for snapshot in [[], ["-l", "snapshot.name=one"], ["-l", "snapshot.name=two"]]:
        qemu_img("convert", "-f", "qcow2", *snapshot, "-O", "raw", image, folder / "content")
        found.append((folder / "content").read_bytes())
    return found


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """rich(options): a copy of such an image, and what it holds."""
    made = {}

    def call(folder, options):
        if options not in made:
            home = tmp_path_factory.mktemp("rich")
            image = rich_image(home, options)
            made[options] = image, contents(home, image)
        shutil.copy(made[options][0], folder / "a.qcow2")
        return folder / "a.qcow2", made[options][1]

    return call


@pytest.mark.parametrize("options", ["cluster_size=4k", ""])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damage_is_found_and_repaired(quantavirt, tmpfs_dir, rich, damage, options):
    path, expected = rich(tmpfs_dir, options)
    image = Image(path)
    damage(image)
    image.save()
    path_args = (path, "--format", "qcow2")
    quantavirt("storage", "check", *path_args, code=6 if damage is leak else 5)
    assert path.read_bytes() == image.data  # looking changes nothing
    result = quantavirt("storage", "check", *path_args, "--repair", "--json").json()
    assert result["clean"] and result["repaired"] > 0 and result["details"] and not result["corruptions"], result
    assert quantavirt("storage", "check", *path_args, "--json").json()["clean"]
    qemu_img("check", "-f", "qcow2", path)
    assert path.read_bytes()[79] & 3 == 0
    for mine, whole in zip(contents(tmpfs_dir, path), expected):
        assert len(mine) == len(whole)
        differ = [k for k in range(0, len(whole), image.cs) if mine[k:k + image.cs] != whole[k:k + image.cs]]
        # Only the cluster whose entry was made up may differ (it shows what was made up), once in each disk.
        assert len(differ) <= 1, (damage.__name__, differ)
    before = path.read_bytes()
    assert quantavirt("storage", "check", *path_args, "--repair", "--json").json()["repaired"] == 0
    assert path.read_bytes() == before


def test_a_bad_snapshot_entry_is_dropped_and_the_others_stay(quantavirt, tmpfs_dir, rich):
    path, expected = rich(tmpfs_dir, "cluster_size=4k")
    image = Image(path)
    image.put(image.snapshots, 12345)  # the L1 table of snapshot "one"
    image.save()
    quantavirt("storage", "check", path, "--format", "qcow2", code=5)
    quantavirt("storage", "check", path, "--format", "qcow2", "--repair")
    qemu_img("check", "-f", "qcow2", path)
    listing = qemu_img("snapshot", "-l", path).stdout
    assert "two" in listing and "one" not in listing
    qemu_img("convert", "-f", "qcow2", "-l", "snapshot.name=two", "-O", "raw", path, tmpfs_dir / "content")
    assert (tmpfs_dir / "content").read_bytes() == expected[2]


def test_what_cannot_be_repaired_is_left_alone(quantavirt, tmpfs_dir, rich):
    path, _ = rich(tmpfs_dir, "")
    image = Image(path)
    image.put(40, 1 << 40)  # no L1 table any more
    image.save()
    result = quantavirt("storage", "check", path, "--format", "qcow2", "--repair", code=5)
    assert "L1 table" in result.stdout + result.stderr
    assert path.read_bytes() == image.data


def test_an_image_in_use_is_not_repaired(quantavirt, serve, tmpfs_dir):
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "1M")
    serve("a", "vhost-user-blk")
    quantavirt("storage", "check", "a", "--repair", code=4)


def test_bitmaps_that_make_no_sense(quantavirt, tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "64M")
    qemu_img("bitmap", "--add", "-g", "512", image, "one")
    qemu_io(image, "write -P 1 1M 1M", "write -P 2 40M 64k")
    data = bytearray(image.read_bytes())
    at = data.index(struct.pack(">II", 0x23852875, 24))
    directory = struct.unpack_from(">Q", data, at + 24)[0]
    table = struct.unpack_from(">Q", data, directory)[0]
    struct.pack_into(">Q", data, table, 0x1234567)
    image.write_bytes(data)
    quantavirt("storage", "check", image, "--format", "qcow2", code=5)
    quantavirt("storage", "check", image, "--format", "qcow2", "--repair")
    qemu_img("check", "-f", "qcow2", image)
    assert '"name": "one"' in qemu_img("info", "--output=json", image).stdout  # kept, and all of it set there
    struct.pack_into(">Q", data, directory, 512)
    image.write_bytes(data)
    quantavirt("storage", "check", image, "--format", "qcow2", "--repair")
    qemu_img("check", "-f", "qcow2", image)
    qemu_io(image, "read -P 1 1M 1M", "read -P 2 40M 64k")


GEOMETRIES = ["", "cluster_size=512", "cluster_size=4k,refcount_bits=32", "compat=0.10", "extended_l2=on",
              "compression_type=zstd,refcount_bits=64,cluster_size=16k"]


def test_random_damage_and_power_loss(tmpfs_dir):
    """Hundreds of images with random damage: repaired, clean for QEMU too, nothing readable lost; power loss as well."""
    images = [rich_image(tmpfs_dir, options, f"{k}.qcow2") for k, options in enumerate(GEOMETRIES)]
    run(STRESS, "--runs", "180", "--seed", "3", "--qemu-img", paths.engine_program("qemu-img"), *images, cwd=tmpfs_dir,
        timeout=300)


def test_an_encrypted_image_is_repaired(quantavirt, root):
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k")
    quantavirt("storage", "create", "--name", "e", "--format", "encrypted", "--size", "64M", "--key", "k")
    path = root / "images/e.qcow2"
    data = bytearray(path.read_bytes())
    block = struct.unpack_from(">Q", data, struct.unpack_from(">Q", data, 48)[0])[0]
    for cluster in (3, 5):  # what only the header, and what only the seal refers to
        struct.pack_into(">H", data, block + 2 * cluster, 0)
    path.write_bytes(data)
    quantavirt("storage", "check", "e", code=5)
    quantavirt("storage", "check", "e", "--repair")
    quantavirt("storage", "check", "e", "--data")
