# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end and interop tests."""
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from qvtest import paths
from qvtest.command import Daemon, processes_naming, run

# Short names: the path of a UNIX socket may have 107 bytes.
DISK = Path(os.environ.get("QUANTAVIRT_TEST_DISK", "/var/tmp"))
TMPFS = Path(os.environ.get("QUANTAVIRT_TEST_TMPFS", "/dev/shm"))
KEEP = bool(os.environ.get("QUANTAVIRT_TEST_KEEP"))


def _folder(parent):
    folder = Path(tempfile.mkdtemp(prefix="qv-", dir=parent))
    yield folder
    left = processes_naming(folder)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if KEEP:
        print(f"kept {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"processes {left} were still running in {folder} after the test"


@pytest.fixture
def disk_dir():
    """An empty folder on a disk file system. Processes left running in it fail the test."""
    yield from _folder(DISK)


@pytest.fixture
def tmpfs_dir():
    """An empty folder in memory."""
    yield from _folder(TMPFS)


@pytest.fixture(params=["disk", "tmpfs"])
def any_dir(request):
    """An empty folder; the test runs once on disk and once in memory."""
    return request.getfixturevalue(f"{request.param}_dir")


@pytest.fixture
def root(disk_dir):
    """The root under which `quantavirt` keeps everything (--root)."""
    folder = disk_dir / "r"
    folder.mkdir()
    return folder


@pytest.fixture
def quantavirt(root):
    """quantavirt("storage", "info", "a", code=3): runs a command under `root`, returns its Result.

    VMs that the test leaves running are stopped by force.
    """

    def call(*args, code=0, timeout=60, **kwargs):
        return run(paths.QUANTAVIRT, "--root", root, *args, code=code, timeout=timeout, **kwargs)

    yield call
    if any((root / "configs").glob("*")):
        for vm in call("vm", "list", "--json").json():
            if vm["state"] not in ("created", "stopped"):
                call("vm", "stop", vm["name"], "--force", code=None)
        end = time.monotonic() + 5  # what a stopped VM still has to put away
        while processes_naming(root) and time.monotonic() < end:
            time.sleep(0.05)


@pytest.fixture
def serve(root):
    """serve(IMAGE, protocol, options...): a running `quantavirt storage serve` that is ready, as a Daemon
    with `.socket`. Stopped at the end of the test, and must then exit 0."""
    daemons = []

    def start(image, protocol, *options, **kwargs):
        socket = root.parent / f"s{len(daemons)}"
        daemon = Daemon(paths.QUANTAVIRT, "--root", root, "storage", "serve", image, "--protocol", protocol,
                        "--socket", socket, *options, **kwargs)
        daemon.socket = socket
        daemons.append(daemon)
        return daemon

    yield start
    codes = [d.stop() for d in daemons if d.process.poll() is None]
    assert not any(codes), f"serve exited {codes}"


def _qemu_img(program):
    def call(*args, code=0, **kwargs):
        result = run(program, *args, code=code, **kwargs)
        return json.loads(result.stdout) if "--output=json" in args else result

    return call


@pytest.fixture
def qemu_img():
    """qemu_img("check", "--output=json", FILE): the engine's qemu-img; its JSON where asked for, else a Result."""
    return _qemu_img(paths.engine_program("qemu-img"))


@pytest.fixture
def qemu_img_system():
    """The system's qemu-img, which may be an older version."""
    return _qemu_img(paths.system_program("qemu-img"))
