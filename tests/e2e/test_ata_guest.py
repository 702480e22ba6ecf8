# SPDX-License-Identifier: Apache-2.0
"""What hdparm, smartctl and lsblk of a Linux guest say of AHCI and IDE disks, and what they can switch."""
import re

import pytest

from qvtest import paths
from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

# For each disk, between markers: identity, SMART, discard limits; then switches the cache off and on, runs a
# self-test, sends it to standby, reads from it, trims it.
SCRIPT = """for d in sda sdb; do s=$(hdparm -I /dev/$d | sed -n 's/.*Serial Number: *//p' | tr -d ' ')
echo "== $s"; hdparm -I /dev/$d; smartctl -a /dev/$d; echo "lsblk $(lsblk -bDno DISC-GRAN,DISC-MAX /dev/$d)"
echo "blk $(lsblk -bno LOG-SEC,PHY-SEC,SIZE,ROTA /dev/$d)"
hdparm -W0 /dev/$d | grep write-cac; hdparm -I /dev/$d | grep 'Write cache$'; hdparm -W1 /dev/$d | grep write-cac
smartctl -t short /dev/$d >/dev/null; while smartctl -c /dev/$d | grep -q 'in progress'; do sleep 1; done
smartctl -l selftest /dev/$d | grep '^# 1'
hdparm -y /dev/$d >/dev/null; hdparm -C /dev/$d | grep state; dd if=/dev/$d of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
hdparm -C /dev/$d | grep state; blkdiscard /dev/$d && echo trimmed
done; echo "faults $(dmesg | grep -cE 'ata[0-9].*(exception|failed command|error)')"
"""


@pytest.fixture(scope="module")
def programs():
    return [paths.system_program(p) for p in ("hdparm", "smartctl", "lsblk")]


def test_tools_of_the_guest(quantavirt, root, programs):
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="24M", type="ahci", serial="AHCI-1", discard=True),
                                      disk("b", "raw", size="24M", type="ide", serial="IDE-1", discard=False)])
    vm.set_script(SCRIPT, ["/dev/sda", "/dev/sdb"], flavour="full", files=programs)
    vm.create().start()
    said = vm.result().check().output
    assert "faults 0" in said
    parts = dict(re.findall(r"^== (\S+)\n(.*?)(?=^== |\Z)", said, re.M | re.S))
    assert set(parts) == {"AHCI-1", "IDE-1"}
    for serial, text in parts.items():
        assert "Checksum: correct" in text
        assert re.search(r"Model Number:\s+QUANTAVIRT HARDDISK", text)
        assert re.search(r"LBA48\s+user addressable sectors:\s+49152\b", text)
        assert re.search(r"Logical\s+Sector size:\s+512 bytes", text)
        assert re.search(r"^\s+frozen$", text, re.M) and re.search(r"^\s+not\s+enabled$", text, re.M)
        for feature in ("SMART feature set", "Write cache", "48-bit Address feature set", "FLUSH_CACHE_EXT"):
            assert re.search(rf"^\s+\*\s+{feature}", text, re.M), feature
        assert ("Native Command Queueing" in text) == (serial == "AHCI-1")
        assert ("*udma6" if serial == "AHCI-1" else "*udma5") in text
        assert "overall-health self-assessment test result: PASSED" in text
        assert "No Errors Logged" in text
        discards = serial == "AHCI-1"
        assert ("Data Set Management TRIM supported" in text) == discards
        assert re.search(r"^lsblk +4096 +\d{9,}$" if discards else r"^lsblk +0 +0$", text, re.M)
        assert re.search(r"^blk +512 +\d+ +25165824 +0$", text, re.M)
        assert re.findall(r"write-caching =\s+(\d)", text) == ["0", "1"]
        assert re.search(r"^\s+Write cache$", text, re.M)  # without the star: off
        assert re.search(r"^# 1\s+Short offline\s+Completed without error", text, re.M)
        assert re.findall(r"drive state is:\s+(\S+)", text) == ["standby", "active/idle"]
        assert ("trimmed" in text) == discards
