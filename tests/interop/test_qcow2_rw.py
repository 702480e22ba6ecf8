# SPDX-License-Identifier: Apache-2.0
"""Reading and writing qcow2 images that QEMU made, and QEMU reading what we wrote: content and metadata."""
import json
import random
import shutil
import subprocess
import tempfile
import time

import pytest
from qvtest import paths
from qvtest.command import run

RW = paths.BUILD / "tests/support/qcow2_rw"
TOOL = paths.BUILD / "tests/support/qcow2_tool"
MIB = 1 << 20


def qemu_img(*args):
    return run(paths.engine_program("qemu-img"), *args)


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


def expect_clean(image, leaks=False):
    result = run(paths.engine_program("qemu-img"), "check", "--output=json", "-f", "qcow2", image, code=None)
    found = json.loads(result.stdout)
    assert found.get("corruptions", 0) == 0, result
    assert leaks or found.get("leaks", 0) == 0, result


def content_by_qemu(image, folder):
    raw = folder / "by-qemu.raw"
    qemu_img("convert", "-O", "raw", "-f", "qcow2", image, raw)
    return raw.read_bytes()


def rw(image, lines, *backing, readonly=False, data=None, code=0):
    options = [*(["-r"] if readonly else []), *(["-d", data] if data else [])]
    with tempfile.TemporaryFile("w+") as script:
        script.write("\n".join(lines) + "\n")
        script.seek(0)
        return run(RW, *options, image, *backing, stdin=script, code=code)


def content_by_us(image, folder, *backing, data=None):
    raw = folder / "by-us.raw"
    rw(image, [f"dump {raw}"], *backing, readonly=True, data=data)
    return raw.read_bytes()


class Disk:
    """Random requests, and what the disk holds after them."""

    def __init__(self, content, seed, cluster):
        self.content, self.random, self.cluster = bytearray(content), random.Random(seed), cluster

    def requests(self, count, whole_discards=False):
        lines = []
        for _ in range(count):
            size = len(self.content) // 512
            offset = self.random.randrange(size)
            length = min(self.random.choice([1, 3, 8, 64, 2 * self.cluster // 512 + 1]), size - offset)
            if self.random.random() < 0.3:
                offset -= offset % max(1, self.cluster // 512)
                length = min(max(1, self.cluster // 512), size - offset)
            offset, length = offset * 512, length * 512
            what = self.random.choice(["write", "write", "write", "zero", "unmap", "flush"])
            if what == "flush":
                lines.append("flush")
                continue
            byte = self.random.randrange(1, 256) if what == "write" else 0
            self.content[offset:offset + length] = bytes([byte]) * length
            lines.append(f"{what} {offset} {length} {byte}")
        return lines


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("version,bits", [(2, 16), *((3, 1 << i) for i in range(7))])
def test_our_writes_are_read_by_qemu(tmpfs_dir, cluster, bits, version):
    image = tmpfs_dir / "a.qcow2"
    run(TOOL, "create", image, 3 * MIB + 512, cluster, bits, version, "off")
    disk = Disk(bytes(3 * MIB + 512), bits * cluster, cluster)
    for _ in range(3):
        rw(image, disk.requests(40))
        expect_clean(image)
        assert content_by_qemu(image, tmpfs_dir) == disk.content
    assert content_by_us(image, tmpfs_dir) == disk.content


@pytest.mark.parametrize("options", ["compression_type=zlib", "compression_type=zstd", "compat=0.10",
                                     "cluster_size=512", "cluster_size=2M"])
def test_compressed_clusters_are_read_and_rewritten(tmpfs_dir, options):
    raw, image = tmpfs_dir / "raw", tmpfs_dir / "a.qcow2"
    content = random.Random(2).randbytes(200_704) + bytes(500_224) + b"compressible " * 80_000
    content = content[:len(content) // 512 * 512]
    raw.write_bytes(content)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
    assert content_by_us(image, tmpfs_dir) == content
    disk = Disk(content, 3, 65536)
    rw(image, disk.requests(60))
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content
    assert content_by_us(image, tmpfs_dir) == disk.content


@pytest.mark.parametrize("cluster", [512, 4096, 65536])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_snapshots_keep_their_content(tmpfs_dir, compat, cluster):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat},cluster_size={cluster}", image, "2M")
    qemu_io(image, "write -P 1 0 1M", "write -z 1M 128k")
    disk = Disk(content_by_qemu(image, tmpfs_dir), cluster, cluster)
    snapshots = {}
    for name in ("one", "two"):
        snapshots[name] = bytes(disk.content)
        qemu_img("snapshot", "-c", name, image)
        rw(image, disk.requests(40))
        rw(image, ["discard 0 131072"])
        if compat == "0.10":
            disk.content[:] = content_by_qemu(image, tmpfs_dir)
        else:
            disk.content[:131072] = bytes(131072)
        expect_clean(image)
        assert content_by_qemu(image, tmpfs_dir) == disk.content
    for name, content in snapshots.items():
        raw = tmpfs_dir / "snap.raw"
        qemu_img("convert", "-l", f"snapshot.name={name}", "-f", "qcow2", "-O", "raw", image, raw)
        assert raw.read_bytes() == content
    for name in snapshots:
        qemu_img("snapshot", "-d", name, image)
    expect_clean(image)
    rw(image, disk.requests(40))
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content


@pytest.mark.parametrize("backing_size", [MIB, 2 * MIB - 1536, 4 * MIB])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_backing_image_shows_and_stays_hidden(tmpfs_dir, backing_format, compat, backing_size):
    base, image, size = tmpfs_dir / "base", tmpfs_dir / "a.qcow2", 2 * MIB
    content = random.Random(5).randbytes(backing_size)
    (tmpfs_dir / "raw").write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", backing_format, tmpfs_dir / "raw", base)
    before = base.read_bytes()
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", "-b", base, "-F", backing_format, image, size)
    disk = Disk((content + bytes(size))[:size], backing_size, 65536)
    assert content_by_us(image, tmpfs_dir, base, backing_format) == disk.content
    rw(image, disk.requests(40), base, backing_format)
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content
    # Growing shows nothing of a longer backing image.
    rw(image, ["resize %d" % (5 * MIB)], base, backing_format)
    disk.content += bytes(3 * MIB)
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content
    assert content_by_us(image, tmpfs_dir, base, backing_format) == disk.content
    assert base.read_bytes() == before


@pytest.mark.parametrize("prealloc", ["metadata", "falloc"])
def test_preallocated_clusters_are_used(tmpfs_dir, prealloc):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"preallocation={prealloc}", image, "4M")
    disk = Disk(bytes(4 * MIB), 1, 65536)
    rw(image, disk.requests(60))
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content


def test_zero_cluster_with_space_is_filled_in_place(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    rw(image, ["write 0 262144 1", "zero 0 262144"])
    size = image.stat().st_size
    rw(image, ["write 4096 512 2", "write 65536 131072 3"])
    assert image.stat().st_size == size
    expect_clean(image)
    want = bytearray(MIB)
    want[4096:4608] = b"\2" * 512
    want[65536:65536 + 131072] = b"\3" * 131072
    assert content_by_qemu(image, tmpfs_dir) == want


@pytest.mark.parametrize("cluster", [512, 65536])
def test_resize_grows_the_l1_table(tmpfs_dir, cluster):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", image, "64K")
    size = (64 * MIB if cluster == 512 else 1 << 40) + 512
    rw(image, ["write 0 65536 7", f"resize {size}", f"write {size - 512} 512 8", "flush",
               f"resize {size + MIB}", f"write {size} 1024 9"])
    expect_clean(image)
    info = json.loads(qemu_img("info", "--output=json", image).stdout)
    assert info["virtual-size"] == size + MIB
    qemu_io(image, "read -P 7 0 64k", f"read -P 8 {size - 512} 512", f"read -P 9 {size} 1024",
            f"read -P 0 65536 {size - 512 - 65536 if cluster == 512 else MIB}")
    result = rw(image, ["resize 65536"], code=None)
    assert result.code == 1 and "Invalid argument" in result.stderr


def test_discard_gives_space_back(disk_dir):
    image = disk_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "64M")
    rw(image, ["write 0 33554432 1"])
    full = image.stat().st_blocks
    rw(image, ["discard 0 33554432"])
    assert image.stat().st_blocks < full / 20
    expect_clean(image)
    # The space is used again before the file grows.
    size = image.stat().st_size
    rw(image, ["write 0 16777216 2"])
    assert image.stat().st_size <= size
    expect_clean(image)


@pytest.mark.parametrize("cluster", [512, 65536])
def test_killed_writer_leaves_leaks_only(tmpfs_dir, cluster):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", image, "2M")
    disk = Disk(bytes(2 * MIB), cluster, cluster)
    for _ in range(4):
        rw(image, disk.requests(30) + ["flush", "write 0 4096 5", "write 1048576 4096 6", "die"])
        expect_clean(image, leaks=True)
        got = content_by_qemu(image, tmpfs_dir)
        for start in (0, MIB):  # not flushed: old or new
            assert got[start:start + 4096] in (bytes(disk.content[start:start + 4096]),
                                               bytes([5 if start == 0 else 6]) * 4096)
            disk.content[start:start + 4096] = got[start:start + 4096]
        assert got == disk.content


def test_refused_by_name(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    for method, word in [("luks", "LUKS"), ("aes", "AES")]:
        qemu_img("create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
                 f"encrypt.format={method},encrypt.key-secret=s", image, "1M")
        result = rw(image, ["flush"], code=None)
        assert result.code == 1 and word in result.stderr, result
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmpfs_dir}/data", image, "1M")
    result = rw(image, ["flush"], code=None)
    assert result.code == 1 and f'data file "{tmpfs_dir}/data" is not open' in result.stderr, result


EXTENDED = ["extended_l2=on,cluster_size=16K", "extended_l2=on,cluster_size=64K", "extended_l2=on,cluster_size=2M"]


@pytest.mark.parametrize("options", EXTENDED)
@pytest.mark.parametrize("backing", [False, True])
def test_subclusters_both_ways(tmpfs_dir, options, backing):
    """QEMU and we take turns in writing an image with extended L2 entries."""
    image, base, size = tmpfs_dir / "a.qcow2", tmpfs_dir / "base.raw", 3 * MIB + 512
    content = random.Random(7).randbytes(2 * MIB + 1536) if backing else b""
    base.write_bytes(content)
    behind = ["-b", base, "-F", "raw"] if backing else []
    qemu_img("create", "-f", "qcow2", "-o", options, *behind, image, size)
    disk = Disk(content + bytes(size - len(content)), 8, 4096)
    below = [base, "raw"] if backing else []
    for turn in range(3):
        rw(image, disk.requests(40) + ["discard 65536 131072"], *below)
        disk.content[65536:65536 + 131072] = bytes(131072) if disk.content[65536] == 0 else disk.content[65536:65536 + 131072]
        got = content_by_qemu(image, tmpfs_dir)
        assert got[:65536] == disk.content[:65536] and got[65536 + 131072:] == disk.content[65536 + 131072:]
        disk.content[:] = got  # what was discarded in part may show either
        expect_clean(image)
        at = 8192 * (turn * 7 + 3) + 512
        qemu_io(image, f"write -P {turn + 1} {at} 3k", f"write -z {at + 65536} 8k", f"discard {MIB} 64k")
        disk.content[at:at + 3072] = bytes([turn + 1]) * 3072
        disk.content[at + 65536:at + 65536 + 8192] = bytes(8192)
        disk.content[MIB:MIB + 65536] = content_by_qemu(image, tmpfs_dir)[MIB:MIB + 65536]
        assert content_by_us(image, tmpfs_dir, *below) == disk.content
        assert content_by_qemu(image, tmpfs_dir) == disk.content
    rw(image, [f"resize {5 * MIB}", f"write {5 * MIB - 4096} 4096 9"], *below)
    disk.content += bytes(5 * MIB - size - 4096) + b"\t" * 4096
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content


@pytest.mark.parametrize("cluster", [16384, 131072])
def test_our_extended_images_are_qemus(tmpfs_dir, cluster):
    image = tmpfs_dir / "a.qcow2"
    for prealloc in ("off", "metadata"):
        run(TOOL, "create", image, 3 * MIB + 512, cluster, 16, 3, prealloc, "extended-l2")
        info = json.loads(qemu_img("info", "--output=json", image).stdout)
        assert info["format-specific"]["data"]["extended-l2"] is True
        disk = Disk(bytes(3 * MIB + 512), cluster, cluster // 32)
        rw(image, disk.requests(60))
        expect_clean(image)
        assert content_by_qemu(image, tmpfs_dir) == disk.content
        assert content_by_us(image, tmpfs_dir) == disk.content


def test_small_writes_over_a_backing_image_copy_nothing(tmpfs_dir):
    """128 KiB clusters have sub-clusters of 4 KiB: each write allocates just that, and reads nothing below."""
    base, image = tmpfs_dir / "base.raw", tmpfs_dir / "a.qcow2"
    base.write_bytes(b"\7" * (8 * MIB))
    run(TOOL, "create", image, 8 * MIB, 131072, 16, 3, "off", "extended-l2")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image)
    rw(image, [f"write {i * 131072 + 8192} 4096 1" for i in range(32)] + ["flush"], base, "raw")
    mapped = rw(image, ["map"], base, "raw", readonly=True).stdout.splitlines()
    data = [line.split() for line in mapped if line.endswith(" data")]
    assert [(int(at), int(length)) for at, length, _ in data] == [(i * 131072 + 8192, 4096) for i in range(32)]
    qemu_map = json.loads(qemu_img("map", "--output=json", image).stdout)
    assert sum(e["length"] for e in qemu_map if e["depth"] == 0 and e["data"]) == 32 * 4096
    expect_clean(image)


def test_zeros_over_a_backing_image_are_marks(tmpfs_dir):
    """Sub-clusters of 4 KiB: whole ones are marked, what is left at the ends of a range is written."""
    base, image = tmpfs_dir / "base.raw", tmpfs_dir / "a.qcow2"
    base.write_bytes(b"\7" * (8 * MIB))
    run(TOOL, "create", image, 8 * MIB, 131072, 16, 3, "off", "extended-l2")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image)
    expected = bytearray(base.read_bytes())
    rw(image, [f"zero {i * 131072 + 8192} 40960" for i in range(16)] + ["flush"], base, "raw")
    for i in range(16):
        expected[i * 131072 + 8192:i * 131072 + 49152] = bytes(40960)
    data = [e for e in json.loads(qemu_img("map", "--output=json", image).stdout) if e["depth"] == 0 and e["data"]]
    assert data == [] and image.stat().st_size < MIB
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == expected
    rw(image, ["zero 1572864 6144", "write 1576960 512 9", "zero 8192 512", "flush"], base, "raw")  # parts of some
    expected[1572864:1579008] = bytes(6144)
    expected[1576960:1577472] = b"\t" * 512
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == expected


@pytest.mark.parametrize("raw", ["off", "on"])
@pytest.mark.parametrize("more", ["cluster_size=64K", "cluster_size=512", "extended_l2=on,cluster_size=16K"])
def test_data_file_both_ways(tmpfs_dir, raw, more):
    image, data, size = tmpfs_dir / "a.qcow2", tmpfs_dir / "a.data", 2 * MIB + 512
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={data},data_file_raw={raw},{more}", image, size)
    disk = Disk(bytes(size), len(more), 4096)
    for turn in range(3):
        rw(image, disk.requests(40), data=data)
        expect_clean(image)
        assert content_by_qemu(image, tmpfs_dir) == disk.content
        at = 65536 * turn + 1024
        qemu_io(image, f"write -P {turn + 1} {at} 9k", f"write -z {at + MIB} 70k")
        disk.content[at:at + 9216] = bytes([turn + 1]) * 9216
        disk.content[at + MIB:at + MIB + 71680] = bytes(71680)
        assert content_by_us(image, tmpfs_dir, data=data) == disk.content
        if raw == "on":  # QEMU may fill up the last cluster
            assert data.read_bytes()[:size] == disk.content
    rw(image, [f"resize {4 * MIB}", f"write {4 * MIB - 512} 512 9"], data=data)
    disk.content += bytes(4 * MIB - size - 512) + b"\t" * 512
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == disk.content
    info = json.loads(qemu_img("info", "--output=json", image).stdout)["format-specific"]["data"]
    assert info["data-file-raw"] is (raw == "on")
    if raw == "on":
        assert data.read_bytes()[:len(disk.content)] == disk.content


def test_our_data_file_is_qemus(tmpfs_dir):
    image, data, size = tmpfs_dir / "a.qcow2", tmpfs_dir / "a.data", 2 * MIB
    for options in (["raw"], ["extended-l2"]):
        data.write_bytes(b"old content" * 1000 if "raw" not in options else b"")
        run(TOOL, "create", image, size, 65536, 16, 3, "off", f"data={data}", *options)
        disk = Disk(bytes(size), 4, 65536)
        rw(image, disk.requests(40), data=data)
        expect_clean(image)
        assert content_by_qemu(image, tmpfs_dir) == disk.content
        assert image.stat().st_size < MIB  # the data is not in it


def test_unknown_extensions_and_autoclear_bits(tmpfs_dir):
    """Extensions that we do not know stay; autoclear bits that we do not know go with the first write."""
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "compat=1.1", image, "1M")
    raw = bytearray(image.read_bytes())
    length = int.from_bytes(raw[100:104], "big")
    extension = b"QVX1" + (5).to_bytes(4, "big") + b"hello\0\0\0"
    raw[length + len(extension):1024] = raw[length:1024 - len(extension)]
    raw[length:length + len(extension)] = extension
    raw[88:96] = (1 << 40).to_bytes(8, "big")
    image.write_bytes(raw)
    rw(image, ["map"], readonly=True)
    assert image.read_bytes() == raw
    rw(image, ["write 0 4096 1", "resize 2097152"])
    after = image.read_bytes()
    assert after[88:96] == bytes(8) and extension in after[:1024]
    expect_clean(image)


def bitmaps(image):
    info = json.loads(qemu_img("info", "--output=json", image).stdout)["format-specific"]["data"]
    return {b["name"]: set(b["flags"]) for b in info.get("bitmaps", [])}


def dirty(image, name, folder):
    """What QEMU says has changed: ranges of the bitmap, through NBD."""
    socket = folder / "nbd"
    server = subprocess.Popen([str(paths.engine_program("qemu-nbd")), "-r", "-t", "-f", "qcow2", "-B", name, "-k",
                               str(socket), str(image)])
    try:
        end = time.monotonic() + 20
        while not socket.exists():
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        rows = json.loads(run(paths.system_program("nbdinfo"), f"--map=qemu:dirty-bitmap:{name}", "--json",
                              f"nbd+unix:///?socket={socket}").stdout)
    finally:
        server.terminate()
        server.wait()
    return [(r["offset"], r["length"]) for r in rows if r["type"] == 1]


@pytest.mark.parametrize("more", ["cluster_size=64K", "cluster_size=512", "extended_l2=on"])
def test_bitmaps_follow_what_we_write(tmpfs_dir, more):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", more, image, "64M")
    qemu_img("bitmap", "--add", "-g", "64K", image, "on")
    qemu_img("bitmap", "--add", "-g", "4K", image, "fine")
    qemu_img("bitmap", "--add", "--disable", image, "off")
    qemu_io(image, "write 0 64k")
    assert dirty(image, "on", tmpfs_dir) == [(0, 65536)]
    copy = tmpfs_dir / "copy.qcow2"
    shutil.copy(image, copy)
    rw(copy, ["map"], readonly=True)
    assert copy.read_bytes() == image.read_bytes()
    rw(image, [f"write {10 * MIB} 512 1", "flush", f"zero {20 * MIB + 512} 70000", f"discard {30 * MIB} 131072",
               f"write {64 * MIB - 512} 512 2", f"write {10 * MIB + 512} 512 1"])
    assert bitmaps(image) == {"on": {"auto"}, "fine": {"auto"}, "off": set()}
    expect_clean(image)
    assert dirty(image, "on", tmpfs_dir) == [(0, 65536), (10 * MIB, 65536), (20 * MIB, 131072), (30 * MIB, 131072),
                                             (64 * MIB - 65536, 65536)]
    assert dirty(image, "fine", tmpfs_dir) == [(0, 65536), (10 * MIB, 4096), (20 * MIB, 73728), (30 * MIB, 131072),
                                               (64 * MIB - 4096, 4096)]
    assert dirty(image, "off", tmpfs_dir) == []
    # QEMU goes on with them, then we do.
    qemu_io(image, "write 1M 4k")
    rw(image, ["write 2097152 512 3"])
    assert (MIB, 4096) in dirty(image, "fine", tmpfs_dir) and (2 * MIB, 4096) in dirty(image, "fine", tmpfs_dir)
    expect_clean(image)


def test_bitmaps_survive_growing_and_restoring(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    qemu_img("bitmap", "--add", "-g", "64K", image, "on")
    qemu_img("bitmap", "--add", "--disable", image, "off")
    qemu_img("snapshot", "-c", "s", image)
    rw(image, ["write 0 512 1", f"resize {100 * MIB}", f"write {90 * MIB} 512 2"])
    expect_clean(image)
    assert bitmaps(image) == {"on": {"auto"}, "off": set()}
    ranges = dirty(image, "on", tmpfs_dir)
    assert ranges == [(0, 65536), (MIB, 99 * MIB)]  # what is new counts as changed
    run(paths.BUILD / "tests/support/qcow2_snapshot", "restore", image, "s")
    assert bitmaps(image)["on"] >= {"in-use"}  # of another size than the disk: void
    expect_clean(image)
    qemu_img("bitmap", "--remove", image, "on")
    qemu_img("bitmap", "--add", "-g", "64K", image, "new")
    run(paths.BUILD / "tests/support/qcow2_snapshot", "restore", image, "s")
    assert dirty(image, "new", tmpfs_dir) == [(0, MIB)]
    expect_clean(image)


def test_a_killed_writer_leaves_bitmaps_in_use(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    qemu_img("bitmap", "--add", image, "on")
    qemu_img("bitmap", "--add", "--disable", image, "off")
    rw(image, ["write 0 65536 1", "flush", "die"])
    assert bitmaps(image) == {"on": {"auto", "in-use"}, "off": set()}
    rw(image, ["write 65536 65536 2"])
    assert bitmaps(image) == {"on": {"auto", "in-use"}, "off": set()}
    expect_clean(image, leaks=True)  # the killed one's stock


def test_bitmaps_that_break_the_format_are_dropped(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    qemu_img("bitmap", "--add", image, "on")
    raw = bytearray(image.read_bytes())
    at = raw.index(bytes.fromhex("23852875"))
    directory = int.from_bytes(raw[at + 24:at + 32], "big")
    raw[directory:directory + 8] = (1 << 60).to_bytes(8, "big")  # a table far past the end
    image.write_bytes(raw)
    rw(image, ["write 0 65536 1"])
    assert bitmaps(image) == {}
    expect_clean(image, leaks=True)


def test_dirty_image_is_rebuilt(tmpfs_dir):
    image = tmpfs_dir / "a.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "8M")
    run(paths.engine_program("qemu-io"), "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "write -z 2M 64k",
        "-c", "flush", "-c", "abort", image, code=None)
    info = json.loads(qemu_img("info", "--output=json", "-U", image).stdout)
    assert info["dirty-flag"]
    want = bytearray(8 * MIB)
    want[:MIB] = b"\1" * MIB
    assert content_by_us(image, tmpfs_dir) == want
    rw(image, ["write 1048576 4096 2"])
    want[MIB:MIB + 4096] = b"\2" * 4096
    assert not json.loads(qemu_img("info", "--output=json", image).stdout)["dirty-flag"]
    expect_clean(image)
    assert content_by_qemu(image, tmpfs_dir) == want
