# SPDX-License-Identifier: Apache-2.0
"""VMs that do not run: making, looking, deleting."""
import json

import pytest

from qvtest.vm import Vm, disk


def names(folder):
    return sorted(p.name for p in folder.glob("*") if not p.name.startswith("."))


def test_create_makes_missing_images_and_keeps_the_configuration(quantavirt, root):
    quantavirt("storage", "create", "--name", "there", "--format", "raw", "--size", "1M")
    vm = Vm(quantavirt, root, "web", [disk("there"), disk("new", "qcow2", size="5G", queues=3, cache="writeback"),
                                      disk("flat", "raw", size="1M", prealloc=True)], cpus=2).create()
    assert names(root / "images") == ["flat.raw", "new.qcow2", "there.raw"]
    assert (root / "images/flat.raw").stat().st_blocks * 512 >= 1 << 20
    info = vm.info()
    assert {k: info[k] for k in ("name", "state", "reason", "pid", "accelerator", "cpus", "memory", "uptime", "snapshots")} \
        == {"name": "web", "state": "created", "reason": None, "pid": None, "accelerator": None, "cpus": 2,
            "memory": 256 << 20, "uptime": None, "snapshots": []}
    assert info["disks"][1] == {"image": "new", "controller": "virtio-blk", "serial": None, "cache": "writeback",
                                "io": "io_uring", "queues": 3}
    assert "created" in quantavirt("vm", "list").stdout
    assert "a VM of that name exists" in vm.create(code=1).stderr
    assert (root / "configs/web.json").stat().st_mode & 0o77 == 0

    exported = root.parent / "e.json"
    vm("export", "--output", exported)
    assert "exists" in vm("export", "--output", exported, code=1).stderr
    assert [d["path"] for d in json.loads(exported.read_text())["storage"]] == ["there", "new", "flat"]
    assert "web" in quantavirt("storage", "delete", "new", code=4).stderr
    vm("destroy")
    assert quantavirt("vm", "list", "--json").json() == []
    assert names(root / "images") == ["flat.raw", "new.qcow2", "there.raw"]
    quantavirt("vm", "create", "--config", exported)


@pytest.mark.parametrize("disks, code, text", [
    ([disk("none")], 3, 'storage[0]: none: no such image\nhint: with a "size", vm create makes it'),
    ([disk("a", "raw", size="1M"), disk("b", size="1M")], 2, '"format" is missing'),
    ([disk("a", "raw", size="1M"), disk("b", "raw", size="9000T")], 1, "not enough space"),
    ([disk("a", "encrypted", size="1M"), disk("b", "raw", size="9000T")], 1, "not enough space"),
    ([disk("/nowhere/x", "raw")], 3, "no such file or device"),
    ([disk("a", "raw", size="1M", quueues=1)], 2, 'unknown key "quueues" in storage[0]'),
])
def test_failed_create_leaves_nothing(quantavirt, root, disks, code, text):
    result = Vm(quantavirt, root, "web", disks).create(code=code)
    assert text in result.stderr
    assert names(root / "images") == [] and names(root / "configs") == []
    assert quantavirt("pqc", "key-list", "--json").json() == []
    if code != 1:  # what cannot be known beforehand
        quantavirt("vm", "validate", "--config", root.parent / "web.json", code=code)


def test_an_encrypted_image_gets_a_key_of_its_own_and_is_told_of(quantavirt, root):
    vm = Vm(quantavirt, root, "web", [disk("plain", "raw", size="1M"), disk("secret", "encrypted", size="1M")])
    path = root.parent / "web.json"
    path.write_text(json.dumps(vm.config))
    out = quantavirt("vm", "create", "--config", path).stdout
    assert "Created plain for it" in out and "Created secret for it" in out
    assert "Made key secret for it in store software; losing it is losing the disk (pqc key-export saves it)" in out
    assert out.count("Made key") == 1
    assert [k["name"] for k in quantavirt("pqc", "key-list", "--json").json()] == ["secret"]
    quantavirt("storage", "resize", "secret", "--size", "2M")  # it opens


def test_a_vm_that_does_not_run(quantavirt, root):
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M")]).create()
    for command in ("pause", "resume", "stop"):
        assert "web: is not running" in vm(command, code=1).stderr
    assert vm("console").stdout == ""
    for command in ("start", "stop", "info", "delete", "console", "pause"):
        assert "nope: no such VM" in quantavirt("vm", command, "nope", code=3).stderr
    quantavirt("vm", "validate", "--config", root / "none", code=2)
    quantavirt("vm", "info", "../web", code=2)
