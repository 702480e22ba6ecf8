# SPDX-License-Identifier: Apache-2.0
"""A new size of SATA and IDE drives while a guest runs: ATA has no event for it."""
import pytest

from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

# Waits until the virtio-blk disk has grown, which says that the others have, too. A rescan changes nothing, and hurts
# nobody. A drive that is given up and looked for again has its new size, all of which can be used.
SCRIPT = r"""size() { cat /sys/block/$1/size; }
find() { for b in /sys/block/sd*; do [ $(cat $b/size) = $1 ] && echo ${b##*/}; done; true; }
for old in 8192 10240; do until [ -n "$(find $old)" ]; do sleep 0.1; done; done
echo ready > /dev/console
while [ $(size vda) = 2048 ]; do sleep 0.1; done
for old in 8192 10240; do d=$(find $old); host=$(readlink -f /sys/block/$d/device | grep -o 'host[0-9]*' | head -n 1)
dd if=/dev/zero of=/dev/$d bs=4k count=1 conv=fsync 2>/dev/null || exit 1
echo 1 > /sys/block/$d/device/rescan; echo "rescan $(size $d)"
dd if=/dev/$d of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 2
echo 1 > /sys/block/$d/device/delete; echo '- - -' > /sys/class/scsi_host/$host/scan
i=0; until d=$(find $((old*2))); [ -n "$d" ]; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ] || exit 3; done
echo "again $(size $d)"
dd if=/dev/urandom of=/tmp/r bs=512 count=1 2>/dev/null
dd if=/tmp/r of=/dev/$d bs=512 seek=$((old*2-1)) conv=notrunc,fsync 2>/dev/null || exit 4
dd if=/dev/$d bs=512 skip=$((old*2-1)) iflag=direct 2>/dev/null | cmp - /tmp/r || exit 5
done"""


@pytest.mark.timeout(300)
def test_a_guest_sees_a_new_size_when_it_looks_for_the_drive_again(quantavirt, root):
    vm = Vm(quantavirt, root, "web", [disk("v", "raw", size="1M"), disk("s", "raw", size="4M", type="ahci"),
                                      disk("i", "raw", size="5M", type="ide")], cpus=2)
    vm.set_script(SCRIPT, flavour="full")
    vm.create().start()
    vm.wait_console("ready", 120)
    for name, size in (("s", 8), ("i", 10), ("v", 2)):
        quantavirt("storage", "resize", name, "--size", f"{size}M")
    said = vm.result(180).check().output.split("\n")
    assert [line for line in said if " " in line] == ["rescan 8192", "again 16384", "rescan 10240", "again 20480"]
