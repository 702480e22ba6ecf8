#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Holds every #include under src/ against layers.toml.

A file may include headers of its own folder, of folders that its folder uses (directly or through
others), and of base/. `x_int.h` belongs to its own folder; OpenSSL to crypto/.
"""
import re
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.M)
GENERATED = {"qv_config.h"}  # in the build folder; for all
FOR_ALL = "base"


def closure(layers):
    """folder -> every folder it may include from, itself among them."""
    def reach(folder, path):
        if folder in path:
            raise ValueError(f"layers.toml: {' -> '.join([*path, folder])} is a circle")
        out = {folder, FOR_ALL}
        for used in layers[folder]:
            if used not in layers:
                raise ValueError(f"layers.toml: {folder} uses {used}, which has no line of its own")
            out |= reach(used, [*path, folder])
        return out

    return {folder: reach(folder, []) for folder in layers}


def folder_of(path, layers):
    """The layer that a path relative to src/ lies in: the longest folder name that fits, or None."""
    parts = path.parts[:-1]
    for n in range(len(parts), 0, -1):
        if "/".join(parts[:n]) in layers:
            return "/".join(parts[:n])
    return None


def check_include(kind, target, folder, source_dir, src, layers, allowed):
    """What is wrong with one include, or None."""
    if kind == "<":
        if target.startswith("openssl/") and folder != "crypto":
            return "only crypto/ may include OpenSSL"
        return None
    if target in GENERATED:
        return None
    here = (source_dir / target).resolve()
    path = Path(target)
    if here.is_relative_to(src) and here.exists():
        path = here.relative_to(src)
    elif not (src / target).exists():
        return "no such file under src/"
    owner = folder_of(path, layers)
    if owner is None:
        return "lies in no folder of layers.toml"
    if owner not in allowed[folder]:
        return f"{folder}/ does not use {owner}/"
    if path.name.endswith("_int.h") and owner != folder:
        return f"is internal to {owner}/"
    return None


def check_tree(repo):
    """Complaints about all of src/, one string each."""
    src = (repo / "src").resolve()
    layers = tomllib.loads((repo / "layers.toml").read_text())["layers"]
    allowed = closure(layers)
    bad = []
    for source in sorted([*src.rglob("*.c"), *src.rglob("*.h")]):
        rel = source.relative_to(src)
        folder = folder_of(rel, layers)
        if folder is None:
            bad.append(f"src/{rel}: lies in no folder of layers.toml")
            continue
        text = source.read_text(errors="replace")
        for match in INCLUDE.finditer(text):
            wrong = check_include(match[1], match[2], folder, source.parent, src, layers, allowed)
            if wrong:
                line = text.count("\n", 0, match.start(2)) + 1
                bad.append(f"src/{rel}:{line}: {match[2]}: {wrong}")
    return bad


def main():
    try:
        bad = check_tree(Path(sys.argv[1]) if len(sys.argv) > 1 else REPO)
    except (OSError, ValueError, KeyError) as error:
        bad = [str(error)]
    for line in bad:
        print(line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
