# SPDX-License-Identifier: Apache-2.0
"""NVMe, AHCI and IDE controllers: all four kinds in one guest, what its tools say, firmware, disks that come and go,
limits, other hypervisors, the I/O process's death."""
import json
import os
import signal

import pytest

from qvtest import bootdisk, guest, paths
from qvtest.command import Daemon
from qvtest.vm import Vm, disk, wait_gone

pytestmark = pytest.mark.guest

# One disk of each kind is found by its size in MiB: the kernel numbers sdX as it likes.
ALL = [("virtio-blk", 32), ("nvme", 33), ("nvme", 34), ("ahci", 35), ("ahci", 36), ("ide", 37), ("ide", 38)]

FIND = """disks() { ls -d /sys/block/[vsn]* | wc -l; }
i=0; while [ $(disks) -lt %d ] && [ $i -lt 300 ]; do sleep 0.2; i=$((i+1)); done
dev() { for b in /sys/block/[vsn]*; do [ $(cat $b/size) = $(($1*2048)) ] && echo ${b##*/}; done; }
"""

# Files, checked, and again after a discard of a part of what is free; then the counters of the disk.
USE = FIND + """for m in %s; do d=$(dev $m); mkdir /mnt/$m; /usr/sbin/mke2fs -q -t ext4 /dev/$d || exit 1
mount -t ext4 -o discard /dev/$d /mnt/$m || exit 2; done
for m in %s; do dd if=/dev/urandom of=/mnt/$m/f bs=64k count=100 2>/dev/null; cp /mnt/$m/f /mnt/$m/g; sync
rm /mnt/$m/g; sync; sha256sum < /mnt/$m/f > /tmp/$m; done
echo 3 > /proc/sys/vm/drop_caches
for m in %s; do [ "$(sha256sum < /mnt/$m/f)" = "$(cat /tmp/$m)" ] || exit 3; umount /mnt/$m
e2fsck -fn /dev/$(dev $m) >/dev/null 2>&1 || exit 4
echo "disk $m $(cat /sys/block/$(dev $m)/queue/discard_max_bytes) $(cut -c1-64 /tmp/$m)"; done
"""

TELL = FIND + """for m in %s; do d=$(dev $m); q=/sys/block/$d/queue
echo "disk $m $(cat $q/logical_block_size $q/write_cache /sys/block/$d/ro | tr '\\n' ' ')$(lsblk -bDdno DISC-MAX /dev/$d)"; done
echo "serial $(cat /sys/block/$(dev 32)/serial)"
N=$(dev 33); nvme id-ctrl /dev/${N%%n*} | grep -E '^(vid|sn|mn|fr|nn|oncs|vwc) '
nvme list-ns /dev/${N%%n*}; nvme smart-log /dev/${N%%n*} | grep -E 'critical_warning|data_units_written'
A=$(dev 36); /usr/sbin/hdparm -I /dev/$A | grep -E 'Serial|Model|Firmware|TRIM|Write cache|48-bit|Queue depth|frozen'
smartctl -i -H /dev/$A | grep -E 'Serial Number|User Capacity|overall-health'
I=$(dev 37); /usr/sbin/hdparm -I /dev/$I | grep -E 'Serial|udma5|TRIM'
"""


def tools(*names):
    return [paths.system_program(n) for n in names]


def start_all(quantavirt, root, script, **kwargs):
    disks = [disk(f"i{m}", "raw" if m % 2 else "qcow2", size=f"{m}M", type=t, **kwargs.get(f"i{m}", {})) for t, m in ALL]
    vm = Vm(quantavirt, root, "web", disks, cpus=2)
    vm.set_script(script, flavour="full", files=tools("e2fsck", "mke2fs", "nvme", "hdparm", "smartctl", "lsblk"))
    return vm.create().start()


@pytest.mark.timeout(400)
def test_a_guest_with_all_four_controllers(quantavirt, root, qemu_img):
    sizes = " ".join(str(m) for _, m in ALL)
    vm = start_all(quantavirt, root, USE % (len(ALL), sizes, sizes, sizes))
    assert [d["controller"] for d in vm.info()["disks"]] == [t for t, _ in ALL]
    lines = [line.split() for line in vm.result(300).check().output.splitlines() if line.startswith("disk ")]
    assert [line[1] for line in lines] == sizes.split()
    assert all(int(line[2]) > 0 for line in lines if int(line[1]) % 2 == 0), lines  # thin images take discards
    for _, m in ALL:
        quantavirt("storage", "check", f"i{m}")
        if m % 2 == 0:
            assert qemu_img("check", "--output=json", root / f"images/i{m}.qcow2").get("check-errors") == 0


@pytest.mark.timeout(300)
def test_what_tools_in_the_guest_say(quantavirt, root):
    """Each kind is what the configuration made it: serial, cache, discard, read-only."""
    through = {"cache": "writethrough"}
    vm = start_all(quantavirt, root, TELL % (len(ALL), " ".join(str(m) for _, m in ALL)), i32={"serial": "VB-1", **through},
                   i33={"serial": "NV-1", "doorbells": "page"}, i34={"readonly": True}, i35=through, i36={"serial": "AH-1"},
                   i37={"serial": "ID-1"}, i38=through)
    said = vm.result(200).check().output
    for text in ("serial VB-1", "sn        : NV-1", "nn        : ", "critical_warning", "Serial Number:      AH-1",
                 "Serial Number:    AH-1", "PASSED", "Serial Number:      ID-1", "*udma5", "Queue depth: 32", "TRIM supported"):
        assert text in said, f"no {text!r} in\n{said}"
    assert said.count("TRIM supported") == 1  # the qcow2 image takes it, the preallocated raw one does not
    disks = {int(line.split()[1]): line.split()[2:] for line in said.splitlines() if line.startswith("disk ")}
    for _, m in ALL:
        block, _, cache, readonly, discard = disks[m]
        # What cannot be written has nothing to cache, and nothing to discard.
        assert block == "512" and cache == ("through" if m in (32, 34, 35, 38) else "back"), disks
        assert readonly == str(int(m == 34)) and (int(discard) > 0) == (m in (32, 36, 38)), disks


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


# Counts on /dev/vda and says which disks there are; reads from each of them.
WATCH = """powerbutton & i=0
while :; do i=$((i+1)); printf '%08d\\n' $i | dd of=/dev/vda bs=512 conv=fsync,notrunc 2>/dev/null
for d in $(ls /sys/block | grep -E '^(vd[b-z]|nvme|sd)'); do dd if=/dev/$d of=/dev/null bs=64k count=8 iflag=direct 2>/dev/null; done
echo "count $i ="$(ls /sys/block | grep -E '^(vd|nvme|sd)')"="; done"""


def seen(vm):
    """The disks that the guest has at the moment, but vda."""
    lines = [line for line in vm.console().splitlines() if line.startswith("count ") and line.endswith("=")]
    return set(lines[-1].split("=")[1].split()) - {"vda"} if lines else set()


def configured(vm):
    return [d["image"] for d in vm.info()["disks"]]


@pytest.mark.timeout(400)
def test_disks_come_and_go(quantavirt, root):
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M"), disk("n0", "raw", size="2M", type="nvme"),
                                      disk("s0", "raw", size="2M", type="ahci")])
    vm.set_script(WATCH, flavour="full")
    vm.create().start()
    vm.wait("its first disks", lambda: seen(vm) == {"nvme0n1", "sda"}, 120)
    for image in ("v1", "n1", "s1"):
        quantavirt("storage", "create", "--name", image, "--format", "qcow2", "--size", "4M")
    for image, kind, name in (("v1", "virtio-blk", "vdb"), ("n1", "nvme", "nvme0n2"), ("s1", "ahci", "sdb")):
        vm("disk-attach", "--storage", image, "--controller", kind)
        vm.wait(f"{name} in the guest", lambda: name in seen(vm), 60)
        assert configured(vm)[-1] == image
        assert "is attached already" in vm("disk-attach", "--storage", image, "--controller", kind, code=4).stderr
    vm.wait_count(3)

    # What cannot be attached changes nothing.
    other = Vm(quantavirt, root, "other", [disk("o", "raw", size="1M")]).create().start()
    before = configured(vm)
    assert "in use by vm other" in vm("disk-attach", "--storage", "o", "--controller", "nvme", code=4).stderr
    assert vm("disk-attach", "--storage", "none", "--controller", "ahci", code=3).stderr
    wrong = root.parent / "wrong.qcow2"
    wrong.write_bytes(bytes(1 << 20))
    assert vm("disk-attach", "--storage", wrong, "--format", "qcow2", "--controller", "virtio-blk", code=5).stderr
    assert "IDE has no hot-plug" in vm("disk-attach", "--storage", wrong, "--format", "raw", "--controller", "ide", code=1).stderr
    assert configured(vm) == before and seen(vm) == {"nvme0n1", "nvme0n2", "sda", "sdb", "vdb"}
    other("stop", "--force")

    for image, name in (("v1", "vdb"), ("n1", "nvme0n2"), ("s1", "sdb")):
        vm("disk-detach", "--storage", image, timeout=90)
        assert image not in configured(vm)
        vm.wait(f"no {name} in the guest", lambda: name not in seen(vm), 30)
        quantavirt("storage", "check", image)  # nobody has it
    assert "has no disk" in vm("disk-detach", "--storage", "v1", code=3).stderr

    # A guest that does not answer: pending, and done when it goes on.
    vm("disk-attach", "--storage", "v1", "--controller", "virtio-blk")
    vm.wait("vdb in the guest", lambda: "vdb" in seen(vm), 60)
    vm("pause")
    failed = vm("disk-detach", "--storage", "v1", "--timeout", "1", code=4).stderr
    assert "guest has not released it" in failed and "still pending" in failed and "v1" in configured(vm)
    vm("resume")
    vm.wait("the end of a pending detach", lambda: "v1" not in configured(vm), 60)

    # Without waiting for the guest.
    vm("disk-attach", "--storage", "n1", "--controller", "nvme")
    vm.wait("the namespace", lambda: "nvme0n2" in seen(vm), 60)
    vm("pause")
    vm("disk-detach", "--storage", "n1", "--force")
    assert "n1" not in configured(vm)
    quantavirt("storage", "check", "n1")
    vm("resume")
    vm.wait_count(3)
    vm("stop", timeout=90)
    assert int((root / "images/a.raw").read_bytes()[:8]) >= vm.count()
    assert configured(vm) == ["a", "n0", "s0"]


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
    for kind, limit, what in (("ide", 4, "IDE drives"), ("ahci", 32, "AHCI ports"), ("nvme", 256, "NVMe namespaces"),
                              ("virtio-blk", 256, "virtio-blk disks")):
        vm = Vm(quantavirt, root, "web", [disk(f"i{i}", "raw", type=kind) for i in range(limit + 1)])
        assert f"{limit + 1} {what}, a VM holds at most {limit}" in vm.create(code=2).stderr


MANY = FIND + """ok=0; for b in /sys/block/[sn]*; do d=/dev/${b##*/}; s=$(cat $b/size)
printf "%%-511s\\n" "this is $s" | dd of=$d bs=512 oflag=direct conv=fsync 2>/dev/null || continue
[ "$(dd if=$d bs=512 count=1 iflag=direct 2>/dev/null | cut -d' ' -f3)" = "$s" ] && ok=$((ok+1)); done; echo "used $ok" """


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_guest_uses_256_namespaces_and_32_ports(quantavirt, root):
    disks = [disk(f"n{i}", "raw", size=f"{64 + i}K", type="nvme") for i in range(256)]
    disks += [disk(f"s{i}", "raw", size=f"{1024 + i}K", type="ahci") for i in range(32)]
    vm = Vm(quantavirt, root, "web", disks, memory="512M")
    vm.set_script(MANY % 288, flavour="full")
    vm.create().start()
    assert vm.result(500).check().output.split()[-2:] == ["used", "288"]
    for i in range(256):
        assert (root / f"images/n{i}.raw").read_bytes().startswith(b"this is %d " % (128 + 2 * i))
    for i in range(32):
        assert (root / f"images/s{i}.raw").read_bytes().startswith(b"this is %d " % (2048 + 2 * i))


def test_served_to_another_hypervisor(quantavirt, root):
    """Two images behind each kind of controller, in a QEMU that is not ours; and then in the next one, which finds the
    devices as new and the disks as they were left, and whose guest has no message-signalled interrupts."""
    sizes = {"nvme": ("3M", "4M"), "ahci": ("5M", "6M"), "ide": ("7M", "8M")}
    daemons, devices = [], []
    for i, (kind, both) in enumerate(sizes.items()):
        images = [f"{kind}{size}" for size in both]
        for image, size in zip(images, both):
            quantavirt("storage", "create", "--name", image, "--format", "qcow2", "--size", size)
        socket = root.parent / f"s{i}"
        daemons.append(Daemon(paths.QUANTAVIRT, "--root", root, "storage", "serve", *images, "--protocol", "vfio-user",
                              "--controller", kind, "--socket", socket, *(["--doorbells", "page"] if kind == "nvme" else [])))
        devices += ["-device", json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)},
                                           "addr": hex(5 + i)})]
        assert "at most" in quantavirt("storage", "serve", *[images[0]] * 257, "--protocol", "vfio-user", "--controller",
                                       kind, "--socket", root.parent / "s", code=2).stderr
    mark = (FIND % 6) + "for b in /sys/block/[sn]*; do echo \"mark $(cat $b/size)\" > /tmp/x; %s; done"
    write = "dd if=/tmp/x of=/dev/${b##*/} conv=sync,fsync 2>/dev/null || exit 1"
    read = "dd if=/dev/${b##*/} bs=512 count=1 iflag=direct 2>/dev/null | head -n 1 | cmp - /tmp/x || exit 1"
    try:
        for step, extra in ((write, ""), (read, "pci=nomsi")):
            guest.boot(mark % step, devices, flavour="full", extra=extra).check()
    finally:
        codes = [daemon.stop() for daemon in daemons]
    assert codes == [0, 0, 0]
    for kind, both in sizes.items():
        for size in both:
            out = root.parent / "out.raw"
            quantavirt("storage", "export", f"{kind}{size}", out, "--format", "raw")
            assert out.read_bytes().startswith(b"mark %d\n" % (2048 * int(size[0])))
            out.unlink()
