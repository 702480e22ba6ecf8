# SPDX-License-Identifier: Apache-2.0
"""`storage rekey --reencrypt`: another data key, whatever happens on the way."""
import os
import signal
import subprocess
import time

import pytest

from qvtest import paths
from qvtest.command import run

SIZE = 24 << 20


@pytest.fixture
def image(quantavirt, root):
    """`a`, with two snapshots and content that they share in part; returns what each shows."""
    first, second = (os.urandom(SIZE) for _ in range(2))
    shown = {}
    folder = root.parent
    (folder / "first").write_bytes(first)
    quantavirt("storage", "import", "--name", "a", folder / "first", "--source-format", "raw", "--format", "encrypted")
    for name, at in (("s1", 1 << 20), ("s2", 8 << 20)):
        quantavirt("storage", "snapshot", "create", "a", "--name", name)
        socket = folder / "s"
        server = subprocess.Popen([paths.QUANTAVIRT, "--root", root, "storage", "serve", "a", "--protocol", "nbd",
                                   "--socket", socket], stdout=subprocess.PIPE)
        server.stdout.readline()
        (folder / "part").write_bytes(second[at:at + (5 << 20)])
        run(paths.system_program("qemu-io"), "-f", "raw", "-c", f"write -s {folder}/part {at} {5 << 20}",
            f"nbd+unix:///?socket={socket}")
        server.terminate()
        assert server.wait(20) == 0
        wait_unlocked(quantavirt)
    shown["s1"] = first
    shown["s2"] = first[:1 << 20] + second[1 << 20:6 << 20] + first[6 << 20:]
    shown[None] = shown["s2"][:8 << 20] + second[8 << 20:13 << 20] + first[13 << 20:]
    for name in "kl":
        quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-1024", "--name", name)
    quantavirt("storage", "key-slot", "add", "a", "--key", "l")
    return shown


def check(quantavirt, root, shown):
    for snapshot, content in shown.items():
        out = root.parent / "out"
        out.unlink(missing_ok=True)
        quantavirt("storage", "export", "a", out, "--format", "raw", *(("--snapshot", snapshot) if snapshot else ()))
        assert out.read_bytes() == content, snapshot
    result = quantavirt("storage", "check", "a", "--data", "--json").json()
    assert result["clean"] and result["sectors_bad"] == []


def test_everything_is_sealed_anew_and_old_keys_are_useless(quantavirt, root, image):
    folder = root.parent
    quantavirt("storage", "header-backup", "a", folder / "area")
    before = (root / "images/a.qcow2").read_bytes()
    done = quantavirt("storage", "rekey", "a", "--key", "k", "--reencrypt", "--json").json()
    assert done["sectors"] >= (SIZE + (10 << 20)) // 4096 and not done["resumed"]
    assert "State:" not in quantavirt("storage", "info", "a").stdout
    assert [s["key"] for s in quantavirt("storage", "key-slot", "list", "a", "--json").json()] == ["k", "l"]
    check(quantavirt, root, image)
    # No sector of the data is as it was; only the image's own tables are.
    after = (root / "images/a.qcow2").read_bytes()
    same = sum(before[i:i + 4096] == after[i:i + 4096] and any(before[i:i + 4096]) for i in range(0, len(before), 4096))
    assert same < len(before) // 4096 // 20
    # The saved area is of another data key; the old key is not needed any more.
    assert "another data key" in quantavirt("storage", "header-restore", "a", folder / "area", code=5).stderr
    quantavirt("pqc", "key-delete", "a")
    check(quantavirt, root, image)
    # Each remaining key opens it alone.
    for name in "kl":
        (root / f"keys/{name}.json").rename(folder / name)
        check(quantavirt, root, {None: image[None]})
        (folder / name).rename(root / f"keys/{name}.json")


def wait_unlocked(quantavirt):
    """The kernel lets go of a killed process's files, and their locks, a moment after it is gone: its ring of
    requests goes later."""
    end = time.monotonic() + 20
    while quantavirt("storage", "info", "a", "--json").json()["locked"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_at_any_moment_it_goes_on(quantavirt, root, image):
    """SIGKILL again and again, later each time; the image is whole each time, and in the end it is done."""
    argv = [paths.QUANTAVIRT, "--root", root, "storage", "rekey", "a", "--key", "k", "--reencrypt", "-q"]
    killed = 0
    for i in range(12):
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        time.sleep(0.01 * i)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(20) == -signal.SIGKILL
        wait_unlocked(quantavirt)
        if i % 4 == 3:
            check(quantavirt, root, image)
    assert killed
    quantavirt("storage", "rekey", "a", "--key", "k", "--reencrypt")
    assert "State:" not in quantavirt("storage", "info", "a").stdout
    quantavirt("pqc", "key-delete", "a")
    check(quantavirt, root, image)


def test_a_sector_that_does_not_authenticate_keeps_the_old_key_and_is_told(quantavirt, root, image):
    path = root / "images/a.qcow2"
    with open(path, "r+b") as f:  # one bit, in the middle of the data
        f.seek(path.stat().st_size // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))
    bad = quantavirt("storage", "check", "a", "--data", "--json", code=None)
    if bad.code == 0:
        pytest.skip("the bit was in no sector")
    failed = quantavirt("storage", "rekey", "a", "--key", "k", "--reencrypt", code=5).stderr
    assert "do not authenticate keep the old data key" in failed
    assert "being replaced" in quantavirt("storage", "info", "a").stdout
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-512", "--name", "m")
    assert "run it again with --key k" in quantavirt("storage", "rekey", "a", "--key", "m", "--reencrypt", code=2).stderr
    # Whoever shows that sector gets an error, as before; the others are whole.
    codes = [quantavirt("storage", "export", "a", root.parent / f"x{i}", "--format", "raw", *options, code=None).code
             for i, options in enumerate(((), ("--snapshot", "s1"), ("--snapshot", "s2")))]
    assert any(codes) and set(codes) <= {0, 1, 5}


def test_an_image_served_or_plain_is_refused(quantavirt, root, serve):
    quantavirt("storage", "create", "--name", "p", "--format", "qcow2", "--size", "1M")
    quantavirt("storage", "create", "--name", "e", "--format", "encrypted", "--size", "1M")
    assert "is not encrypted" in quantavirt("storage", "rekey", "p", "--key", "e", "--reencrypt", code=2).stderr
    assert "no such key" in quantavirt("storage", "rekey", "e", "--key", "x", "--reencrypt", code=3).stderr
    serve("e", "nbd")
    assert "in use by serve" in quantavirt("storage", "rekey", "e", "--key", "e", "--reencrypt", code=4).stderr
