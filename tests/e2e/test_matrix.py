# SPDX-License-Identifier: Apache-2.0
"""Every storage and VM command on every format: one table, and the virtual size exact to the byte throughout."""
import json
import subprocess

import pytest

from qvtest import paths
from qvtest.command import run

FORMATS = ["raw", "qcow2", "encrypted"]
SIZE = 3 * 1024 * 1024 + 512  # whole sectors, but neither whole clusters nor whole 4 KiB
BIGGER = 5 * 1024 * 1024 + 1536


class Image:
    """An image `a` with known content, and what may be done with it."""

    def __init__(self, quantavirt, root, serve, fmt):
        self.q, self.root, self.serve, self.fmt = quantavirt, root, serve, fmt
        self.content = bytes(i * 7 % 251 for i in range(4096)) * (SIZE // 4096) + b"\x55" * (SIZE % 4096)
        self.file = root.parent / "content.raw"
        self.file.write_bytes(self.content)
        self("import", "--name", "a", self.file, "--source-format", "raw", "--format", fmt)

    def __call__(self, *args, **kwargs):
        return self.q("storage", *args, **kwargs)

    def info(self, name="a"):
        return self("info", name, "--json").json()

    def out(self, name="a", *options):
        """The content of an image, as an export shows it."""
        path = self.root.parent / "out.raw"
        path.unlink(missing_ok=True)
        self("export", name, path, "--format", "raw", *options)
        return path.read_bytes()

    def refused(self, code, text, *args):
        result = self(*args, code=None)
        assert result.code == code and text in result.stderr, result
        assert self.out() == self.content


def create(a):
    a("create", "--name", "n", "--format", a.fmt, "--size", str(SIZE))
    assert a.info("n")["virtual_size"] == SIZE and a.out("n") == bytes(SIZE)


def info(a):
    facts = a.info()
    assert (facts["virtual_size"], facts["format"], facts["encrypted"]) == (SIZE, a.fmt, a.fmt == "encrypted")
    assert (facts["kem"], facts["aead"]) == (("ML-KEM-768", "AES-256-GCM") if a.fmt == "encrypted" else (None, None))
    assert (facts["key"], facts["key_store"]) == (("a", "software") if a.fmt == "encrypted" else (None, None))


def list_(a):
    assert [(i["name"], i["virtual_size"]) for i in a("list", "--json").json()] == [("a", SIZE)]
    row = a("list").stdout.splitlines()[1].split()
    assert row[:2] == ["a", a.fmt] and row[-2] == ("yes" if a.fmt == "encrypted" else "no")


def resize(a):
    a.refused(2, "images only grow", "resize", "a", "--size", str(SIZE - 512))
    a("resize", "a", "--size", str(BIGGER))
    assert a.info()["virtual_size"] == BIGGER and a.out() == a.content + bytes(BIGGER - SIZE)


def convert_to(target):
    def convert(a):
        a("convert", "a", "--target-format", target, "--output", "c")
        assert a.info("c")["virtual_size"] == SIZE and a.info("c")["format"] == target
        assert a.out("c") == a.content
        a("check", "c")
    convert.__name__ = f"convert_to_{target}"
    return convert


def convert_compressed(a):
    a("convert", "a", "--target-format", "qcow2", "--compress", "--output", "c")
    assert a.out("c") == a.content and a.info("c")["virtual_size"] == SIZE


def import_qcow2(a):
    path = a.root.parent / "foreign.qcow2"
    run(paths.system_program("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", a.file, path)
    a("import", "--name", "i", path, "--format", a.fmt)
    assert a.out("i") == a.content and a.info("i")["virtual_size"] == SIZE


def export_raw(a):
    assert a.out() == a.content


def export_qcow2(a):
    path = a.root.parent / "out.qcow2"
    a("export", "a", path, "--format", "qcow2")
    facts = json.loads(run(paths.system_program("qemu-img"), "info", "--output=json", path).stdout)
    assert facts["virtual-size"] == SIZE
    run(paths.system_program("qemu-img"), "compare", "-f", "raw", "-F", "qcow2", a.file, path)


def compact(a):
    a("compact", "a")
    assert a.out() == a.content and a.info()["virtual_size"] == SIZE


def check(a):
    result = a("check", "a", "--json").json()
    assert result["clean"] and result["corruptions"] == result["leaks"] == 0


def check_data(a):
    if a.fmt == "encrypted":
        assert a("check", "a", "--data", "--json").json()["sectors_checked"] >= SIZE // 4096
    else:
        a.refused(2, "only sectors of encrypted images", "check", "a", "--data")


def snapshots(a):
    if a.fmt == "raw":
        a.refused(1, "a raw image has no snapshots", "snapshot", "create", "a", "--name", "s")
        return
    a("snapshot", "create", "a", "--name", "s")
    a("resize", "a", "--size", str(BIGGER))
    assert [(s["name"], s["size"]) for s in a.info()["snapshots"]] == [("s", SIZE)]
    assert a("snapshot", "list", "a", "--json").json()[0]["name"] == "s"
    assert a.out("a", "--snapshot", "s") == a.content
    a("snapshot", "restore", "a", "--name", "s")
    assert a.info()["virtual_size"] == SIZE and a.out() == a.content
    a("snapshot", "delete", "a", "--name", "s")
    assert a.info()["snapshots"] == [] and a.out() == a.content
    a("check", "a")


def clone(a):
    result = a("create", "--name", "c", "--format", "qcow2", "--backing", "a", code=None)
    if a.fmt == "encrypted":
        assert result.code == 1 and "would keep parts of it in the clear" in result.stderr, result
        a("create", "--name", "c", "--format", "encrypted", "--backing", "a")
    assert a.info("c")["virtual_size"] == SIZE and a.out("c") == a.content
    a("flatten", "c")
    assert a.out("c") == a.content


def flatten(a):
    a("flatten", "a")  # stands on nothing: done
    assert a.out() == a.content


def clone_of_its_format(a):
    a("create", "--name", "base", "--format", "qcow2", "--size", str(SIZE))
    result = a("create", "--name", "c", "--format", a.fmt, "--backing", "base", code=None)
    if a.fmt == "raw":
        assert result.code == 2 and "raw images stand on no other image" in result.stderr, result
    else:
        assert a.info("c")["virtual_size"] == SIZE and a.info("c")["backing"] == "base" and a.out("c") == bytes(SIZE)
        a("check", "c")


def keys(a):
    backup = a.root.parent / "area"
    if a.fmt != "encrypted":
        for args in (["rekey", "a", "--key", "k"], ["key-slot", "add", "a", "--key", "k"], ["key-slot", "list", "a"],
                     ["key-slot", "remove", "a", "--key", "k"], ["header-backup", "a", backup]):
            a.refused(2, "is not encrypted", *args)
        return
    for name in ("k", "l"):
        a.q("pqc", "key-gen", "--algorithm", "ML-KEM-1024", "--name", name)
    a("header-backup", "a", backup)
    a("key-slot", "add", "a", "--key", "k")
    assert [s["key"] for s in a("key-slot", "list", "a", "--json").json()] == ["a", "k"]
    a("rekey", "a", "--key", "l")
    assert sorted(s["key"] for s in a("key-slot", "list", "a", "--json").json()) == ["k", "l"]
    a.q("pqc", "key-delete", "a")
    assert a.out() == a.content
    a("key-slot", "remove", "a", "--key", "k")
    assert [s["key"] for s in a("key-slot", "list", "a", "--json").json()] == ["l"]
    a.refused(2, "is its last one", "key-slot", "remove", "a", "--key", "l")
    # The backup names a key that is gone: it opens nothing here, and nothing is changed.
    a.refused(3, "needs key a", "header-restore", "a", backup)
    again = a.root.parent / "again"
    a("header-backup", "a", again)
    a("rekey", "a", "--key", "k")
    a("header-restore", "a", again)
    assert "l" in [s["key"] for s in a("key-slot", "list", "a", "--json").json()]
    assert a.out() == a.content and a.info()["virtual_size"] == SIZE


def unlock(a):
    a("unlock", "a", "--force")
    assert a.out() == a.content


def serve_nbd(a):
    daemon = a.serve("a", "nbd")
    path = a.root.parent / "nbd.raw"
    uri = f"nbd+unix:///?socket={daemon.socket}"
    run(paths.system_program("qemu-img"), "convert", "-f", "raw", "-O", "raw", uri, path)
    assert path.read_bytes() == a.content
    result = a("stat", "a", "--json").json()
    assert result["image"] == "a" and result["size"] == SIZE
    assert a.info()["locked"] and a("resize", "a", "--size", str(BIGGER), code=4)
    assert daemon.stop() == 0
    assert a.out() == a.content


def serve_vhost_user(a):
    daemon = a.serve("a", "vhost-user-blk", "--read-only")
    assert a("stat", "a", "--json").json()["size"] == SIZE
    assert daemon.stop() == 0


def by_path(a):
    if a.fmt == "encrypted":
        path = a.root / "images/a.qcow2"
    else:
        path = a.root / f"images/a.{a.fmt}"
    assert a("info", path, "--format", a.fmt, "--json").json()["virtual_size"] == SIZE
    a("check", path, "--format", a.fmt)
    a("convert", path, "--format", a.fmt, "--target-format", "raw", "--output", "c")
    assert a.out("c") == a.content


def wrong_format(a):
    """An image is never opened as what it is not."""
    if a.fmt != "raw":
        other = {"qcow2": "encrypted", "encrypted": "qcow2"}[a.fmt]
        path = a.root / "images/a.qcow2"
        assert a("convert", path, "--format", other, "--target-format", "raw", "--output", "c", code=None).code != 0
        assert not (a.root / "images/c.raw").exists()


def delete(a):
    a("delete", "a")
    assert a("list", "--json").json() == [] and list((a.root / "images").iterdir()) == []


def vm_life(a):
    config = a.root.parent / "vm.json"
    config.write_text(json.dumps({"name": "v", "cpu": {"count": 1}, "memory": {"size": "128M"},
                                  "storage": [{"type": "virtio-blk", "path": "a"},
                                              {"type": "virtio-blk", "path": "n", "format": a.fmt, "size": str(SIZE)}]}))
    a.q("vm", "validate", "--config", config)
    a.q("vm", "create", "--config", config)
    assert a.info("n")["virtual_size"] == SIZE
    assert a.info()["vms"] == ["v"] and a("delete", "a", code=4)
    a.q("vm", "start", "v")
    facts = a.q("vm", "info", "v", "--json").json()
    assert facts["state"] == "running" and [d["image"] for d in facts["disks"]] == ["a", "n"]
    assert [v["name"] for v in a.q("vm", "list", "--json").json()] == ["v"]
    assert a.info()["lock_owner"]["kind"] == "vm" and a("stat", "a", "--json").json()["size"] == SIZE
    a.q("vm", "pause", "v")
    a.q("vm", "resume", "v")
    a.q("vm", "stop", "v", "--force")
    a.q("vm", "export", "v", "--output", a.root.parent / "export.json")
    a.q("vm", "delete", "v")
    assert a.info()["virtual_size"] == SIZE and a.out() == a.content


OPERATIONS = [create, info, list_, resize, *(convert_to(f) for f in FORMATS), convert_compressed, import_qcow2,
              export_raw, export_qcow2, compact, check, check_data, snapshots, clone, clone_of_its_format, flatten, keys,
              unlock, serve_nbd, serve_vhost_user, by_path, wrong_format, delete, vm_life]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.__name__.strip("_"))
def test_operation(quantavirt, root, serve, fmt, operation):
    operation(Image(quantavirt, root, serve, fmt))
