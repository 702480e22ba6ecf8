# SPDX-License-Identifier: Apache-2.0
"""NVMe, AHCI and IDE controllers over vfio-user, with unmodified Linux guests and firmware."""
import pytest

from qvtest import paths
from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

DEVICES = {"virtio-blk": ("vda", "vdb"), "nvme": ("nvme0n1", "nvme0n2"), "ahci": ("sda", "sdb"), "ide": ("sda", "sdb")}

FILES = """for d in %s; do mkdir /mnt/$d; mke2fs /dev/$d >/dev/null && mount -t ext4 /dev/$d /mnt/$d || exit 1; done
for d in %s; do dd if=/dev/urandom of=/mnt/$d/f bs=64k count=64 2>/dev/null; sync; done
for d in %s; do sha256sum < /mnt/$d/f; umount /mnt/$d; e2fsck -fn /dev/$d >/dev/null 2>&1 || exit 1; done"""
AGAIN = "for d in %s; do mkdir /mnt/$d; mount -t ext4 -o ro /dev/$d /mnt/$d || exit 1; sha256sum < /mnt/$d/f; done"


def sums(vm):
    """Of both files, in any order: Linux looks for drives side by side, so which is sda may change."""
    return sorted(vm.result().check().output.split())


def guest_vm(quantavirt, root, disks, script, devices, **kwargs):
    vm = Vm(quantavirt, root, "web", disks, **kwargs)
    vm.set_script(script, [f"/dev/{d}" for d in devices], flavour="full",
                  files=[paths.system_program("e2fsck")])
    return vm.create().start()


@pytest.mark.parametrize("kind", ["nvme", "ahci", "ide"])
def test_files_survive_a_power_off(quantavirt, root, qemu_img, kind):
    devices = DEVICES[kind]
    disks = [disk("a", "raw", size="24M", type=kind), disk("b", "qcow2", size="64M", type=kind)]
    vm = guest_vm(quantavirt, root, disks, FILES.replace("%s", " ".join(devices)), devices, cpus=2)
    said = sums(vm)
    for image in "ab":
        quantavirt("storage", "check", image)
    assert qemu_img("check", "--output=json", root / "images/b.qcow2").get("check-errors") == 0
    vm("delete")
    vm.config["storage"] = [disk("a", type=kind), disk("b", type=kind)]
    vm.set_script(AGAIN % " ".join(devices), [f"/dev/{d}" for d in devices], flavour="full")
    vm.create().start()
    assert sums(vm) == said
