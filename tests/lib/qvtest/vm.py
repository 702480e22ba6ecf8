# SPDX-License-Identifier: Apache-2.0
"""VMs under test: configurations, what their console says, waiting for states."""
import json
import subprocess
import time
from pathlib import Path

from . import guest, paths
from .command import run

POWERBUTTON = paths.REPO / "tests/guest/powerbutton.c"

# A guest's script: writes a number to sector 0 of /dev/vda, flushes, says it; for ever, until the power
# button. dd's conv=fsync ends in a FLUSH.
COUNTER = """powerbutton & i=0
while :; do i=$((i+1)); printf '%08d\\n' $i | dd of=/dev/vda bs=512 conv=fsync,notrunc 2>/dev/null && echo "count $i"
sleep 0.05; done"""


def powerbutton():
    """A static program for the guest that powers off when the button is pressed."""
    program = paths.BUILD / "guest-cache/powerbutton"
    if not program.exists() or program.stat().st_mtime < POWERBUTTON.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        run("cc", "-static", "-O1", "-o", program.with_suffix(".new"), POWERBUTTON)
        program.with_suffix(".new").rename(program)
    return program


def initramfs(flavour="cloud", files=()):
    return guest.initramfs(flavour, files=[f"{powerbutton()}:/usr/bin/powerbutton", *files], modules=["button"])


def disk(path, fmt=None, **more):
    """An entry of "storage"."""
    entry = {"type": "virtio-blk", "path": str(path), **more}
    return {**entry, "format": fmt} if fmt else entry


class Vm:
    """A VM of the root that the `quantavirt` fixture works in."""

    def __init__(self, quantavirt, root, name, disks, script=None, *, cpus=1, memory="256M", extra="", **more):
        self.quantavirt, self.root, self.name = quantavirt, Path(root), name
        self.config = {"name": name, "cpu": {"count": cpus}, "memory": {"size": memory}, "storage": disks, **more}
        if script is not None:
            # With many disks the script itself waits for them.
            self.set_script(script, [f"/dev/{n}" for n in ("vda", "vdb")[:len(disks)]] if len(disks) < 3 else (), extra)

    def set_script(self, script, wait=(), extra="", flavour="cloud", files=()):
        self.config["boot"] = {"kernel": str(guest.kernel(flavour)), "initrd": str(initramfs(flavour, files)),
                               "cmdline": guest.cmdline(script, wait, extra=extra)}

    def create(self, code=0):
        path = self.root.parent / f"{self.name}.json"
        path.write_text(json.dumps(self.config))
        result = self.quantavirt("vm", "create", "--config", path, code=code)
        return self if code == 0 else result

    def __call__(self, command, *args, code=0, **kwargs):
        return self.quantavirt("vm", command, self.name, *args, code=code, **kwargs)

    def start(self):
        self("start")
        return self

    def info(self):
        return self("info", "--json").json()

    def log(self):
        path = self.root / "vms" / self.name / "vm.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def console(self):
        """What the guest has said so far; read where it is kept, which does not disturb anyone."""
        folder = self.root / "vms" / self.name
        parts = [folder / "console.log.1", folder / "console.log"]
        return "".join(p.read_text(errors="replace") for p in parts if p.exists()).replace("\r", "")

    def wait(self, what, condition, timeout=90):
        """Until condition() is true; returns its value."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"vm {self.name}: waited {timeout} s for {what}\n{self.info()}\n{self.log()[-3000:]}\n"
                             f"{self.console()[-3000:]}")

    def wait_console(self, text, timeout=90):
        self.wait(f"{text!r} on the console", lambda: text in self.console(), timeout)

    def wait_state(self, state, timeout=90):
        """Its info, once it is in that state."""
        def reached():
            info = self.info()
            return info if info["state"] == state else None
        return self.wait(f"state {state}", reached, timeout)

    def count(self):
        """The last number that COUNTER said."""
        lines = [line for line in self.console().splitlines() if line.startswith("count ")]
        return int(lines[-1].split()[1]) if lines else 0

    def wait_count(self, more=3, timeout=90):
        """Until COUNTER has counted on by that many."""
        want = self.count() + more
        self.wait(f"count {want}", lambda: self.count() >= want, timeout)

    def result(self, timeout=120):
        """After the guest's script has ended and the guest is off: its GuestResult."""
        self.wait_state("stopped", timeout)
        return guest.GuestResult(self.console())


def alive(pid):
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_gone(*pids, timeout=20):
    end = time.monotonic() + timeout
    while any(alive(p) for p in pids):
        if time.monotonic() > end:
            table = subprocess.run(["ps", "-o", "pid,ppid,stat,args"], capture_output=True, text=True, check=False).stdout
            raise AssertionError(f"of {pids} still there: {[p for p in pids if alive(p)]}\n{table}")
        time.sleep(0.02)
