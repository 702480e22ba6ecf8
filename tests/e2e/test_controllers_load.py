# SPDX-License-Identifier: Apache-2.0
"""All four controllers at once under load, with partitions, file systems and fio that verifies: disks are plugged and
pulled, and controllers are reset again and again. Nothing may be lost, or wrong, and nothing may stand still.

NVMe resets and NVMe hot-plug have a test each, because Linux 6.1 cannot have both at once: docs/controllers.md says why.
Waits end when the guest has done so much meanwhile that what they wait for cannot come any more; time decides nothing."""
import time

import pytest

from qvtest import paths
from qvtest.vm import Vm, disk

pytestmark = pytest.mark.guest

# Found by their sizes in MiB: the kernel numbers disks as it likes.
STAY = {"virtio-blk": 24, "nvme": 25, "ahci": 26, "ide": 27}
COME = {"virtio-blk": 3, "nvme": 4, "ahci": 5}
END = 9  # the guest ends when a disk of that size is plugged in

# A partition for files and one for fio, and a file system; then loads on both, which end with /tmp/end.
LOADS = r"""
dev() { for b in /sys/block/[vsn]*; do [ "$(cat $b/size 2>/dev/null)" = $(($1*2048)) ] && echo ${b##*/} && return; done; false; }
part() { case $1 in nvme*) echo /dev/$1p$2;; *) echo /dev/$1$2;; esac; }
for m in $STAY; do until d=$(dev $m); do sleep 0.1; done; eval d$m=$d
printf 'n\np\n1\n2048\n18431\nn\np\n2\n18432\n\nw\n' | fdisk -u /dev/$d >/dev/null 2>&1; until [ -b $(part $d 2) ]; do sleep 0.1; done
mkdir /mnt/$m; /usr/bin/mke2fs -q -t ext4 $(part $d 1) && mount -t ext4 -o discard $(part $d 1) /mnt/$m || exit 4; done

check() { # a job of fio on the second partition: what it wrote is what it reads
fio --name=$1 --filename=$(part $2 2) --rw=randwrite --bs=4k-64k --size=3m --iodepth=8 --ioengine=libaio --direct=1 \
 --verify=crc32c --verify_fatal=1 --randseed=$3 $4 >/tmp/fio$1 2>&1 || { echo "bad fio $1"; grep -E 'fio:|verify|err=' /tmp/fio$1; }; }
load() { n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); check $1 $2 $n; echo "round $1 $n"; done; }
files() { n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); dd if=/dev/urandom of=/mnt/$1/new bs=64k count=10 2>/dev/null
sha256sum < /mnt/$1/new > /mnt/$1/sum.new; sync; mv /mnt/$1/new /mnt/$1/f; mv /mnt/$1/sum.new /mnt/$1/sum; sync
[ "$(sha256sum < /mnt/$1/f)" = "$(cat /mnt/$1/sum)" ] || echo "bad file $1"; done; }
for m in $STAY; do eval load $m \$d$m & files $m & done
"""

# Disks that come: each is written and read while it is there. Through a node of our own: dd would make a file of a name in
# /dev that has just gone, and the next disk of that name could not have it.
VISITS = r"""
visit() { b=/tmp/b$1; printf '%-4095s\n' "visit $1" > /tmp/v$1; while [ ! -e /tmp/end ]; do if d=$(dev $1); then rm -f $b
mknod $b b $(tr : ' ' < /sys/block/$d/dev) && dd if=/tmp/v$1 of=$b bs=4k seek=9 oflag=direct &&
dd if=$b bs=4k skip=9 count=1 iflag=direct | cmp -s - /tmp/v$1 && [ ! -e /tmp/seen$1 ] && touch /tmp/seen$1 && echo "here $1"; else [ -e /tmp/seen$1 ] && rm /tmp/seen$1 && echo "gone $1"; sleep 0.1; fi; done 2>/dev/null; }
for m in $COME; do visit $m & done; echo load
until dev $END >/dev/null; do sleep 0.2; done; touch /tmp/end; wait
"""

# Until each controller was reset three times, and twice while commands were in flight; by the driver, and behind its back.
RESETS = r"""
echo 1 > /sys/block/$d27/device/timeout  # what an IDE reset swallows is tried again after a second
host() { p=$(readlink -f /sys/block/$1/device); p=${p#*/host}; echo ${p%%/*}; }
nth() { sed -n $2p /sys/bus/pci/devices/0000:00:$1/resource | cut -d' ' -f1; }
surprises() { dmesg | grep -c 'exception Emask'; }  # resets that commands in flight were lost in
n=0; hba=$(nth 1d.0 6) ide=$(nth 1e.0 2); echo load; while [ $n -lt 3 ] || [ $(surprises) -lt 2 ]; do n=$((n+1))
echo 1 > /sys/class/nvme/nvme0/reset_controller || echo bad nvme reset
echo '- - -' > /sys/class/scsi_host/host$(host $d26)/scan  # a reset of the port, by the driver
devmem $((hba+0x12c)) 32 0x301; sleep 0.01; devmem $((hba+0x12c)) 32 0x300  # COMRESET
echo '- - -' > /sys/class/scsi_host/host$(host $d27)/scan
[ $((n % 4)) = 1 ] && for b in 4 0; do printf "\\$b" | dd of=/dev/port bs=1 seek=$((ide+2)) 2>/dev/null; done  # SRST
sleep 0.3; done; touch /tmp/end; wait; echo "resets $n $(surprises)"

# virtio-blk: its driver is taken away while fio reads, and comes back
check 24 $d24 77; a=$(basename $(readlink -f /sys/block/$d24/device)); umount /mnt/24
fio --name=x --filename=$(part $d24 2) --rw=randread --bs=4k --size=4m --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime=1h >/dev/null 2>&1 & x=$!
r=$(cat /sys/block/$d24/stat); until [ "$(cat /sys/block/$d24/stat)" != "$r" ]; do sleep 0.1; done
echo $a > /sys/bus/virtio/drivers/virtio_blk/unbind; wait $x && echo "bad: fio read from nothing"
echo $a > /sys/bus/virtio/drivers/virtio_blk/bind
until d24=$(dev 24) && [ -b $(part $d24 2) ]; do sleep 0.1; done; mount -t ext4 $(part $d24 1) /mnt/24 || echo bad mount
check 24 $d24 77 --verify_only
"""

# What is on the disks afterwards, and what the kernel said of them; not of those that came: AHCI asks nobody before a disk goes.
AFTER = r"""
echo 3 > /proc/sys/vm/drop_caches
for m in $STAY; do [ "$(sha256sum < /mnt/$m/f)" = "$(cat /mnt/$m/sum)" ] || echo "bad file $m afterwards"
eval p=\$\(part \$d$m 1\); umount /mnt/$m; e2fsck -fn $p >/dev/null 2>&1 || echo "bad fs $m"; done
dmesg | grep -E "I/O error(,| on) dev ($d24|$d25|$d26|$d27)[p0-9]*,|EXT4-fs error" | head -5
"""


class LoadedVm(Vm):
    """A VM with a disk on each controller, whose guest loads them all."""

    def __init__(self, quantavirt, root, script):
        super().__init__(quantavirt, root, "web", [disk(f"i{m}", "raw" if m % 2 else "qcow2", size=f"{m}M", type=t, discard=True)
                                                   for t, m in STAY.items()], cpus=2, memory="1G")
        path = root.parent / "script"
        names = {"STAY": STAY.values(), "COME": COME.values(), "END": [END]}
        path.write_text("".join(f"{k}='{' '.join(map(str, v))}'\n" for k, v in names.items()) + LOADS + script + AFTER)
        programs = [f"{paths.system_program(p)}:/usr/bin/{p}" for p in ("fio", "e2fsck", "mke2fs")]
        self.set_script("sh /qv/script", extra="iomem=relaxed", flavour="full", files=[f"{path}:/qv/script", *programs])
        self.create().start()
        self.wait_console("\nload\n", 240)

    def rounds(self):
        """How many rounds the load of each disk has done, which is how time passes in this guest."""
        text = self.console()
        return {m: text.count(f"\nround {m} ") for m in STAY.values()}

    def wait_rounds(self, what, condition, rounds=300):
        """Until condition(); fails when each disk's load has done so many rounds meanwhile, or one stands still."""
        before = last = self.rounds()
        moved = dict.fromkeys(last, time.monotonic())
        while not condition():
            now, clock = self.rounds(), time.monotonic()
            moved.update({m: clock for m in now if now[m] != last[m]})
            last = now
            late = all(now[m] - before[m] >= rounds for m in now)
            assert not late and clock - min(moved.values()) < 240, f"waited for {what}, {before} to {now}\n{self.console()[-3000:]}"
            time.sleep(0.05)

    def check_end(self):
        """The guest has found nothing wrong, and neither does anyone else. Returns what it said."""
        said = self.result(600).check().output
        assert "bad" not in said and "error" not in said, said
        assert min(self.rounds().values()) >= 1, said
        for m in STAY.values():
            self.quantavirt("storage", "check", f"i{m}")
        return said


@pytest.mark.timeout(900)
def test_hot_plug_under_load(quantavirt, root, qemu_img):
    vm = LoadedVm(quantavirt, root, VISITS)
    for kind, m in COME.items():
        quantavirt("storage", "create", "--name", f"c{m}", "--format", "raw" if kind == "ahci" else "qcow2", "--size", f"{m}M")
    quantavirt("storage", "create", "--name", "end", "--format", "raw", "--size", f"{END}M")
    for turn, come in enumerate([COME, {kind: COME[kind] for kind in ("virtio-blk", "nvme")}]):
        for kind, m in come.items():
            vm("disk-attach", "--storage", f"c{m}", "--controller", kind)
        for m in come.values():
            vm.wait_rounds(f"visit {m} of turn {turn}", lambda m=m: vm.console().count(f"\nhere {m}\n") > turn)
        for m in come.values():
            vm("disk-detach", "--storage", f"c{m}", "--timeout", "240", timeout=300)
            quantavirt("storage", "check", f"c{m}")
        for m in set(come.values()) - {COME["ahci"]}:  # Linux looks for an AHCI drive that went for another 15 s before it gives up
            vm.wait_rounds(f"the end of visit {m} of turn {turn}", lambda m=m: vm.console().count(f"\ngone {m}\n") > turn)
    vm("disk-attach", "--storage", "end", "--controller", "virtio-blk")
    vm.check_end()
    for m in STAY.values():
        if m % 2 == 0:
            assert qemu_img("check", "--output=json", root / f"images/i{m}.qcow2").get("check-errors") == 0
    for m in COME.values():
        raw = root.parent / "c.raw"
        raw.unlink(missing_ok=True)
        quantavirt("storage", "export", f"c{m}", raw, "--format", "raw")
        assert raw.read_bytes()[9 * 4096:].startswith(b"visit %d " % m)


@pytest.mark.timeout(900)
def test_resets_under_load(quantavirt, root):
    said = LoadedVm(quantavirt, root, RESETS).check_end()
    resets, surprises = map(int, said.rsplit("resets ", 1)[1].split()[:2])
    assert resets >= 3 and surprises >= 2, said
