# SPDX-License-Identifier: Apache-2.0
"""An installation: what `make install` lays down, and that it works where it stands."""
import shutil
import subprocess

import pytest

from qvtest import paths
from qvtest.command import Daemon, run


@pytest.fixture
def installed(disk_dir):
    """`quantavirt` of an installation under a folder of its own, as a packager's DESTDIR."""
    meson = shutil.which("meson")
    if meson is None or not (paths.BUILD / "build.ninja").exists():
        pytest.skip("only a build folder can be installed")
    done = subprocess.run([meson, "install", "-C", paths.BUILD, "--no-rebuild", "--destdir", disk_dir / "i"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = list((disk_dir / "i").rglob("bin/quantavirt"))
    assert len(found) == 1
    return found[0]


def test_it_is_complete_and_uses_its_own_helpers(installed, root, disk_dir):
    prefix = installed.parents[1]
    assert sorted(p.name for p in (prefix / "share/man/man1").iterdir())[0].startswith("quantavirt")
    assert (prefix / "share/bash-completion/completions/quantavirt.bash").is_file() or \
        (prefix / "share/bash-completion/completions/quantavirt").is_file()
    assert run(installed, "--version").stdout.startswith("quantavirt ")
    run(installed, "--root", root, "storage", "create", "--name", "a", "--format", "qcow2", "--size", "8M")
    for protocol in ("vhost-user-blk", "nbd"):
        daemon = Daemon(installed, "--root", root, "storage", "serve", "a", "--protocol", protocol, "--socket",
                        disk_dir / "s")
        try:
            children = open(f"/proc/{daemon.pid}/task/{daemon.pid}/children", encoding="ascii").read().split()
            argv = [open(f"/proc/{c}/cmdline", encoding="utf-8").read() for c in children]
            exes = [str(p) for c in children for p in [(paths.Path(f"/proc/{c}/exe")).resolve()]]
            assert any(str(prefix) in text for text in argv + exes), (argv, exes)
        finally:
            assert daemon.stop() == 0
