# SPDX-License-Identifier: Apache-2.0
"""Linked clones, flattening, and what a foreign image may make us open."""
import json
import random
import signal
import subprocess
import time

import pytest

from qvtest import paths
from qvtest.command import run

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB


def qemu_io(image, *commands):
    run(paths.engine_program("qemu-io"), "-f", "qcow2", *(w for c in commands for w in ("-c", c)), image)


@pytest.fixture
def base(quantavirt, disk_dir, root):
    """base("b", "raw"): an image of 4 MiB with text, holes and noise; its content."""

    def make(name, form):
        source = disk_dir / f"{name}.raw"
        dice = random.Random(name)
        content = b"".join(dice.randbytes(200 * KIB) + bytes(200 * KIB) for _ in range(11))[:SIZE]
        source.write_bytes(content)
        quantavirt("storage", "import", "--name", name, source, "--format", form)
        return bytearray(content)

    return make


@pytest.fixture
def clone(quantavirt):
    def call(name, backing, *options, code=0):
        return quantavirt("storage", "create", "--name", name, "--format", "qcow2", "--backing", backing, *options,
                          code=code)

    return call


def content(quantavirt, disk_dir, name):
    out = disk_dir / f"{name}.out"
    quantavirt("storage", "export", name, out, "--format", "raw")
    data = out.read_bytes()
    out.unlink()
    return data


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_clone_shows_its_backing_image_to_us_and_to_qemu(quantavirt, base, clone, qemu_img, root, disk_dir, form):
    expected = base("b", form)
    clone("c", "default/b")
    info = quantavirt("storage", "info", "c", "--json").json()
    assert info["backing"] == "b" and info["virtual_size"] == SIZE and info["actual_size"] < MIB
    assert "Backing:      b" in quantavirt("storage", "info", "c").stdout
    assert content(quantavirt, disk_dir, "c") == expected
    path = root / "images/c.qcow2"
    facts = qemu_img("info", "--output=json", path)
    assert facts["backing-filename"] == f"b.{form}" and facts["backing-filename-format"] == form
    qemu_io(path, "write -P 7 100k 100k", "write -P 0 600k 40k")
    expected[100 * KIB:200 * KIB] = bytes([7]) * 100 * KIB
    expected[600 * KIB:640 * KIB] = bytes(40 * KIB)
    assert content(quantavirt, disk_dir, "c") == expected
    assert qemu_img("check", "--output=json", path)["check-errors"] == 0


def test_a_clone_may_be_larger_and_smaller(quantavirt, base, clone, disk_dir):
    expected = base("b", "qcow2")
    clone("large", "b", "--size", "6M")
    clone("small", "b", "--size", "1M")
    assert content(quantavirt, disk_dir, "large") == expected + bytes(2 * MIB)
    assert content(quantavirt, disk_dir, "small") == expected[:MIB]
    quantavirt("storage", "resize", "small", "--size", "4M")
    assert content(quantavirt, disk_dir, "small") == expected[:MIB] + bytes(3 * MIB)


def test_a_chain_of_fifteen(quantavirt, base, clone, qemu_img, root, disk_dir):
    expected = base("c0", "raw")
    for i in range(1, 16):
        clone(f"c{i}", f"c{i - 1}")
        qemu_io(root / f"images/c{i}.qcow2", f"write -P {i} {i * 70}k 70k")
        expected[i * 70 * KIB:(i + 1) * 70 * KIB] = bytes([i]) * 70 * KIB
    assert content(quantavirt, disk_dir, "c15") == expected
    quantavirt("storage", "convert", "c15", "--target-format", "qcow2", "--output", "whole", "--compress")
    assert qemu_img("info", "--output=json", root / "images/whole.qcow2").get("backing-filename") is None
    assert content(quantavirt, disk_dir, "whole") == expected
    quantavirt("storage", "flatten", "c15")
    assert content(quantavirt, disk_dir, "c15") == expected


def test_what_others_stand_on_stays_as_it_is(quantavirt, base, clone, serve, root):
    base("b", "qcow2")
    quantavirt("storage", "snapshot", "create", "b", "--name", "s")
    clone("c", "b")
    assert "image c stands on it" in quantavirt("storage", "snapshot", "restore", "b", "--name", "s", code=4).stderr
    result = quantavirt("storage", "delete", "b", code=4)
    assert "image c stands on it" in result.stderr
    result = quantavirt("storage", "serve", "b", "--protocol", "nbd", "--socket", root / "x", code=4)
    assert "image c stands on it" in result.stderr
    daemon = serve("c", "vhost-user-blk")
    serve("b", "vhost-user-blk", "--read-only")
    assert daemon.process.poll() is None
    quantavirt("storage", "resize", "b", "--size", "8M", code=4)  # held by the clone's user
    daemon.stop()
    quantavirt("storage", "flatten", "c")
    quantavirt("storage", "info", "c")


@pytest.mark.parametrize("args, code, text", [
    (["--format", "qcow2", "--backing", "none"], 3, "none: no such image"),
    (["--format", "qcow2", "--backing", "/etc/passwd"], 2, "must be the name of an image"),
    (["--format", "raw", "--backing", "b"], 2, "raw images stand on no other image"),
    (["--format", "qcow2", "--backing", "b", "--prealloc", "full"], 2, "exclude each other"),
    (["--format", "qcow2", "--backing", "b", "--size", "0"], 2, "at least 512"),
    (["--format", "qcow2"], 2, "--size is missing"),
])
def test_refused(quantavirt, base, root, args, code, text):
    base("b", "raw")
    assert text in quantavirt("storage", "create", "--name", "c", *args, code=code).stderr
    assert [p.name for p in (root / "images").iterdir()] == ["b.raw"]


def test_a_backing_image_that_is_written_is_refused(base, clone, serve):
    base("b", "qcow2")
    serve("b", "vhost-user-blk")
    assert "in use by serve" in clone("c", "b", code=4).stderr


def test_a_circle_in_the_catalogue_is_refused(quantavirt, base, clone, root):
    base("a", "qcow2")
    clone("b", "a")
    record = root / "catalog/a.json"
    changed = json.loads(record.read_text())
    changed["backing"] = "b"
    record.write_text(json.dumps(changed))
    for name in "ab":
        assert "stands on itself" in quantavirt("storage", "export", name, root / "x", code=1).stderr
        assert "stands on itself" in quantavirt("storage", "resize", name, "--size", "8M", code=1).stderr


# ---- flatten ----

@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_flatten_ends_the_dependence(quantavirt, base, clone, qemu_img, root, disk_dir, form):
    expected = base("b", form)
    clone("c", "b", "--size", "5M")
    path = root / "images/c.qcow2"
    qemu_io(path, "write -P 7 100k 100k", "discard 1M 512k", "write -z 2M 256k")
    expected = content(quantavirt, disk_dir, "c")
    assert quantavirt("storage", "flatten", "c").stdout == "c is whole now\n"
    facts = qemu_img("info", "--output=json", path)
    assert "backing-filename" not in facts and "backing-filename-format" not in facts
    info = quantavirt("storage", "info", "c", "--json").json()
    assert info["backing"] is None and info["actual_size"] < 4 * MIB  # zeros were not copied
    quantavirt("storage", "delete", "b")
    assert qemu_img("check", "--output=json", path)["check-errors"] == 0
    assert content(quantavirt, disk_dir, "c") == expected
    assert quantavirt("storage", "flatten", "c").stdout == "c stands on no other image\n"
    quantavirt("storage", "flatten", "nobody", code=3)


def test_flatten_finishes_what_was_nearly_done(quantavirt, base, clone, root, disk_dir):
    """Killed between the image's header and the catalogue's record: the image is what counts."""
    expected = base("b", "raw")
    clone("c", "b")
    record = root / "catalog/c.json"
    before = record.read_bytes()
    quantavirt("storage", "flatten", "c")
    record.write_bytes(before)
    assert quantavirt("storage", "info", "c", "--json").json()["backing"] is None
    assert content(quantavirt, disk_dir, "c") == expected
    quantavirt("storage", "delete", "b", code=4)
    quantavirt("storage", "flatten", "c")
    quantavirt("storage", "delete", "b")


def test_flatten_refuses_an_image_with_snapshots(quantavirt, base, clone, disk_dir):
    expected = base("b", "raw")
    clone("c", "b")
    quantavirt("storage", "snapshot", "create", "c", "--name", "s")
    result = quantavirt("storage", "flatten", "c", code=1)
    assert "its snapshots may take content from the backing image" in result.stderr
    assert content(quantavirt, disk_dir, "c") == expected
    quantavirt("storage", "snapshot", "delete", "c", "--name", "s")
    quantavirt("storage", "flatten", "c")


def test_flatten_survives_kill(quantavirt, disk_dir, clone, qemu_img, root):
    source = disk_dir / "big.raw"
    noise = random.Random(3).randbytes(8 * MIB)
    source.write_bytes(noise * 12)
    quantavirt("storage", "import", "--name", "b", source)
    clone("c", "b")
    dice, killed = random.Random(1), 0
    for _ in range(40):
        process = subprocess.Popen([paths.QUANTAVIRT, "--root", root, "storage", "flatten", "c"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.01, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        # The kernel lets go of a killed process's file, and its locks, a moment later.
        while quantavirt("storage", "info", "c", "--json").json()["locked"]:
            time.sleep(0.01)
        found = qemu_img("check", "--output=json", root / "images/c.qcow2", code=None)
        assert found["check-errors"] == 0 and found.get("corruptions", 0) == 0
        qemu_img("compare", "-f", "raw", "-F", "qcow2", source, root / "images/c.qcow2")
        if process.returncode == 0:
            break
        if killed > 3:
            break
    assert killed > 0
    quantavirt("storage", "flatten", "c")
    quantavirt("storage", "delete", "b")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, root / "images/c.qcow2")


# ---- foreign images ----

@pytest.fixture
def foreign(disk_dir, qemu_img):
    """A chain of QEMU's: three.qcow2 on two.qcow2 on one.raw, in a folder of its own."""
    folder = disk_dir / "foreign"
    (folder / "sub").mkdir(parents=True)
    (folder / "one.raw").write_bytes(random.Random(9).randbytes(MIB))
    qemu_img("create", "-f", "qcow2", "-b", "../one.raw", "-F", "raw", folder / "sub/two.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "sub/two.qcow2", "-F", "qcow2", folder / "three.qcow2")
    qemu_io(folder / "three.qcow2", "write -P 3 100k 100k")
    return folder


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_import_and_convert_flatten_a_chain_that_is_allowed(quantavirt, qemu_img, foreign, root, form):
    top = foreign / "three.qcow2"
    quantavirt("storage", "import", "--name", "a", top, "--format", form, "--backing-root", foreign)
    quantavirt("storage", "convert", top, "--format", "qcow2", "--target-format", form, "--output", "b",
               "--backing-root", ".", cwd=foreign)
    for name in "ab":
        qemu_img("compare", "-f", "qcow2", "-F", form, top, root / f"images/{name}.{form}")
        assert quantavirt("storage", "info", name, "--json").json()["backing"] is None
    quantavirt("storage", "convert", "a", "--target-format", form, "--output", "d", "--backing-root", foreign, code=2)


def test_a_raw_backing_file_of_odd_length_is_not_cut_short(quantavirt, foreign):
    with open(foreign / "one.raw", "ab") as out:
        out.write(b"the end")
    result = quantavirt("storage", "import", "--name", "a", foreign / "three.qcow2", "--backing-root", foreign, code=1)
    assert "not a multiple of 512 bytes" in result.stderr and "truncate --size=%512" in result.stderr


def rewrite_backing(image, name, form):
    """What an attacker writes into a header."""
    args = ["rebase", "-u", "-f", "qcow2", "-b", name] + (["-F", form] if form else [])
    return subprocess.run([paths.system_program("qemu-img"), *map(str, args), image], stdin=subprocess.DEVNULL,
                          capture_output=True, check=False).returncode


@pytest.mark.parametrize("name, text", [
    ("/etc/passwd", "is not in"),
    ("../../../../../../../../etc/passwd", "is not in"),
    ("link", "is not in"),
    ("nbd://127.0.0.1/x", "not a plain file"),
    ("json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "not a plain file"),
    ("none", "No such file"),
])
def test_a_hostile_image_reads_no_file_of_this_host(quantavirt, qemu_img, disk_dir, root, name, text):
    folder = disk_dir / "foreign"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    image = folder / "a.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    (folder / "x").write_bytes(bytes(MIB))
    assert rewrite_backing(image, "x", "raw") == 0
    data = image.read_bytes()
    at = int.from_bytes(data[8:16], "big")
    new = name.encode()
    image.write_bytes(data[:16] + len(new).to_bytes(4, "big") + data[20:at] + new + data[at + len(new):])
    for options, code, expected in (([], 1, "it names the backing file"), (["--backing-root", folder], None, text)):
        for command in (["import", "--name", "a", image], ["convert", image, "--format", "qcow2", "--output", "a",
                                                          "--target-format", "raw"]):
            result = quantavirt("storage", *command, *options, code=code)
            assert result.code != 0 and expected in result.stderr, result
    for command in (["export", image], ["serve", image, "--protocol", "nbd", "--format", "qcow2", "--socket"]):
        assert quantavirt("storage", *command, root / "out", code=None).code != 0
    assert not (root / "out").exists() and not list((root / "images").glob("*"))
    assert b"root:" not in b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())


def test_a_chain_without_formats_or_in_a_circle_is_refused(quantavirt, qemu_img, disk_dir, root):
    folder = disk_dir / "foreign"
    folder.mkdir()
    for name, other in ("ab", "ba"):
        qemu_img("create", "-f", "qcow2", "-u", "-b", f"{other}.qcow2", "-F", "qcow2", folder / f"{name}.qcow2", "1M")
    result = quantavirt("storage", "import", "--name", "a", folder / "a.qcow2", "--backing-root", folder, code=1)
    assert "stands on itself" in result.stderr
    # The extension that states the format gets a type nobody knows.
    data = (folder / "a.qcow2").read_bytes()
    at = data.index(bytes.fromhex("e2792aca"))
    (folder / "a.qcow2").write_bytes(data[:at] + b"\x12\x34\x56\x78" + data[at + 4:])
    result = quantavirt("storage", "import", "--name", "a", folder / "a.qcow2", "--backing-root", folder, code=1)
    assert "does not state the format" in result.stderr
    assert not list((root / "images").glob("*"))
