# SPDX-License-Identifier: Apache-2.0
"""qcow2 images that keep their data in a file of its own, and images with sub-clusters, through the commands."""
import random

import pytest

from qvtest import paths
from qvtest.command import run

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def foreign(disk_dir, qemu_img):
    """foreign("on"): QEMU's image a.qcow2 with a data file a.data beside it, raw or not; its content."""
    folder = disk_dir / "foreign"
    folder.mkdir()

    def make(raw):
        content = random.Random(4).randbytes(300 * KIB) + bytes(MIB - 300 * KIB)
        (folder / "content").write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o",
                 f"data_file={folder}/a.data,data_file_raw={raw}", folder / "content", folder / "a.qcow2")
        return folder, content

    return make


def rename_data_file(image, new):
    """What an attacker writes into the header."""
    data = image.read_bytes()
    at = data.index(b"DATA", 104)
    length = int.from_bytes(data[at + 4:at + 8], "big")
    assert len(new) <= length
    image.write_bytes(data[:at + 8] + new.ljust(length, b"\0") + data[at + 8 + length:])


@pytest.mark.parametrize("raw", ["on", "off"])
def test_import_convert_check_and_info(quantavirt, qemu_img, foreign, root, raw):
    folder, _ = foreign(raw)
    image = folder / "a.qcow2"
    quantavirt("storage", "import", "--name", "a", image, "--backing-root", folder)
    quantavirt("storage", "convert", image, "--format", "qcow2", "--target-format", "raw", "--output", "b",
               "--backing-root", folder)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", folder / "content", root / "images/a.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "raw", folder / "content", root / "images/b.raw")
    assert "a.data" in quantavirt("storage", "info", image, "--format", "qcow2").stdout
    assert quantavirt("storage", "check", image, "--format", "qcow2", "--json").json()["clean"] is True


@pytest.mark.parametrize("protocol", ["nbd", "vhost-user-blk"])
def test_a_data_file_is_followed_only_where_that_is_allowed(quantavirt, foreign, disk_dir, root, protocol):
    folder, _ = foreign("on")
    image = folder / "a.qcow2"
    commands = (["import", "--name", "a", image],
                ["convert", image, "--format", "qcow2", "--target-format", "raw", "--output", "a"],
                ["serve", image, "--format", "qcow2", "--protocol", protocol, "--socket", disk_dir / "s"])
    for command in commands:
        result = quantavirt("storage", *command, code=1)
        assert "it names the data file" in result.stderr and "--backing-root" in result.stderr
    (folder / "link").symlink_to("/etc/passwd")
    for name in (b"/etc/passwd", b"link", b"json:{}", b"none"):
        rename_data_file(image, name)
        for command in commands:
            assert quantavirt("storage", *command, "--backing-root", folder, code=None).code == \
                (3 if name == b"none" else 1)
    assert not list((root / "images").glob("*"))


def test_serve_writes_through_to_the_data_file(serve, foreign, qemu_img):
    folder, content = foreign("on")
    daemon = serve(folder / "a.qcow2", "nbd", "--format", "qcow2", "--backing-root", folder, "--discard")
    uri = f"nbd+unix:///?socket={daemon.socket}"
    result = run(paths.system_program("qemu-io"), "-f", "raw", "-c", "write -P 7 500k 100k", "-c", "write -z 0 64k", uri)
    assert "failed" not in result.stdout + result.stderr
    daemon.stop()
    expected = bytearray(content)
    expected[500 * KIB:600 * KIB] = b"\7" * (100 * KIB)
    expected[:64 * KIB] = bytes(64 * KIB)
    assert (folder / "a.data").read_bytes()[:MIB] == expected  # what a raw data file promises
    (folder / "expected").write_bytes(expected)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", folder / "expected", folder / "a.qcow2")
    assert qemu_img("check", "--output=json", folder / "a.qcow2")["check-errors"] == 0


def test_two_writers_of_one_data_file_exclude_each_other(serve, quantavirt, foreign, disk_dir):
    folder, _ = foreign("off")
    serve(folder / "a.qcow2", "vhost-user-blk", "--format", "qcow2", "--backing-root", folder)
    other = folder / "b.qcow2"
    other.write_bytes((folder / "a.qcow2").read_bytes())
    result = quantavirt("storage", "serve", other, "--format", "qcow2", "--protocol", "nbd", "--socket",
                        disk_dir / "other", "--backing-root", folder, code=4)
    assert "a.data" in result.stderr


@pytest.mark.parametrize("options", [[], ["--cluster-size", "16K"], ["--cluster-size", "2M"]])
def test_create_and_convert_with_extended_l2(quantavirt, qemu_img, disk_dir, root, options):
    content = random.Random(5).randbytes(3 * MIB) + bytes(MIB) + b"text " * 100_000
    content = content[:len(content) // 512 * 512]
    (disk_dir / "x.raw").write_bytes(content)
    quantavirt("storage", "create", "--name", "e", "--format", "qcow2", "--size", "1G", "--extended-l2", *options)
    assert "Extended L2:" in quantavirt("storage", "info", "e").stdout
    quantavirt("storage", "import", "--name", "i", disk_dir / "x.raw", "--format", "qcow2", "--extended-l2", *options)
    quantavirt("storage", "convert", "i", "--target-format", "qcow2", "--output", "c", "--extended-l2", "--compress",
               *options)
    for name in ("e", "i", "c"):
        path = root / f"images/{name}.qcow2"
        assert qemu_img("info", "--output=json", path)["format-specific"]["data"]["extended-l2"] is True
        assert qemu_img("check", "--output=json", path)["check-errors"] == 0
    for name in ("i", "c"):
        qemu_img("compare", "-f", "raw", "-F", "qcow2", disk_dir / "x.raw", root / f"images/{name}.qcow2")


def test_extended_l2_is_refused_where_it_cannot_be(quantavirt):
    for args in (["--format", "raw"], ["--format", "qcow2", "--cluster-size", "8K"]):
        result = quantavirt("storage", "create", "--name", "e", "--size", "1M", "--extended-l2", *args, code=2)
        assert "--extended-l2" in result.stderr
