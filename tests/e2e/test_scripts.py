# SPDX-License-Identifier: Apache-2.0
"""The project's own scripts: a check that cannot fail would be worth nothing."""
import time

import pytest

from qvtest import paths
from qvtest.command import run

LAYERS = """
[layers]
base = []
io = []
block = ["io"]
image = ["block"]
crypto = []
"""


@pytest.fixture
def layer_complaint(disk_dir):
    """layer_complaint(FILE, INCLUDE): what check_layers says of a small tree whose FILE has that one include."""
    for header in ("base/error.h", "io/thread.h", "io/loop_int.h", "block/node.h", "image/image.h", "crypto/aead.h"):
        (disk_dir / "src" / header).parent.mkdir(parents=True, exist_ok=True)
        (disk_dir / "src" / header).write_text("/* nothing */\n")
    (disk_dir / "layers.toml").write_text(LAYERS)

    def check(file, include):
        (disk_dir / "src" / file).parent.mkdir(parents=True, exist_ok=True)
        (disk_dir / "src" / file).write_text(f"/* one */\n#include {include}\n")
        result = run("/usr/bin/python3", paths.REPO / "scripts/check_layers.py", disk_dir, code=None)
        assert result.code == (1 if result.stdout else 0), result
        return result.stdout.strip()

    return check


@pytest.mark.parametrize("file, include", [
    ("block/a.c", '"block/node.h"'),
    ("block/a.c", '"node.h"'),
    ("image/a.c", '"block/node.h"'),
    ("image/a.c", '"io/thread.h"'),  # through block
    ("io/a.c", '"io/loop_int.h"'),
    ("io/a.c", '"base/error.h"'),
    ("io/a.c", '"qv_config.h"'),
    ("crypto/a.c", "<openssl/evp.h>"),
])
def test_layers_allow(layer_complaint, file, include):
    assert layer_complaint(file, include) == ""


@pytest.mark.parametrize("file, include, wrong", [
    ("io/a.c", '"block/node.h"', "io/ does not use block/"),
    ("io/sub/a.c", '"../../block/node.h"', "io/ does not use block/"),
    ("base/a.c", '"io/thread.h"', "base/ does not use io/"),
    ("block/a.c", '"io/loop_int.h"', "is internal to io/"),
    ("block/a.c", '"block/gone.h"', "no such file under src/"),
    ("block/a.c", "<openssl/evp.h>", "only crypto/ may include OpenSSL"),
    ("nowhere/a.c", '"base/error.h"', "lies in no folder of layers.toml"),
])
def test_layers_refuse(layer_complaint, file, include, wrong):
    said = layer_complaint(file, include)
    assert said.startswith(f"src/{file}:") and said.endswith(wrong), said


def test_layers_refuse_a_circle(layer_complaint, disk_dir):
    (disk_dir / "layers.toml").write_text(LAYERS.replace("io = []", 'io = ["image"]'))
    assert "is a circle" in layer_complaint("io/a.c", '"base/error.h"')


def test_setup_is_quick_when_all_is_there():
    started = time.monotonic()
    run(paths.REPO / "scripts/setup", "--check")
    assert time.monotonic() - started < 3
