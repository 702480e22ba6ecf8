# SPDX-License-Identifier: Apache-2.0
"""Disks taken from guests that do not let go, and controllers that come while a guest runs."""
import json
import re

import pytest

from qvtest import paths
from qvtest.command import run
from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

DEV = """dev() { for b in /sys/block/[vsn]*; do [ "$(cat $b/size 2>/dev/null)" = $(($1*2048)) ] && echo ${b##*/} && return; done; false; }
"""

# A guest that hears of nothing: no ACPI hot-plug (see the kernel's command line), no events of NVMe, no interrupt of its
# AHCI ports when a link changes. Three disks hold file systems in use, three others do not know of it. A SATA disk that
# is asked for something would find out, so that one rests until the guest sees a disk of 12 MiB.
DEAF = DEV + r"""
powerbutton &
for m in 1 2 3 8 9 10; do i=0; until dev $m >/dev/null; do sleep 0.2; i=$((i+1)); [ $i -lt 200 ] || exit 2; done; done
nvme set-feature /dev/nvme0 -f 0xb --value=0 >/dev/null || exit 3
hba=$(sed -n 6p /sys/bus/pci/devices/0000:00:1d.0/resource | cut -d' ' -f1)
for p in 0 1; do at=$((hba+0x114+0x80*p)); devmem $at 32 $(($(devmem $at) & ~0x400040)); done
for s in /sys/block/sd*; do echo 1 > $s/device/timeout; done
count() { n=0; while :; do n=$((n+1)); [ $1 = 10 ] && [ $n = 4 ] && until dev 12 >/dev/null; do sleep 0.2; done; if echo $n > $2.new && dd if=$2.new of=$2 conv=fsync,notrunc 2>/dev/null; then echo "ok $1 $n"; else
echo "failed $1"; sleep 1; fi; sleep 0.1; done; }
for m in 8 9 10; do d=/dev/$(dev $m); mkdir /mnt/$m; mke2fs -q $d && mount -t ext4 -o errors=continue $d /mnt/$m || exit 4
count $m /mnt/$m/f & done
for m in 1 2 3; do ln -s /dev/$(dev $m) /tmp/d$m; count $m /tmp/d$m & done
wait
"""
HELD = {"virtio-blk": 8, "nvme": 9, "ahci": 10}
OTHERS = (1, 2, 3)


def last(vm, m):
    """The last number that is durable on that disk, as the guest knows."""
    return max([0, *(int(n) for n in re.findall(rf"^ok {m} (\d+)$", vm.console(), re.M))])


def wait_writes(vm, disks, more=2):
    wanted = {m: last(vm, m) + more for m in disks}
    vm.wait(f"writes {wanted}", lambda: all(last(vm, m) >= n for m, n in wanted.items()), 120)


def configured(vm):
    """The images in the configuration file itself."""
    path = vm.root / "configs" / f"{vm.name}.json"
    return [d["path"] for d in json.loads(path.read_text())["storage"]]


@pytest.mark.timeout(300)
def test_force_takes_disks_that_a_guest_does_not_release(quantavirt, root, qemu_img):
    disks = [disk(f"i{m}", "raw", size=f"{m}M", type=t) for m, t in zip(OTHERS, HELD)]
    disks += [disk(f"i{m}", "qcow2" if t == "virtio-blk" else "raw", size=f"{m}M", type=t) for t, m in HELD.items()]
    vm = Vm(quantavirt, root, "web", disks, cpus=2)
    script = root.parent / "script"
    script.write_text(DEAF)
    vm.set_script("sh /qv/script", extra="iomem=relaxed acpiphp.disable=1", flavour="full",
                  files=[f"{script}:/qv/script", *(f"{paths.system_program(p)}:/usr/bin/{p}" for p in ("mke2fs", "nvme"))])
    vm.create().start()
    every = [*OTHERS, *HELD.values()]
    wait_writes(vm, every)

    # Asked for and not given: all goes on as before, and the disk stays in the VM.
    for m in HELD.values():
        failed = vm("disk-detach", "--storage", f"i{m}", "--timeout", "1", code=4).stderr
        assert "guest has not released it" in failed and "--force" in failed
        assert f"i{m}" in configured(vm)
        assert quantavirt("storage", "info", f"i{m}", "--json").json()["locked"]
    wait_writes(vm, every[:-1])

    # By force: the image is free, the others are not disturbed, the guest gets errors from that disk only.
    flushed, rest = {}, list(HELD.values())
    for m in HELD.values():
        vm("disk-detach", "--storage", f"i{m}", "--force")
        rest.remove(m)
        assert f"i{m}" not in configured(vm)
        quantavirt("storage", "check", f"i{m}")
        flushed[m] = last(vm, m)
        wait_writes(vm, [*OTHERS, *rest[:-1]])
        if m == 10:
            quantavirt("storage", "resize", "i1", "--size", "12M")
        vm.wait(f"an error of disk {m} in the guest", lambda m=m: f"\nfailed {m}\n" in vm.console(), 120)
        assert {int(n) for n in re.findall(r"^failed (\d+)$", vm.console(), re.M)} <= set(HELD.values()) - set(rest), vm.console()
    wait_writes(vm, OTHERS)
    assert vm.info()["state"] == "running" and configured(vm) == [f"i{m}" for m in OTHERS]
    vm("stop", timeout=90)

    # What the guest had made durable is in the images.
    assert qemu_img("check", "--output=json", root / "images/i8.qcow2").get("check-errors") == 0
    quantavirt("storage", "export", "i8", root.parent / "8.raw", "--format", "raw")
    for m, path in ((8, root.parent / "8.raw"), (9, root / "images/i9.raw"), (10, root / "images/i10.raw")):
        content = run(paths.system_program("debugfs"), "-R", "cat /f", path).stdout
        assert int(content.split()[0]) >= flushed[m] > 0


# Says which disks of more than 1 MiB there are, with sizes; writes to each and reads it back.
LOOK = DEV + r"""powerbutton &
i=0; while :; do i=$((i+1)); s=; for b in /sys/block/[vsn]*; do m=$(($(cat $b/size 2>/dev/null || echo 0)/2048)); [ $m -gt 1 ] || continue
echo "on $m" > /tmp/w; dd if=/tmp/w of=/dev/${b##*/} bs=512 conv=sync,fsync,notrunc 2>/dev/null &&
dd if=/dev/${b##*/} bs=512 count=1 iflag=direct 2>/dev/null | grep -q "^on $m$" && s="$s ${b##*/}:$m"; done; echo "see $i$s ="; sleep 0.2; done"""


def seen(vm):
    """DISK:SIZE of all disks that the guest uses, by its last word."""
    lines = [line.split() for line in vm.console().splitlines() if line.startswith("see ") and line.endswith(" =")]
    return set(lines[-1][2:-1]) if lines else None


@pytest.mark.timeout(300)
def test_controllers_come_with_their_first_disk(quantavirt, root):
    """To a VM that has none: an NVMe controller and an AHCI adapter are PCI devices like others."""
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M")], cpus=2)
    vm.set_script(LOOK, flavour="full")
    vm.create().start()
    vm.wait("the guest", lambda: seen(vm) == set(), 120)
    for name, size in (("n1", 2), ("n2", 3), ("s1", 4), ("s2", 5)):
        quantavirt("storage", "create", "--name", name, "--format", "qcow2", "--size", f"{size}M")
    vm("disk-attach", "--storage", "n1", "--controller", "nvme")
    vm("disk-attach", "--storage", "s1", "--controller", "ahci")
    vm("disk-attach", "--storage", "n2", "--controller", "nvme")
    vm("disk-attach", "--storage", "s2", "--controller", "ahci")
    vm.wait("four disks", lambda: seen(vm) == {"nvme0n1:2", "nvme0n2:3", "sda:4", "sdb:5"})
    assert configured(vm) == ["a", "n1", "s1", "n2", "s2"]

    # The guest sees the new size of a namespace at once.
    quantavirt("storage", "resize", "n2", "--size", "8M")
    vm.wait("the new size", lambda: "nvme0n2:8" in seen(vm))

    # A wrong image changes nothing, also where a controller would have come with it.
    before = seen(vm)
    wrong = root.parent / "wrong"
    wrong.write_bytes(bytes(1 << 20))
    for kind in ("nvme", "ahci"):
        assert vm("disk-attach", "--storage", wrong, "--format", "qcow2", "--controller", kind, code=5).stderr
    assert configured(vm) == ["a", "n1", "s1", "n2", "s2"] and seen(vm) == before

    for name in ("n1", "s1", "n2", "s2"):
        vm("disk-detach", "--storage", name, timeout=90)
        quantavirt("storage", "check", name)
    vm.wait("no disk", lambda: seen(vm) == set())
    vm("disk-attach", "--storage", "s1", "--controller", "ahci")
    vm("disk-attach", "--storage", "n1", "--controller", "nvme")
    vm.wait("both again", lambda: {d.split(":")[1] for d in seen(vm)} == {"2", "4"})

    # Of a disk that was taken by force the device is left, until the guest lets it go; and it may come back.
    quantavirt("storage", "create", "--name", "v1", "--format", "raw", "--size", "7M")
    vm("disk-attach", "--storage", "v1", "--controller", "virtio-blk")
    vm.wait("a virtio-blk disk", lambda: "vdb:7" in seen(vm))
    vm("pause")
    vm("disk-detach", "--storage", "v1", "--force")
    quantavirt("storage", "check", "v1")
    vm("resume")
    vm.wait("no virtio-blk disk", lambda: {d.split(":")[1] for d in seen(vm)} == {"2", "4"})
    vm("disk-attach", "--storage", "v1", "--controller", "virtio-blk")
    vm.wait("the virtio-blk disk again", lambda: "7" in {d.split(":")[1] for d in seen(vm)})
    vm("disk-detach", "--storage", "v1", timeout=90)
    vm("stop", timeout=90)

    # The configuration has followed: the next start has them.
    assert configured(vm) == ["a", "s1", "n1"]
    vm("start")
    vm.wait("both at the start", lambda: seen(vm) == {"nvme0n1:2", "sda:4"}, 120)
    vm("stop", timeout=90)
