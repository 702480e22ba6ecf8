# SPDX-License-Identifier: Apache-2.0
"""NVMe, AHCI and IDE controllers: firmware boots from them, limits, other hypervisors, the I/O process's death."""
import json
import os
import signal

import pytest

from qvtest import bootdisk, guest, paths
from qvtest.command import Daemon
from qvtest.vm import Vm, disk, wait_gone

pytestmark = pytest.mark.guest

FIND = """disks() { ls -d /sys/block/[vsn]* | wc -l; }
i=0; while [ $(disks) -lt %d ] && [ $i -lt 300 ]; do sleep 0.2; i=$((i+1)); done
dev() { for b in /sys/block/[vsn]*; do [ $(cat $b/size) = $(($1*2048)) ] && echo ${b##*/}; done; }
"""

@pytest.mark.parametrize("kind", ["nvme", "ahci", "ide"])
def test_bios_boots_from(quantavirt, root, kind):
    """The second disk of the controller, beside a virtio-blk disk."""
    disks = [disk("v", "raw", size="1M"), disk("a", "raw", size="1M", type=kind),
             disk("b", "qcow2" if kind == "nvme" else "raw", size="1M", type=kind, boot_index=1)]
    vm = Vm(quantavirt, root, "web", disks).create()
    if kind == "nvme":
        raw = root.parent / "b.raw"
        raw.write_bytes(bytes(1 << 20))
        bootdisk.make_bios(raw)
        quantavirt("vm", "disk-detach", "web", "--storage", "b")
        quantavirt("storage", "delete", "b")
        quantavirt("storage", "import", "--name", "b", raw, "--source-format", "raw", "--format", "qcow2")
        vm("delete")
        vm.config["storage"][2] = disk("b", type=kind, boot_index=1)
        vm.create()
    else:
        bootdisk.make_bios(root / "images/b.raw")
    vm("start")
    vm.wait_console(bootdisk.MESSAGE, 60)
    vm("stop", "--force")


@pytest.mark.parametrize("kind", ["virtio-blk", "nvme", "ahci"])
@pytest.mark.timeout(300)
def test_uefi_boots_from(quantavirt, root, kind):
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="4M", type=kind)], firmware="uefi").create()
    bootdisk.make_uefi(root / "images/a.raw")
    vm("start")
    vm.wait_console(bootdisk.MESSAGE, 200)
    vm("stop", "--force")


def test_io_process_death_ends_a_vm_with_controllers(quantavirt, root):
    """QEMU does not connect such a controller again, so a guest cannot go on."""
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M", type="nvme")])
    vm.set_script("echo up; sleep 1000", ["/dev/nvme0n1"])
    vm.create().start()
    vm.wait_console("up")
    before = vm.info()
    os.kill(before["io_pid"], signal.SIGKILL)
    info = vm.wait_state("stopped", 30)
    assert "the I/O process died of signal 9" in info["reason"] and "cannot be connected" in info["reason"]
    wait_gone(before["pid"], before["qemu_pid"])
    vm("start")  # nothing is in the way
    vm("stop", "--force")


def test_a_disk_too_many_states_the_limit(quantavirt, root):
    for kind, limit, what in (("ide", 4, "IDE drives"), ("ahci", 32, "AHCI ports"), ("nvme", 256, "NVMe namespaces")):
        vm = Vm(quantavirt, root, "web", [disk(f"i{i}", "raw", type=kind) for i in range(limit + 1)])
        assert f"{limit + 1} {what}, a VM holds at most {limit}" in vm.create(code=2).stderr


@pytest.mark.parametrize("kind", ["nvme"])
def test_served_to_another_hypervisor(quantavirt, root, kind):
    """Two images behind one controller, in a QEMU that is not ours."""
    for image in "ab":
        quantavirt("storage", "create", "--name", image, "--format", "qcow2", "--size", "3M")
    assert "at most" in quantavirt("storage", "serve", *["a"] * 257, "--protocol", "vfio-user", "--controller", kind,
                                   "--socket", root.parent / "s", code=2).stderr
    socket = root.parent / "s"
    daemon = Daemon(paths.QUANTAVIRT, "--root", root, "storage", "serve", "a", "b", "--protocol", "vfio-user",
                    "--controller", kind, "--socket", socket)
    device = json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}, "addr": "5"})
    script = (FIND % 2) + "for b in /sys/block/[sn]*; do echo $(cat $b/size) > /tmp/x; dd if=/tmp/x of=/dev/${b##*/} " \
        "conv=sync,fsync 2>/dev/null || exit 1; done"
    try:
        guest.boot(script, ["-device", device], flavour="full").check()
    finally:
        assert daemon.stop() == 0
    for image in "ab":
        out = root.parent / f"{image}.raw"
        quantavirt("storage", "export", image, out, "--format", "raw")
        assert out.read_bytes().startswith(b"6144\n")
