# SPDX-License-Identifier: Apache-2.0
"""The command line itself: help at every level, mistakes, manual pages, completion."""
import subprocess

import pytest

from qvtest import paths
from qvtest.command import run


def commands():
    """(group, command) of everything the program offers, as its own help lists it."""
    found = []
    for group in listed(run(paths.QUANTAVIRT, "--help").stdout, "Groups:"):
        text = run(paths.QUANTAVIRT, group, "--help").stdout
        found += [(group, command) for command in listed(text, "Commands:")]
    return found


def listed(text, heading):
    lines = text.split(heading + "\n")[1].split("\n\n")[0].splitlines()
    return [line[2:20].strip() for line in lines if line.startswith("  ") and line[2] != " "]


def test_help_at_every_level():
    assert ("storage", "create") in commands()
    for group, command in commands():
        text = run(paths.QUANTAVIRT, group, *command.split(), "--help").stdout
        assert text.startswith(f"Usage: quantavirt {group} {command}")
        assert "Global options:" in text


def test_every_command_is_in_the_manual_and_the_completion():
    completion = (paths.BUILD / "quantavirt.bash").read_text()
    for group, command in commands():
        page = (paths.BUILD / f"quantavirt-{group}.1").read_text()
        assert f".SS {command}".replace("-", "\\-") in page
        assert f"'{group} {command}'" in completion
    for page in paths.BUILD.glob("quantavirt*.1"):
        out = run("man", "--warnings", "-E", "UTF-8", "-l", page)
        assert out.stderr == "" and "EXIT STATUS" in out.stdout


@pytest.mark.parametrize("args, text", [
    ([], "Usage: quantavirt"),
    (["storage"], "Usage: quantavirt storage"),
    (["strorage", "list"], "quantavirt: strorage: unknown command\nhint: did you mean storage?"),
    (["storage", "lsit"], "quantavirt: lsit: unknown command\nhint: did you mean list?"),
    (["storage", "list", "--jsn"], "quantavirt: --jsn: unknown option\nhint: did you mean --json?"),
    (["storage", "list", "-x"], "quantavirt: -x: unknown option"),
    (["storage", "list", "a"], "quantavirt: a: one argument too many"),
    (["storage", "info"], "quantavirt: storage info: IMAGE is missing"),
    (["storage", "list", "--json=yes"], "quantavirt: --json: takes no value"),
    (["storage", "list", "--pool"], "quantavirt: --pool: needs a value"),
    (["-q", "-v", "storage", "list"], "only one of them"),
    (["storage", "create", "--format", "qcow"], "must be one of raw|qcow2|encrypted\nhint: did you mean qcow2?"),
])
def test_mistakes_exit_2_and_help(args, text):
    result = run(paths.QUANTAVIRT, *args, code=2)
    assert text in result.stderr and result.stdout == ""


COMING = ["storage mount a d --read-only", "storage unmount d", "storage pool-add --name p --type nfs", "storage pool-list",
          "vm snapshot create v --name s --memory", "vm migrate v --dest h:1"]


@pytest.mark.parametrize("line", COMING)
def test_what_comes_later_is_said_plainly(root, line):
    group, command, *rest = line.split()
    if (group, command) in [(g, c.split()[0]) for g, c in commands()]:
        pytest.skip("it is there by now")
    result = run(paths.QUANTAVIRT, "--root", root, group, command, *rest, code=1)
    assert result.stderr == f"quantavirt: {group} {command}: not available in this version\n" and result.stdout == ""


def test_options_may_stand_anywhere(root):
    for args in (["--root", root, "storage", "info", "--format=raw", "/dev/zero", "--json"],
                 ["storage", "--json", "--root", root, "--format", "raw", "info", "/dev/zero"],
                 ["storage", "info", "--format", "raw", f"--root={root}", "--json", "--", "/dev/zero"]):
        assert "/dev/zero: neither a" in run(paths.QUANTAVIRT, *args, code=2).stderr


def test_messages_do_not_drive_the_terminal():
    assert "\x1b" not in run(paths.QUANTAVIRT, "storage", "info", "\x1b[31mred", code=2).stderr


def complete(root, *words):
    """What bash offers for the last of WORDS."""
    script = f"""
        source {paths.BUILD}/quantavirt.bash
        quantavirt() {{ {paths.QUANTAVIRT} "$@"; }}
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _quantavirt
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script, "-", *[str(w) for w in words]], capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_completion_knows_commands_options_words_and_names(quantavirt, root):
    quantavirt("storage", "create", "--name", "web", "--format", "raw", "--size", "1M")
    assert "storage" in complete(root, "quantavirt", "")
    assert complete(root, "quantavirt", "storage", "cr") == {"create"}
    assert "--cluster-size" in complete(root, "quantavirt", "storage", "create", "--c")
    assert complete(root, "quantavirt", "storage", "create", "--format", "q") == {"qcow2"}
    assert complete(root, "quantavirt", "--root", root, "storage", "info", "") == {"web"}
