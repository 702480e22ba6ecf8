# SPDX-License-Identifier: Apache-2.0
"""VMs with a Linux guest: life, death of each process, disks."""
import hashlib
import os
import resource
import signal
import subprocess
import threading
import time

import pytest

from qvtest import bootdisk, paths
from qvtest.command import processes_naming, run
from qvtest.vm import COUNTER, Vm, alive, disk, wait_gone

pytestmark = pytest.mark.guest


@pytest.fixture
def vm(quantavirt, root):
    """vm(name, disks, script): a VM that is created and started."""
    def make(name, disks, script, **kwargs):
        return Vm(quantavirt, root, name, disks, script, **kwargs).create().start()
    return make


def sector(path):
    return path.read_bytes()[:8]


def pids(info):
    return info["pid"], info["qemu_pid"], info["io_pid"]


FILES = """for d in vda vdb; do mkdir /mnt/$d; mke2fs /dev/$d >/dev/null && mount -t ext4 /dev/$d /mnt/$d || exit 1; done
for d in vda vdb; do dd if=/dev/urandom of=/mnt/$d/f bs=64k count=64 2>/dev/null; sync; done
cat /sys/block/vdb/serial; echo; for d in vda vdb; do sha256sum < /mnt/$d/f; umount /mnt/$d; done"""

FILES_AGAIN = """for d in vda vdb; do mkdir /mnt/$d; mount -t ext4 -o ro /dev/$d /mnt/$d || exit 1
sha256sum < /mnt/$d/f; done"""


def test_files_on_raw_and_qcow2_survive_a_power_off(quantavirt, root, qemu_img):
    vm = Vm(quantavirt, root, "web", [disk("a", "raw", size="24M"), disk("b", "qcow2", size="64M", serial="a,b=c")],
            FILES, cpus=2).create().start()
    info = vm.info()
    assert (info["state"], info["reason"], info["cpus"], info["memory"]) == ("running", None, 2, 256 << 20)
    assert [(d["image"], d["controller"], d["serial"], d["queues"]) for d in info["disks"]] == \
        [("a", "virtio-blk", None, 2), ("b", "virtio-blk", "a,b=c", 2)]
    assert all(d["io"] in ("io_uring", "native", "threads") and d["cache"] in ("none", "writeback")
               for d in info["disks"])
    # The console's bytes come until the VM ends.
    shown = vm("console", timeout=120).stdout
    said = vm.result().check().output.split()
    assert said[0] == "a,b=c"
    assert "==QV-END==" in shown and vm("console").stdout == shown
    stopped = vm.info()
    assert stopped["reason"] == "the guest shut down" and stopped["pid"] is None and stopped["uptime"] is None
    for image in "ab":
        quantavirt("storage", "check", image)
    assert qemu_img("check", "--output=json", root / "images/b.qcow2").get("check-errors") == 0

    config = root.parent / "again.json"
    vm("export", "--output", config)
    vm("delete")
    vm.config["storage"] = [disk("a"), disk("b")]
    vm.set_script(FILES_AGAIN, ["/dev/vda", "/dev/vdb"])
    vm.create().start()
    assert vm.result().check().output.split() == said[1:]


def test_a_running_vm(quantavirt, root, vm):
    web = vm("web", [disk("a", "raw", size="1M")], COUNTER)
    before = web.info()
    web.wait_count()

    again = web("start", code=4).stderr
    assert "web: runs already" in again and str(before["pid"]) in again
    assert "runs" in web("delete", code=4).stderr
    assert f"Locked By:    vm web (pid {before['pid']} on" in quantavirt("storage", "info", "a").stdout
    assert quantavirt("storage", "delete", "a", code=4).stderr
    other = Vm(quantavirt, root, "other", [disk("a")], COUNTER).create()
    assert "other: disk locked: a: in use by vm web" in other("start", code=4).stderr
    assert other.info()["state"] == "created" and not (root / "run/vm/other/control").exists()

    web("pause")
    info = web.info()
    assert (info["state"], info["reason"]) == ("paused", "on request")
    web("pause")
    count = web.count()
    time.sleep(0.5)
    assert web.count() - count <= 1  # what was on its way to the log
    assert "is paused" in web("stop", "--timeout", "5", code=1).stderr
    web("resume")
    web.wait_count()
    assert web.info()["state"] == "running"

    assert quantavirt("vm", "list", "--json").json()[1]["state"] == "running"
    assert quantavirt("storage", "stat", "a", "--json").json()["name"] == "web"
    web("stop", timeout=90)
    assert "powerbutton: pressed" in web.console()
    assert (web.info()["state"], web.info()["reason"]) == ("stopped", "the guest shut down")
    assert not any(alive(p) for p in pids(before)[1:])
    assert int(sector(root / "images/a.raw")) >= web.count()


def test_guest_that_ignores_the_button(quantavirt, root, vm):
    web = vm("web", [disk("a", "qcow2", size="1M")], "echo up; sleep 1000", extra="")
    web.wait_console("up")
    failed = web("stop", "--timeout", "1", code=1).stderr
    assert "still runs 1 seconds" in failed and "hint: vm stop --force" in failed
    assert web.info()["state"] == "running"
    before = web.info()
    web("stop", "--force")
    assert (web.info()["state"], web.info()["reason"]) == ("stopped", "stopped by force")
    wait_gone(*pids(before))
    web("start")  # at once, nothing is in the way
    web("stop", "--force")


def test_qemu_killed(quantavirt, root, vm):
    web = vm("web", [disk("a", "qcow2", size="1M")], COUNTER)
    web.wait_count()
    before = web.info()
    os.kill(before["qemu_pid"], signal.SIGKILL)
    after = web.wait_state("stopped", 20)
    assert "QEMU died of signal 9" in after["reason"]
    wait_gone(*pids(before))
    quantavirt("storage", "check", "a")
    out = root.parent / "a.raw"
    quantavirt("storage", "export", "a", out, "--format", "raw")
    assert int(sector(out)) >= web.count()


def test_io_process_killed(quantavirt, root, vm):
    web = vm("web", [disk("a", "qcow2", size="1M"), disk("b", "raw", size="1M")], COUNTER)
    for _ in range(3):
        web.wait_count()
        before = web.info()
        os.kill(before["io_pid"], signal.SIGKILL)
        web.wait("another I/O process", lambda: web.info()["io_pid"] not in (None, before["io_pid"]), 20)
        assert web.info()["qemu_pid"] == before["qemu_pid"]
    web.wait_count(10)
    assert web.info()["state"] == "running"
    web("stop", timeout=90)
    assert quantavirt("storage", "check", "a", code=None).code in (0, 6)  # a kill may leak, nothing worse


def test_writes_that_were_not_flushed_outlive_the_io_process(quantavirt, root, vm):
    """The guest goes on, so it counts on them: only power loss of the host may take them."""
    web = vm("web", [disk("a", "qcow2", size="8M")],
             "dd if=/dev/urandom of=/tmp/f bs=64k count=64 2>/dev/null; "
             "dd if=/tmp/f of=/dev/vda bs=64k oflag=direct 2>/dev/null; echo written; "
             "while [ $(cat /sys/block/vda/size) = 16384 ]; do sleep 0.1; done; "
             "dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/f && echo the same; sha256sum < /tmp/f")
    web.wait_console("written")
    before = web.info()
    os.kill(before["io_pid"], signal.SIGKILL)
    web.wait("another I/O process", lambda: web.info()["io_pid"] not in (None, before["io_pid"]), 20)
    quantavirt("storage", "resize", "a", "--size", "9M")  # tells the guest to go on
    said = web.result().check().output
    assert "the same" in said
    out = root.parent / "a.raw"
    quantavirt("storage", "export", "a", out, "--format", "raw")
    assert hashlib.sha256(out.read_bytes()[:4 << 20]).hexdigest() in said


def test_io_process_that_keeps_dying_pauses_the_guest(quantavirt, root, vm):
    web = vm("web", [disk("a", "raw", size="1M")], COUNTER)
    web.wait_count()
    for _ in range(6):
        pid = web.wait("an I/O process", lambda: web.info()["io_pid"], 20)
        os.kill(pid, signal.SIGKILL)
        web.wait("its end", lambda: web.info()["io_pid"] != pid, 20)
    info = web.wait_state("paused", 30)
    assert "the I/O process died of signal 9, 6 times within a minute" == info["reason"]
    web("resume")
    web.wait_count(5)
    web("stop", "--force")


def test_supervisor_killed(quantavirt, root, vm):
    web = vm("web", [disk("a", "raw", size="1M")], COUNTER)
    web.wait_count()
    before = web.info()
    os.kill(before["pid"], signal.SIGKILL)
    info = web.info()
    assert (info["state"], info["reason"]) == ("stopped", "its supervisor died")
    web("start")  # waits for what is left of the last run
    assert not alive(before["qemu_pid"]) and not alive(before["io_pid"])
    assert int(sector(root / "images/a.raw")) > 0
    web("stop", "--force")


def test_of_two_starts_one_wins(quantavirt, root):
    web = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M")], COUNTER).create()
    results = []
    threads = [threading.Thread(target=lambda: results.append(web("start", code=None))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(r.code for r in results) == [0, 4, 4], [str(r) for r in results]
    assert web.info()["state"] == "running"
    web("stop", "--force")


@pytest.fixture
def small_root(root):
    """The images' folder of the root, on a file system of 12 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    images = root / "images"
    images.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", images)
    yield images
    run("umount", "-l", images)


def test_no_space_pauses_and_space_resumes(quantavirt, root, small_root, vm):
    script = "dd if=/dev/urandom of=/dev/vda bs=64k count=256 oflag=direct && sha256sum < /dev/vda"
    web = vm("web", [disk("a", "qcow2", size="16M")], script)
    info = web.wait_state("paused")
    assert info["reason"] == "disk a: No space left on device"
    # Resumed by hand while there is no space: it tries, and stops again.
    web("resume")
    web.wait_state("paused", 20)
    run("mount", "-o", "remount,size=48m", small_root)
    web.wait_state("stopped")
    output = web.result().check().output
    out = root.parent / "a.raw"
    quantavirt("storage", "export", "a", out, "--format", "raw")
    assert run("sha256sum", out).stdout.split()[0] in output


def test_an_io_error_pauses_or_is_reported_as_asked(quantavirt, root, vm):
    """Errors other than "no space": here, a limit on the size of files, which takes effect at once."""
    script = ("echo up; while [ \"$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 2)\" != go ]; do "
              "sleep 0.1; done; dd if=/dev/zero of=/dev/vdb bs=64k seek=32 count=4 oflag=direct; echo b $?; "
              "dd if=/dev/urandom of=/tmp/f bs=64k count=64 2>/dev/null; "
              "dd if=/tmp/f of=/dev/vda bs=64k oflag=direct; echo a $?; sha256sum < /tmp/f")
    web = vm("web", [disk("a", "raw", size="4M", on_error="stop"), disk("b", "raw", size="4M", on_error="report")], script)
    web.wait_console("up")
    io = web.info()["io_pid"]
    unlimited = resource.prlimit(io, resource.RLIMIT_FSIZE)
    resource.prlimit(io, resource.RLIMIT_FSIZE, (1 << 20, unlimited[1]))
    with open(root / "images/b.raw", "r+b") as f:  # what the guest waits for
        f.write(b"go")
        os.fsync(f.fileno())
    info = web.wait_state("paused")
    assert info["reason"] == "disk a: File too large"
    web("resume")
    web.wait_state("paused", 20)
    resource.prlimit(io, resource.RLIMIT_FSIZE, unlimited)
    web("resume")
    web.wait_state("stopped")
    output = web.result().check().output
    assert "b 1" in output and "a 0" in output
    written = hashlib.sha256((root / "images/a.raw").read_bytes()).hexdigest()
    assert written in output


def test_linked_clones_are_disks(quantavirt, root, vm, qemu_img, disk_dir):
    """Two levels deep; what the guest writes is the clone's, and a backing file that is only named in an image is not
    followed."""
    source = disk_dir / "base.raw"
    source.write_bytes(b"base" + bytes(1020) + b"more" * 256 + bytes((1 << 20) - 2048))
    quantavirt("storage", "import", "--name", "base", source, "--format", "raw")
    for name, below in (("one", "base"), ("two", "one")):
        quantavirt("storage", "create", "--name", name, "--format", "qcow2", "--backing", below)
    web = vm("web", [disk("two")], "head -c 4 /dev/vda; echo; dd if=/dev/vda bs=1k skip=1 count=1 2>/dev/null | sha256sum; "
                                   "echo -n guest | dd of=/dev/vda bs=1k seek=5 conv=fsync,notrunc 2>/dev/null")
    said = web.result().check().output.split()
    assert said[0] == "base" and said[1] == hashlib.sha256(b"more" * 256).hexdigest()
    assert (root / "images/base.raw").read_bytes() == source.read_bytes()
    quantavirt("storage", "export", "two", disk_dir / "two.raw", "--format", "raw")
    assert (disk_dir / "two.raw").read_bytes()[5120:5125] == b"guest"
    assert qemu_img("check", "--output=json", root / "images/two.qcow2")["check-errors"] == 0
    foreign = disk_dir / "foreign.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", source, "-F", "raw", foreign)
    other = Vm(quantavirt, root, "other", [{"type": "virtio-blk", "path": str(foreign), "format": "qcow2"}], "true").create()
    assert "base.raw\" is not open" in other("start", code=2).stderr


def test_guest_sees_the_new_size(quantavirt, root, vm):
    web = vm("web", [disk("a", "qcow2", size="1M"), disk("b", "raw", size="1M")],
             "echo up; for d in vda vdb; do while [ $(cat /sys/block/$d/size) = 2048 ]; do sleep 0.1; done; "
             "cat /sys/block/$d/size; done; echo x | dd of=/dev/vda bs=1k seek=2047 conv=fsync")
    web.wait_console("up")
    assert "images only grow" in quantavirt("storage", "resize", "a", "--size", "512K", code=2).stderr
    quantavirt("storage", "resize", "a", "--size", "2M")
    quantavirt("storage", "resize", "b", "--size", "3M")
    assert web.result().check().output.split()[1:3] == ["4096", "6144"]
    assert quantavirt("storage", "info", "a", "--json").json()["virtual_size"] == 2 << 20


def test_snapshot_of_an_image_in_use_is_deleted(quantavirt, root, vm, qemu_img):
    """Beside the guest, which goes on; its disk grows although it has snapshots."""
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "8G", "--prealloc", "metadata")
    for name in ("one", "two"):
        quantavirt("storage", "snapshot", "create", "a", "--name", name)
    web = vm("web", [disk("a")], COUNTER)
    web.wait_count()
    assert "no snapshot" in quantavirt("storage", "snapshot", "delete", "a", "--name", "none", code=3).stderr
    quantavirt("storage", "snapshot", "delete", "a", "--name", "one")
    assert [s["name"] for s in quantavirt("storage", "snapshot", "list", "a", "--json").json()] == ["two"]
    quantavirt("storage", "resize", "a", "--size", "9G")
    result = quantavirt("storage", "snapshot", "delete", "a", "--name", "two", "--rate", "8G", "--json")
    assert result.json()["snapshots"] == []
    web.wait_count(5)
    web("stop")
    found = qemu_img("check", "--output=json", root / "images/a.qcow2")
    assert found.get("leaks", 0) == found.get("corruptions", 0) == 0


def test_images_in_use_are_compacted(quantavirt, root, vm, qemu_img):
    """Beside the guest, which goes on writing to all."""
    quantavirt("storage", "create", "--name", "a", "--format", "qcow2", "--size", "64M")
    quantavirt("storage", "create", "--name", "b", "--format", "raw", "--size", "32M", "--prealloc", "full")
    image = root / "images/a.qcow2"
    qemu_img("bench", "-q", "-w", "-f", "qcow2", "-c", "1024", "-s", "65536", "-S", "65536", "--pattern", "1", image)
    ones = root / "ones"
    ones.write_bytes(b"\1" * (64 << 20))
    quantavirt("storage", "import", "--name", "c", ones, "--source-format", "raw", "--format", "encrypted")
    web = vm("web", [disk("a"), disk("b", "raw"), disk("c", "encrypted")],
             "for d in vda vdc; do dd if=/dev/zero of=/dev/$d bs=1M count=30 conv=fsync; done; echo filled; i=0; while :; do "
             "for d in vda vdb vdc; do echo pattern | dd of=/dev/$d bs=4k seek=$((5000 + i % 100)) conv=fsync 2>/dev/null; "
             "done; i=$((i + 1)); echo count $i; done")
    web.wait_console("filled")
    web.wait_count()
    result = quantavirt("storage", "compact", "a", "--json").json()
    assert result["bytes_after"] < result["bytes_before"] - (20 << 20), result
    result = quantavirt("storage", "compact", "b", "--json").json()
    assert result["bytes_before"] >= 32 << 20 and result["bytes_after"] < 4 << 20, result
    result = quantavirt("storage", "compact", "c", "--json").json()
    assert result["bytes_after"] < result["bytes_before"] - (20 << 20), result
    web.wait_count(5)
    web("stop", "--force")
    found = qemu_img("check", "--output=json", image)
    assert found.get("leaks", 0) == found.get("corruptions", 0) == 0
    raw = root / "content"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    data = raw.read_bytes()
    assert not any(data[:5000 * 4096]) and data[5000 * 4096:][:8] == b"pattern\n"
    assert data[31 << 20:63 << 20] == b"\1" * (32 << 20)
    raw.unlink()
    result = quantavirt("storage", "check", "c", "--data", "--json").json()
    assert result["clean"] and result["corruptions"] == result["leaks"] == 0
    quantavirt("storage", "export", "c", raw, "--format", "raw")
    data = raw.read_bytes()
    assert not any(data[:5000 * 4096]) and data[5000 * 4096:][:8] == b"pattern\n"
    assert data[31 << 20:] == b"\1" * (33 << 20)


@pytest.mark.parametrize("index", [None, 1])
def test_bios_boots_a_disk(quantavirt, root, index):
    disks = [disk("a", "raw", size="1M"), disk("b", "raw", size="1M")]
    if index is not None:
        disks[index]["boot_index"] = 5
    web = Vm(quantavirt, root, "web", disks).create()
    bootdisk.make_bios(root / "images" / f"{'ab'[index or 0]}.raw")
    web("start")
    web.wait_console(bootdisk.MESSAGE, 60)
    web("stop", "--force")


def test_uefi_starts_the_firmware_and_keeps_its_variables(quantavirt, root):
    web = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M")], firmware="uefi").create().start()
    web.wait_console("BdsDxe", 90)
    web("stop", "--force")
    assert (root / "vms/web/uefi-vars.fd").stat().st_size > 100_000


MANY = """i=0; while [ $(ls -d /sys/block/vd* | wc -l) -lt 256 ] && [ $i -lt 600 ]; do sleep 0.2; i=$((i+1)); done
ok=0; for d in /sys/block/vd*; do b=/dev/${d##*/}; s=$(cat $d/serial)
printf "%-511s\\n" "this is $s" | dd of=$b bs=512 oflag=direct conv=fsync 2>/dev/null || continue
[ "$(dd if=$b bs=512 count=1 iflag=direct 2>/dev/null | cut -d' ' -f3)" = "$s" ] && ok=$((ok+1)); done; echo "used $ok" """


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cpus", [1, 4])
def test_guest_uses_256_disks(quantavirt, root, vm, cpus):
    web = vm("web", [disk(f"i{i}", "raw", size="64K", serial=f"s{i}") for i in range(256)], MANY, cpus=cpus,
             memory="512M")
    assert web.result(800).check().output.split() == ["used", "256"]
    for i in range(256):
        assert (root / f"images/i{i}.raw").read_bytes().startswith(b"this is s%d " % i)


def test_failed_start_leaves_nothing(quantavirt, root):
    web = Vm(quantavirt, root, "web", [disk("a", "raw", size="1M")], "true")
    web.config["boot"]["kernel"] = str(root / "none")
    web.create()
    assert "web: boot.kernel:" in web("start", code=1).stderr
    web("delete")
    web.set_script("true")
    web.config["boot"]["kernel"] = str(root.parent / "web.json")  # there, but no kernel
    web.create()
    assert "web: QEMU: " in web("start", code=1).stderr
    web("delete")
    web.config.update(storage=[disk("a", type="ahci"), disk("b", "raw", size="1M", type="ide")])
    del web.config["boot"]
    web.create()
    assert "boots IDE drives before AHCI ports" in web("start", code=1).stderr
    assert web.info()["state"] == "created"
    assert not processes_naming(root)
    assert not list((root / "run/vm/web").glob("*"))
    quantavirt("storage", "check", "a")  # its lock is free


def test_console_on_a_terminal(quantavirt, root, vm):
    web = vm("web", [disk("a", "raw", size="1M")], "echo up; head -n 1 < /dev/ttyS0; echo got it")
    web.wait_console("up")
    master, slave = os.openpty()
    with subprocess.Popen([paths.QUANTAVIRT, "--root", root, "vm", "console", "web"], stdin=slave, stdout=slave,
                          stderr=subprocess.DEVNULL) as console:
        time.sleep(0.3)
        os.write(master, b"typed\r")
        web.wait_console("got it", 30)
        os.write(master, b"\x1d")
        assert console.wait(10) == 0 or web.info()["state"] == "stopped"
    os.close(master)
    os.close(slave)
    assert "typed" in web.result().check().output
