# SPDX-License-Identifier: Apache-2.0
"""Encrypted linked clones: on plain and on encrypted images, each with keys of its own."""
import os

import pytest

from qvtest import paths
from qvtest.command import run

SIZE = 2 << 20
MIB = 1 << 20


class Clone:
    """`c` stands on `base`; of the latter half of what it shows, a part was written to it."""

    def __init__(self, quantavirt, root, serve, fmt):
        self.q, self.root, self.serve, self.fmt = quantavirt, root, serve, fmt
        self.base = os.urandom(SIZE)
        (root.parent / "first").write_bytes(self.base)
        self("import", "--name", "base", root.parent / "first", "--source-format", "raw", "--format", fmt)
        self("create", "--name", "c", "--format", "encrypted", "--backing", "base")
        self.shown = self.base
        self.write(MIB + 4096 + 512, os.urandom(3072))  # neither whole clusters nor whole sectors
        self.write(MIB + (300 << 10), os.urandom(128 << 10))

    def __call__(self, *args, **kwargs):
        return self.q("storage", *args, **kwargs)

    def write(self, at, data):
        part = self.root.parent / "part"
        part.write_bytes(data)
        daemon = self.serve("c", "nbd")
        run(paths.system_program("qemu-io"), "-f", "raw", "-c", f"write -s {part} {at} {len(data)}",
            f"nbd+unix:///?socket={daemon.socket}")
        assert daemon.stop() == 0
        self.shown = self.shown[:at] + data + self.shown[at + len(data):]

    def out(self, name, *options):
        path = self.root.parent / "out"
        path.unlink(missing_ok=True)
        self("export", name, path, "--format", "raw", *options)
        return path.read_bytes()

    def check(self):
        assert self.out("c") == self.shown and self.out("base") == self.base
        result = self("check", "c", "--data", "--json").json()
        assert result["clean"] and result["sectors_bad"] == []


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "encrypted"])
def test_it_shows_what_was_written_and_else_its_base(quantavirt, root, serve, fmt):
    c = Clone(quantavirt, root, serve, fmt)
    c.check()
    facts = c("info", "c", "--json").json()
    assert facts["backing"] == "base" and facts["encrypted"] and facts["key"] == "c" and facts["virtual_size"] == SIZE
    # What is written to the clone is in no file in the clear; nor anything, on an encrypted base.
    files = b"".join(f.read_bytes() for f in (root / "images").iterdir())
    assert c.shown[MIB + (320 << 10):][:64] not in files
    assert (c.base[:64] in files) == (fmt != "encrypted")
    # A snapshot, discarding, growing.
    c("snapshot", "create", "c", "--name", "s")
    before = c.shown
    c.write(MIB + (310 << 10), os.urandom(64 << 10))
    c.check()
    assert c.out("c", "--snapshot", "s") == before
    c("snapshot", "delete", "c", "--name", "s")
    c("resize", "c", "--size", "3M")
    assert c.out("c") == c.shown + bytes(MIB)
    # It stands on it, until it does not.
    assert "c" in c("delete", "base", code=4).stderr
    c("flatten", "c")
    c("delete", "base")
    assert c("info", "c", "--json").json()["backing"] is None and c.out("c") == c.shown + bytes(MIB)


def test_each_layer_needs_its_key_and_keeps_it_when_the_other_changes(quantavirt, root, serve):
    c = Clone(quantavirt, root, serve, "encrypted")
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-1024", "--name", "k")
    # Another data key for the clone, beside a base that has its own.
    c("rekey", "c", "--key", "k", "--reencrypt")
    quantavirt("pqc", "key-delete", "c")
    c.check()
    # And the base gets another key: its clones are told of.
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "b")
    assert "Linked clones read it with the new key from now on: c" in c("rekey", "base", "--key", "b").stdout
    quantavirt("pqc", "key-delete", "base")
    c.check()
    daemon = serve("c", "vhost-user-blk")  # our I/O process gets a data key for each
    assert c("stat", "c", "--json").json()["size"] == SIZE
    assert daemon.stop() == 0
    for name in "kb":
        for suffix in ("pem", "json"):
            (root / f"keys/{name}.{suffix}").rename(root.parent / f"{name}.{suffix}")
        assert f"needs key {name} " in c("export", "c", root.parent / "x", "--format", "raw", code=3).stderr
        assert not (root.parent / "x").exists()
        for suffix in ("pem", "json"):
            (root.parent / f"{name}.{suffix}").rename(root / f"keys/{name}.{suffix}")
    c.check()


def test_its_copies_are_whole(quantavirt, root, serve):
    c = Clone(quantavirt, root, serve, "qcow2")
    for target in ("raw", "qcow2", "encrypted"):
        c("convert", "c", "--target-format", target, "--output", f"copy-{target}")
        assert c.out(f"copy-{target}") == c.shown
    assert "exclude each other" in c("create", "--name", "d", "--format", "encrypted", "--backing", "base", "--prealloc", "full",
                                     code=2).stderr
