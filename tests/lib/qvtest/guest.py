# SPDX-License-Identifier: Apache-2.0
"""The test guest: Debian's kernel with a small initramfs that runs one script and powers off.

tests/guest/make-initramfs says what the guest does and which kernel parameters it takes.
"""
import base64
import fcntl
import hashlib
import os
import re
import subprocess
from pathlib import Path

from . import paths
from .command import run

MAKE_INITRAMFS = paths.REPO / "tests/guest/make-initramfs"
SCRIPT_MAX = 1200  # bytes that fit on the kernel command line as base64, beside the other parameters


class GuestResult:
    """What the guest's script printed, and its exit status; `console` is everything on the serial line."""

    def __init__(self, console):
        self.console = console
        # The console turns \n into \r\n.
        text = console.replace("\r", "")
        status = re.search(r"^==QV-STATUS:(\d+)==$", text, re.M)
        output = re.search(r"^==QV-BEGIN==\n(.*?)\n?^==QV-END==$", text, re.M | re.S)
        self.status = int(status.group(1)) if status else None
        self.output = output.group(1) if output else None

    def check(self):
        """Fails unless the script ran to its end and exited 0. Returns self."""
        if self.status is None:
            raise AssertionError(f"the guest did not finish; its console:\n{self.console[-4000:]}")
        if self.status != 0:
            raise AssertionError(f"the guest's script exited {self.status}; its console:\n{self.console[-4000:]}")
        return self


def kernel(flavour="cloud"):
    """vmlinuz of a flavour: `cloud` boots in two seconds without hardware virtualization but has no
    AHCI driver; `full` has every storage driver."""
    kernels = paths.component("kernels")
    if kernels is None:
        raise FileNotFoundError("no test kernel; run scripts/setup")
    return kernels / flavour / "vmlinuz"


def initramfs(flavour="cloud", files=(), modules=(), fio=False):
    """An initramfs for that kernel. Made once for each set of contents, then taken from the build folder.

    files: programs or files of this machine to include (`SRC` or `SRC:DEST`), libraries come along
    modules: further kernel modules, beside the common storage drivers
    """
    vmlinuz = kernel(flavour)
    argv = [MAKE_INITRAMFS, "-r", vmlinuz.parent, "-F", paths.system_program("fio") if fio else "none"]
    for f in files:
        argv += ["-f", f]
    if modules:
        argv += ["-M", " ".join(modules)]
    key = hashlib.sha256(MAKE_INITRAMFS.read_bytes())
    for f in [vmlinuz, *(Path(str(f).split(":")[0]) for f in files)]:
        key.update(f"{f} {f.stat().st_mtime_ns} {f.stat().st_size}\n".encode())
    key.update("\0".join(map(str, argv)).encode())
    cache = paths.BUILD / "guest-cache"
    cache.mkdir(parents=True, exist_ok=True)
    out = cache / f"initrd-{flavour}-{key.hexdigest()[:16]}.gz"
    with open(cache / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            run(*argv, "-o", out.with_suffix(".new"), timeout=120)
            out.with_suffix(".new").rename(out)
    return out


def cmdline(script, wait=(), timeout=None, extra=""):
    """Kernel command line that makes the guest run a shell script and power off.

    wait: device nodes the guest waits for first. timeout: seconds after which it kills the script.
    """
    if len(script) > SCRIPT_MAX:
        raise ValueError(f"script of {len(script)} bytes; {SCRIPT_MAX} fit on the kernel command line")
    parts = ["console=ttyS0", "quiet", "panic=-1", f"qv.run64={base64.b64encode(script.encode()).decode()}"]
    if wait:
        parts.append("qv.wait=" + ",".join(wait))
    if timeout:
        parts.append(f"qv.timeout={timeout}")
    return " ".join([*parts, *([extra] if extra else [])])


def accelerator():
    """kvm where the processor and the kernel really offer it, else tcg."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return "kvm" if re.search(r"\b(vmx|svm)\b", flags) and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def boot(script, qemu_args=(), *, flavour="cloud", initrd=None, wait=(), memory="512M", cpus=1, timeout=120, qemu=None,
         machine="q35", started=None, extra=""):
    """Boots the guest in a plain QEMU, without QuantaVirt's VM engine; for disks given by `qemu_args`.

    Memory is a shared memfd, as vhost-user disks need. A guest that hangs is killed after `timeout`
    seconds and comes back without a status, so `.check()` it. started: called with QEMU's Popen.
    extra: further kernel parameters.
    """
    argv = [qemu or paths.engine_program("qemu-system-x86_64"), "-machine", f"{machine},memory-backend=mem",
            "-accel", accelerator(), "-m", memory, "-smp", cpus,
            "-object", f"memory-backend-memfd,id=mem,size={memory},share=on",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-kernel", kernel(flavour), "-initrd", initrd or initramfs(flavour),
            "-append", cmdline(script, wait, extra=extra), *qemu_args]
    with subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as qemu_process:
        try:
            if started:
                started(qemu_process)
            out, _ = qemu_process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            qemu_process.kill()
            out, _ = qemu_process.communicate()
    return GuestResult(out.decode(errors="replace"))
