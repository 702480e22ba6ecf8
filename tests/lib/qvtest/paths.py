# SPDX-License-Identifier: Apache-2.0
"""Where the programs under test, the engine and the test kernels are."""
import json
import os
import shutil
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get("QUANTAVIRT_BUILD", REPO / "build")).resolve()
QUANTAVIRT = BUILD / "quantavirt"


def _configured_prefix():
    """The private prefix this build was configured with; meson.options says what it is."""
    try:
        options = json.loads((BUILD / "meson-info/intro-buildoptions.json").read_text())
        return [Path(o["value"]) for o in options if o["name"] == "private_prefix"]
    except OSError:
        return [Path("/opt/quantavirt")]


def component(name):
    """The folder of something that scripts/setup laid down, or None."""
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    for prefix in [*_configured_prefix(), Path(data_home) / "quantavirt"]:
        if (prefix / name).is_dir():
            return prefix / name
    return None


def system_program(name):
    """The system's own NAME; which may be older than what QuantaVirt needs."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise FileNotFoundError(f"{name} is not installed; run scripts/setup")
    return Path(found)


def engine_program(name):
    """NAME (qemu-img, qemu-system-x86_64, ...) as QuantaVirt uses it: of the engine, else the system's."""
    engine = component("engine")
    return engine / "bin" / name if engine else system_program(name)


def both_programs(name):
    """The engine's and the system's NAME; one of them where they are the same."""
    return list(dict.fromkeys([engine_program(name), system_program(name)]))
