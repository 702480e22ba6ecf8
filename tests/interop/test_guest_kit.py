# SPDX-License-Identifier: Apache-2.0
"""The test guest itself, on disks served by QEMU alone: what the other guest tests stand on."""
import pytest

from qvtest import guest

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("flavour, device, node", [
    ("cloud", "virtio-blk-pci,drive=d", "/dev/vda"),
    ("full", "ide-hd,drive=d,bus=ide.0", "/dev/sda"),  # q35's own controller is AHCI
])
def test_guest_writes_a_disk(disk_dir, flavour, device, node):
    disk = disk_dir / "d.raw"
    with open(disk, "wb") as f:
        f.truncate(16 << 20)
    args = ["-drive", f"if=none,id=d,format=raw,file={disk}", "-device", device]
    result = guest.boot(f"printf 'from the guest' | dd of={node} bs=512 seek=3 conv=fsync 2>/dev/null; echo done",
                        args, flavour=flavour, wait=[node]).check()
    assert result.output == "done\n"
    assert disk.read_bytes()[1536:1550] == b"from the guest"


def test_failing_script_is_reported():
    result = guest.boot("echo before; exit 7")
    assert result.status == 7
    assert result.output == "before\n"
    with pytest.raises(AssertionError, match="exited 7"):
        result.check()


def test_guest_that_hangs_is_killed():
    result = guest.boot("while :; do sleep 1; done", timeout=4)
    assert result.status is None
    with pytest.raises(AssertionError, match="did not finish"):
        result.check()
