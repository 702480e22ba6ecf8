# SPDX-License-Identifier: Apache-2.0
"""Image locks: QEMU and QuantaVirt keep each other out, both ways."""
import os
import signal
import time

import pytest

from qvtest import paths
from qvtest.command import Daemon, run

FORMATS = ["raw", "qcow2"]


def storage_daemon(form, path, socket, writable):
    """A qemu-storage-daemon that has the image open. Ready when its socket is there."""
    mode = "on" if writable else "off"
    daemon = Daemon(paths.engine_program("qemu-storage-daemon"),
                    "--blockdev", f"driver=file,filename={path},node-name=f,locking=on,read-only={'off' if writable else 'on'}",
                    "--blockdev", f"driver={form},file=f,node-name=n,read-only={'off' if writable else 'on'}",
                    "--nbd-server", f"addr.type=unix,addr.path={socket}",
                    "--export", f"type=nbd,id=e,node-name=n,writable={mode}", ready=None)
    end = time.monotonic() + 10
    while not socket.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)  # the export, and with it the lock, comes after the socket
    assert daemon.process.poll() is None, daemon.stop()
    return daemon


@pytest.fixture(params=FORMATS)
def image(request, quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", request.param, "--size", "4M")
    return request.param, root / f"images/a.{request.param}"


def test_a_writing_qemu_keeps_us_out(quantavirt, image, disk_dir):
    form, path = image
    daemon = storage_daemon(form, path, disk_dir / "nbd", True)
    try:
        for args in (["resize", "a", "--size", "8M"], ["export", "a", disk_dir / "x"], ["check", "a"], ["delete", "a"],
                     ["convert", "a", "--target-format", "raw", "--output", "b"], ["unlock", "a", "--force"]):
            result = quantavirt("storage", *args, code=4)
            assert result.stderr.startswith("quantavirt: a: in use by another program"), result
        assert "Locked By:    another program" in quantavirt("storage", "info", "a").stdout
        info = quantavirt("storage", "info", "a", "--json").json()
        assert info["locked"] is True and info["lock_owner"] is None
    finally:
        daemon.stop()
    quantavirt("storage", "resize", "a", "--size", "8M")


def test_a_reading_qemu_lets_us_read(quantavirt, image, disk_dir):
    form, path = image
    daemon = storage_daemon(form, path, disk_dir / "nbd", False)
    try:
        quantavirt("storage", "export", "a", disk_dir / "x")
        quantavirt("storage", "check", "a")
        quantavirt("storage", "resize", "a", "--size", "8M", code=4)
        quantavirt("storage", "delete", "a", code=4)
    finally:
        daemon.stop()


def qemu_write(form, path):
    return run(paths.engine_program("qemu-io"), "-f", form, "-c", "write 0 4k", path, code=None)


def test_what_we_serve_qemu_cannot_open(quantavirt, image, serve):
    form, path = image
    daemon = serve("a", "vhost-user-blk")
    result = qemu_write(form, path)
    assert result.code != 0 and 'Failed to get "write" lock' in result.stderr, result
    owner = quantavirt("storage", "info", "a", "--json").json()["lock_owner"]
    assert owner["kind"] == "serve" and owner["mode"] == "write" and owner["host"] == os.uname().nodename
    result = quantavirt("storage", "resize", "a", "--size", "8M", code=4)
    assert result.stderr == (f"quantavirt: a: in use by serve {owner['name']} (pid {owner['pid']} on {owner['host']})\n")
    assert f"Locked By:    serve {owner['name']} (pid {owner['pid']} on" in quantavirt("storage", "info", "a").stdout
    quantavirt("storage", "unlock", "a", "--force", code=4)
    assert daemon.stop() == 0
    assert qemu_write(form, path).code == 0
    quantavirt("storage", "resize", "a", "--size", "8M")


def test_what_we_serve_to_read_qemu_may_read(image, serve):
    form, path = image
    serve("a", "vhost-user-blk", "--read-only")
    assert qemu_write(form, path).code != 0
    assert run(paths.engine_program("qemu-io"), "-r", "-f", form, "-c", "read 0 4k", path).code == 0


def test_a_killed_server_locks_nothing(quantavirt, image, serve):
    form, path = image
    daemon = serve("a", "vhost-user-blk")
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(10)
    end = time.monotonic() + 10  # its helper notices
    while quantavirt("storage", "info", "a", "--json").json()["locked"] and time.monotonic() < end:
        time.sleep(0.05)
    assert qemu_write(form, path).code == 0
    assert "Locked" not in quantavirt("storage", "info", "a").stdout
