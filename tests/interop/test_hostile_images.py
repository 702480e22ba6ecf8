# SPDX-License-Identifier: Apache-2.0
"""
Hundreds of qcow2 images with bytes changed at random, read by us and by qemu-img: both read the same, or both refuse.

We refuse some that QEMU reads: entries with reserved bits, places past the end of the file, snapshot tables that break the
specification. That is counted, not forbidden. What QEMU refuses we never read, and where both read it is the same.
No command crashes, takes 10 s or 512 MiB, and those that only read change nothing.
"""
import os
import random
import struct
import subprocess
import tempfile
import time

import pytest

from qvtest import paths

RW = paths.BUILD / "tests/support/qcow2_rw"
OFFSET = 0x00FFFFFFFFFFFE00


def bounded(*argv, stdin=None):
    """Runs a program: its exit code, and what it said. It has 10 s and 512 MiB, and must not crash."""
    with tempfile.TemporaryFile() as words, tempfile.TemporaryFile() as output:
        words.write((stdin or "").encode())
        words.seek(0)
        process = subprocess.Popen([str(a) for a in argv], stdin=words, stdout=output, stderr=subprocess.STDOUT)
        start, pid = time.monotonic(), 0
        while not pid:
            time.sleep(0.002)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not pid and time.monotonic() - start > 10:
                process.kill()
                process.wait()
                raise AssertionError(f"{argv}: more than 10 s")
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace")
    assert process.returncode >= 0, (argv, process.returncode, said)
    assert usage.ru_maxrss < 512 * 1024, (argv, usage.ru_maxrss)
    return process.returncode, said


def qemu_img(*args):
    return bounded(paths.engine_program("qemu-img"), *args)


def small_image(folder, options):
    image, raw = folder / "whole.qcow2", folder / "raw"
    raw.write_bytes(random.Random(1).randbytes(60_000) + bytes(140_000) + b"text" * 20_000)
    assert qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, raw, image)[0] == 0
    assert qemu_img("resize", image, "2M")[0] == 0
    io = paths.engine_program("qemu-io")
    assert bounded(io, "-f", "qcow2", "-c", "write -P 1 512k 100k", "-c", "write -z 700k 50k", image)[0] == 0
    assert qemu_img("snapshot", "-c", "one", image)[0] == 0
    assert bounded(io, "-f", "qcow2", "-c", "write -P 3 512k 30k", "-c", "write -P 4 1M 300k", image)[0] == 0
    return image.read_bytes()


def be64(data, at):
    return struct.unpack_from(">Q", data, at)[0] if at + 8 <= len(data) else 0


def places(data):
    """Positions worth changing: in the header, the tables, the snapshot table."""
    cs = 1 << struct.unpack_from(">I", data, 20)[0]
    l1, n_l1, rt, snapshots = be64(data, 40), struct.unpack_from(">I", data, 36)[0], be64(data, 48), be64(data, 64)
    tables = [be64(data, p) & OFFSET for p in range(l1, l1 + 8 * n_l1, 8)]
    l1s = [p for p in range(l1, l1 + 8 * n_l1, 8)]
    l2s = [p for t in tables if t for p in range(t, t + cs, 8) if be64(data, p)]
    return [range(0, 112), range(112, 400), l1s, l2s, l2s, l2s, range(rt, rt + 16), range(snapshots, snapshots + 80)]


def damage(data, dice):
    bad = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        at = dice.choice(dice.choice(places(data)))
        kind = dice.randrange(5)
        if kind == 0 or at < 400:
            bad[at] = dice.choice([0, 1, 0xff, bad[at] ^ 1 << dice.randrange(8)])
        else:
            value = {1: be64(bad, at) ^ 1 << dice.randrange(64), 2: dice.randrange(len(data)) & ~511,
                     3: be64(bad, at) + 4096, 4: dice.getrandbits(64)}[kind]
            struct.pack_into(">Q", bad, at & ~7, value & (1 << 64) - 1)
    if dice.randrange(10) == 0:
        del bad[dice.randrange(len(bad)) & ~511:]
    return bytes(bad)


GEOMETRIES = ["cluster_size=4k", "cluster_size=512", "cluster_size=64k,compat=0.10", "cluster_size=16k,extended_l2=on",
              "cluster_size=4k,compression_type=zstd,refcount_bits=64"]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_both_read_the_same_or_refuse(tmpfs_dir, options):
    data, dice = small_image(tmpfs_dir, options), random.Random(options)
    image, mine, theirs = tmpfs_dir / "a.qcow2", tmpfs_dir / "mine", tmpfs_dir / "theirs"
    verdicts = {"same": 0, "both refuse": 0, "we refuse": 0}
    for _ in range(60):
        bad = damage(data, dice)
        image.write_bytes(bad)
        ours = bounded(RW, "-r", image, stdin=f"dump {mine}\n")
        qemu = qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", image, theirs)
        if ours[0] == 0 and qemu[0] == 0:
            assert mine.read_bytes() == theirs.read_bytes()
            verdicts["same"] += 1
        else:
            assert ours[0] != 0, ("QEMU refuses, we read", qemu[1])
            verdicts["both refuse" if qemu[0] != 0 else "we refuse"] += 1
        assert image.read_bytes() == bad
    assert verdicts["same"] > 5 and verdicts["both refuse"] > 5, verdicts
    assert verdicts["we refuse"] < 30, verdicts


@pytest.mark.parametrize("options", GEOMETRIES)
def test_commands_that_only_read_change_nothing(tmpfs_dir, options):
    data, dice = small_image(tmpfs_dir, options), random.Random(options + "2")
    image = tmpfs_dir / "a.qcow2"
    codes = set()
    for _ in range(25):
        bad = damage(data, dice)
        image.write_bytes(bad)
        for command in ["info", "check"]:
            code, said = bounded(paths.QUANTAVIRT, "--root", tmpfs_dir, "storage", command, image, "--format", "qcow2")
            codes.add((command, code))
            assert code in (0, 1, 3, 5, 6) and (code == 0 or said), (command, code, said)
            assert image.read_bytes() == bad
        code, said = bounded(paths.QUANTAVIRT, "--root", tmpfs_dir, "storage", "check", image, "--format", "qcow2",
                             "--repair")
        assert code in (0, 1, 5), (code, said)
        if code == 0:
            assert bounded(paths.QUANTAVIRT, "--root", tmpfs_dir, "storage", "check", image, "--format", "qcow2")[0] == 0
    assert ("info", 0) in codes and ("check", 5) in codes
