# SPDX-License-Identifier: Apache-2.0
"""Copies on a file system that shares blocks: nothing is read or written, and content is the same."""
import os
import random
import shutil
import subprocess

import pytest

from qvtest import paths
from qvtest.command import run

MIB = 1 << 20


@pytest.fixture
def sharing_fs(disk_dir):
    """A mounted XFS; skipped where that cannot be."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and xfsprogs")
    image, folder = disk_dir / "xfs", disk_dir / "m"
    folder.mkdir()
    with open(image, "wb") as f:
        f.truncate(600 * MIB)
    if subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=False).returncode != 0 or \
            subprocess.run(["mount", "-o", "loop", image, folder], check=False).returncode != 0:
        pytest.skip("XFS cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def used(folder):
    os.sync()
    fs = os.statvfs(folder)
    return (fs.f_blocks - fs.f_bfree) * fs.f_frsize


def test_converting_shares_blocks(sharing_fs, qemu_img):
    root, source = sharing_fs / "r", sharing_fs / "x.raw"
    block = random.Random(6).randbytes(MIB)
    with open(source, "wb") as f:
        for i in range(64):
            f.write(block[i:] + block[:i])
        f.seek(100 * MIB)
        f.write(block)

    def storage(*args):
        return run(paths.QUANTAVIRT, "--root", root, "storage", *args)

    before = used(sharing_fs)
    storage("convert", source, "--format", "raw", "--target-format", "qcow2", "--output", "q")
    storage("convert", "q", "--target-format", "raw", "--output", "r")
    storage("convert", "q", "--target-format", "qcow2", "--output", "p", "--cluster-size", "128K")
    storage("export", "p", sharing_fs / "y.raw", "--format", "raw")
    assert used(sharing_fs) - before < 8 * MIB  # four copies of 65 MiB
    for image, form in ((root / "images/q.qcow2", "qcow2"), (root / "images/r.raw", "raw"),
                        (root / "images/p.qcow2", "qcow2"), (sharing_fs / "y.raw", "raw")):
        qemu_img("compare", "-f", "raw", "-F", form, source, image)
        if form == "qcow2":
            assert qemu_img("check", "--output=json", image)["check-errors"] == 0
    # What is shared is not changed by writing to one of them.
    run(paths.engine_program("qemu-io"), "-f", "qcow2", "-c", "write -P 9 0 1M", root / "images/q.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, root / "images/p.qcow2")
    # Space of its own is not shared space, and small clusters are too small to share.
    before = used(sharing_fs)
    storage("convert", source, "--format", "raw", "--target-format", "qcow2", "--output", "own", "--prealloc", "full")
    storage("convert", source, "--format", "raw", "--target-format", "qcow2", "--output", "small", "--cluster-size", "512")
    assert used(sharing_fs) - before > 160 * MIB
    for name in ("own", "small"):
        qemu_img("compare", "-f", "raw", "-F", "qcow2", source, root / f"images/{name}.qcow2")
