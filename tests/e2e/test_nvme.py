# SPDX-License-Identifier: Apache-2.0
"""The NVMe controller with Linux's own driver and nvme-cli: what they are told, and what they do to it."""
import json
import re

import pytest

from qvtest import paths
from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

# What a guest says of its disk, one "=== NAME" before each part.
ASK = """
say() { echo "=== $*"; }
n=/dev/nvme0; d=/dev/nvme0n1
say id-ctrl; nvme id-ctrl $n -o json
say id-ns; nvme id-ns $d -o json
say descs; nvme ns-descs $d -o json
say list; nvme list-ns $n -o json
say smart; nvme smart-log $n -o json
say errors; nvme error-log $n -e 64 | head -2
say firmware; nvme fw-log $n | head -2
say effects; nvme get-log $n --log-id=5 --log-len=32 | tail -2
say changed; nvme changed-ns-list-log $n
for f in 1 2 4 5 7 8 9 0xa 0xb 0xe; do say feature $f; nvme get-feature $n -f $f; done
say feature 6; nvme get-feature $n -f 6
say sysfs; cd /sys/block/nvme0n1/queue
for f in logical_block_size physical_block_size write_cache fua discard_granularity discard_max_bytes \
    write_zeroes_max_bytes max_hw_sectors_kb rotational; do echo $f $(cat $f); done
say identity; cat /sys/block/nvme0n1/wwid /sys/class/nvme/nvme0/serial /sys/class/nvme/nvme0/model \
    /sys/class/nvme/nvme0/queue_count
say commands
nvme flush $d >/dev/null || echo bad flush
dd if=/dev/urandom of=/tmp/x bs=4096 count=2 2>/dev/null
nvme write $d -s 8 -c 15 -z 8192 -d /tmp/x >/dev/null 2>&1 || echo bad write
nvme compare $d -s 8 -c 15 -z 8192 -d /tmp/x >/dev/null 2>&1 || echo bad compare
nvme compare $d -s 16 -c 15 -z 8192 -d /tmp/x >/dev/null 2>&1 && echo bad compare of something else
nvme verify $d -s 8 -c 15 >/dev/null 2>&1 || echo bad verify
nvme write-zeroes $d -s 8 -c 7 >/dev/null 2>&1 || echo bad write-zeroes
nvme read $d -s 8 -c 15 -z 8192 -d /tmp/y >/dev/null 2>&1 || echo bad read
head -c 4096 /dev/zero > /tmp/z; tail -c 4096 /tmp/x >> /tmp/z; cmp /tmp/y /tmp/z || echo bad content
nvme dsm $d -s 0 -b 2048 -d >/dev/null 2>&1 || echo bad dsm
nvme format $d -f >/dev/null 2>&1 && echo bad format
nvme sanitize $n -a 2 >/dev/null 2>&1 && echo bad sanitize
nvme set-feature $n -f 4 --value=300 >/dev/null || echo bad set-feature
nvme smart-log $n | grep -q 'critical_warning.*0x2' || echo bad warning
nvme reset $n || echo bad reset
sleep 1
nvme read $d -s 0 -c 0 -z 512 -d /tmp/y >/dev/null 2>&1 || echo bad read after the reset
say kernel; dmesg | grep -i nvme
say end
"""


def nvme_vm(quantavirt, root, disks, script, wait, programs=(), **kwargs):
    vm = Vm(quantavirt, root, "web", disks, **kwargs)
    path = root.parent / "guest-script.sh"
    path.write_text(script)
    vm.set_script("sh /qv/script", [f"/dev/{d}" for d in wait], flavour="full",
                  files=[f"{path}:/qv/script", *(f"{paths.system_program(p)}:/usr/bin/{p}" for p in ("nvme", *programs))])
    return vm.create().start()


def parts(text):
    found = re.split(r"^=== (.*)$", text, flags=re.M)
    return dict(zip(found[1::2], (p.strip() for p in found[2::2])))


def test_what_the_guest_is_told(quantavirt, root):
    disks = [disk("a", "raw", size="64M", type="nvme", discard=True),
             disk("b", "qcow2", size="64M", type="nvme", discard=True)]
    vm = nvme_vm(quantavirt, root, disks, ASK, ["nvme0n1", "nvme0n2"], cpus=2)
    said = parts(vm.result().check().output)
    ctrl, ns = json.loads(said["id-ctrl"]), json.loads(said["id-ns"])
    assert ctrl["mn"].strip() == "QuantaVirt NVMe" and ctrl["sn"].strip() and ctrl["nn"] == 256
    assert ctrl["ver"] == 0x10400 and ctrl["vwc"] & 1 and ctrl["oacs"] == 0x100
    assert ns["nsze"] == (64 << 20) // 512 and ns["lbafs"][0]["ds"] == 9
    assert [n["nsid"] for n in json.loads(said["list"])["nsid_list"]] == [1, 2]
    assert "64" in said["errors"] and "Firmware" in said["firmware"] and "01 00 00 00" in said["effects"], said
    assert json.loads(said["smart"])["critical_warning"] == 0
    for feature in ("1", "2", "4", "5", "6", "7", "8", "9", "0xa", "0xb", "0xe"):
        assert "Current value" in said[f"feature {feature}"] or "current value" in said[f"feature {feature}"], feature
    queue = dict(line.split(" ", 1) for line in said["sysfs"].splitlines())
    assert queue["logical_block_size"] == "512" and queue["write_cache"] == "write back" and queue["fua"] == "1"
    assert int(queue["discard_max_bytes"]) > 0 and int(queue["write_zeroes_max_bytes"]) > 0
    assert queue["max_hw_sectors_kb"] == "2048" and queue["rotational"] == "0"
    assert said["identity"].split("\n")[0].startswith("uuid.")
    assert said["commands"] == ""
    assert "timeout," not in said["kernel"] and "I/O error" not in said["kernel"]


# fio writes and checks while the controller is reset again and again: Linux sends again what it lost.
LOAD = """
fio --name=v --filename=/dev/nvme0n1 --rw=randwrite --bs=4k-64k --size=24m --iodepth=16 --ioengine=libaio --direct=1 \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=1 > /tmp/fio 2>&1 &
fio=$!
for i in 1 2 3 4 5 6; do sleep 0.3; echo 1 > /sys/class/nvme/nvme0/reset_controller || echo bad reset; done
for i in 1 2 3; do nvme flush /dev/nvme0n2 >/dev/null || echo bad flush; blkdiscard -z /dev/nvme0n2 2>/dev/null; done
wait $fio; echo fio $?
grep -E 'err=|verify' /tmp/fio | head -5
mke2fs /dev/nvme0n2 >/dev/null && mount -t ext4 -o discard /dev/nvme0n2 /mnt && dd if=/dev/urandom of=/mnt/f bs=64k count=100 2>/dev/null
echo 1 > /sys/class/nvme/nvme0/reset_controller
rm /mnt/f; sync; umount /mnt && e2fsck -fn /dev/nvme0n2 >/dev/null 2>&1; echo fsck $?
dmesg | grep -E 'nvme.*(timeout,|I/O error|Abort)' | head -3
"""


def test_resets_under_load(quantavirt, root, qemu_img):
    disks = [disk("a", "qcow2", size="32M", type="nvme"), disk("b", "qcow2", size="32M", type="nvme")]
    vm = nvme_vm(quantavirt, root, disks, LOAD, ["nvme0n1", "nvme0n2"], cpus=2, memory="1G",
                 programs=("fio", "e2fsck"))
    said = vm.result().check().output
    assert "fio 0" in said and "err= 0" in said and "fsck 0" in said, said
    assert "bad" not in said and "timeout," not in said and "I/O error" not in said, said
    for image in "ab":
        quantavirt("storage", "check", image)
        assert qemu_img("check", "--output=json", root / f"images/{image}.qcow2").get("check-errors") == 0


def test_256_namespaces(quantavirt, root):
    disks = [disk(f"d{i}", "raw", size="1M", type="nvme") for i in range(256)]
    script = """for i in $(seq 100); do [ -b /dev/nvme0n256 ] && break; sleep 0.2; done
ls /dev/nvme0n* | grep -c .; nvme list-ns /dev/nvme0 | grep -c 0x
for i in 1 100 256; do echo $i | dd of=/dev/nvme0n$i bs=512 conv=sync,fsync 2>/dev/null || echo bad $i; done"""
    vm = nvme_vm(quantavirt, root, disks, script, ["nvme0n1"], cpus=2, memory="512M")
    said = vm.result().check().output.split()
    assert said[0] == "256" and said[1] in ("256", "257"), said
    assert "bad" not in said
    for i in (1, 100, 256):
        assert (root / f"images/d{i - 1}.raw").read_bytes()[:4].split()[0] == str(i).encode()
    vm("delete")
    vm.config["storage"].append(disk("one-more", "raw", size="1M", type="nvme"))
    assert "256" in vm.create(code=2).stderr
