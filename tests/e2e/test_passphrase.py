# SPDX-License-Identifier: Apache-2.0
"""Passphrases asked for at the terminal, and keys that the host's credential store seals."""
import base64
import os
import signal
import subprocess
import sys

import pytest

from qvtest.terminal import Terminal

SECRET = "correct horse battery"
GEN = ("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k")
CREATE = ("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k")


@pytest.fixture
def terminal(root):
    """Starts a command at a terminal."""
    opened = []

    def start(*args):
        opened.append(Terminal(root, *args))
        return opened[-1]
    yield start
    for t in opened:
        t.close()


def ended(term, code, *texts):
    got, said = term.end()
    assert got == code and SECRET not in said, (got, said)
    for text in texts:
        assert text in said
    assert term.echoes()


def make_key(terminal, passphrase=SECRET):
    term = terminal(*GEN, "--protect", "passphrase")
    term.answer("New passphrase for key k: ", passphrase)
    assert SECRET not in term.answer("Again: ", passphrase)
    ended(term, 0)


def test_a_new_passphrase_is_asked_for_twice_and_never_shown(quantavirt, root, terminal):
    make_key(terminal)
    assert "QUANTAVIRT WRAPPED KEY" in (root / "keys/k.pem").read_text()
    term = terminal(*CREATE)
    term.answer("Passphrase for key k: ", SECRET)
    ended(term, 0, "Created a")
    assert quantavirt("storage", "info", "a", "--json").json()["key"] == "k"


def test_two_that_differ_make_no_key(quantavirt, root, terminal):
    term = terminal(*GEN, "--protect", "passphrase")
    term.answer("New passphrase for key k: ", SECRET)
    term.answer("Again: ", SECRET + "!")
    ended(term, 2, "the two passphrases differ")
    assert quantavirt("pqc", "key-list", "--json").json() == [] and not (root / "keys/k.pem").exists()
    term = terminal(*GEN, "--protect", "passphrase")
    term.answer("New passphrase for key k: ", "")
    ended(term, 2, "the passphrase is empty")


def test_a_wrong_one_may_be_corrected_twice(root, terminal):
    make_key(terminal)
    term = terminal(*CREATE)
    term.answer("Passphrase for key k: ", "wrong")
    term.answer("Passphrase for key k: ", "wrong again")
    term.answer("Passphrase for key k: ", SECRET)
    ended(term, 0, "Created a")
    term = terminal("storage", "resize", "a", "--size", "2M")
    for _ in range(3):
        term.answer("Passphrase for key k: ", "wrong")
    ended(term, 1, "wrong passphrase")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_a_terminal_that_echoes(root, terminal, number):
    term = terminal(*GEN, "--protect", "passphrase")
    term.wait("New passphrase for key k: ")
    assert not term.echoes()
    if number == signal.SIGINT:
        os.write(term.fd, b"\x03")
    else:
        os.kill(term.pid, number)
    ended(term, -number)
    assert not (root / "keys/k.pem").exists()


def test_export_and_import_ask_for_one_of_their_own(quantavirt, root, terminal):
    quantavirt(*GEN)
    out = root.parent / "k.wrapped"
    term = terminal("pqc", "key-export", "k", "--output", out)
    term.wait("assphrase for ")
    os.write(term.fd, (SECRET + "\n").encode())
    term.answer("Again: ", SECRET)
    ended(term, 0)
    assert SECRET.encode() not in out.read_bytes() and "PRIVATE KEY" not in out.read_text()
    term = terminal("pqc", "key-import", "--name", "again", out)
    term.wait("assphrase for ")
    os.write(term.fd, (SECRET + "\n").encode())
    ended(term, 0)
    prints = {k["fingerprint"] for k in quantavirt("pqc", "key-list", "--json").json()}
    assert len(prints) == 1


# ---- systemd-creds ----

# Stands for the host's store: seals with what only this "host" has, and the name; notes how it was called.
STAND_IN = """#!{python}
import base64, hashlib, os, sys
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if os.path.exists({broken!r}):
    sys.exit(1)
verb, name = sys.argv[1], sys.argv[2]
assert sys.argv[3:] == ["-", "-"] and name.startswith("--name=quantavirt-")
pad = hashlib.shake_256(b"this host" + name.encode())
data = sys.stdin.buffer.read()
if verb == "encrypt":
    body = bytes(a ^ b for a, b in zip(data, pad.digest(len(data))))
    sys.stdout.write(base64.b64encode(hashlib.sha256(data + name.encode()).digest() + body).decode() + "\\n")
else:
    raw = base64.b64decode(data)
    body = bytes(a ^ b for a, b in zip(raw[32:], pad.digest(len(raw) - 32)))
    if hashlib.sha256(body + name.encode()).digest() != raw[:32]:
        sys.exit(1)
    sys.stdout.buffer.write(body)
"""


@pytest.fixture
def stand_in(disk_dir, monkeypatch):
    folder = disk_dir / "bin"
    folder.mkdir()
    program, log, broken = folder / "systemd-creds", disk_dir / "log", disk_dir / "broken"
    program.write_text(STAND_IN.format(python=sys.executable, log=str(log), broken=str(broken)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log, broken


def seal_and_use(quantavirt, root):
    quantavirt(*GEN, "--protect", "systemd-creds")
    text = (root / "keys/k.pem").read_text()
    assert text.startswith("-----BEGIN QUANTAVIRT SEALED KEY-----") and (root / "keys/k.pem").stat().st_mode & 0o777 == 0o600
    quantavirt(*CREATE)
    quantavirt("storage", "resize", "a", "--size", "2M")
    assert quantavirt("pqc", "status", "--json").json()["ok"]
    return text


def test_the_credential_store_seals_and_opens(quantavirt, root, stand_in):
    log, broken = stand_in
    seal_and_use(quantavirt, root)
    calls = [line.split() for line in log.read_text().splitlines()]
    assert calls[0] == ["encrypt", "--name=quantavirt-k", "-", "-"]
    assert {tuple(c) for c in calls[1:]} == {("decrypt", "--name=quantavirt-k", "-", "-")}
    # Another host, or none: an error that says which store did not open it; nothing else is tried.
    broken.touch()
    failed = quantavirt("storage", "resize", "a", "--size", "3M", code=1).stderr
    assert "needs key k" in failed and "systemd-creds decrypt: this host's credential store refused" in failed
    assert "refused" in quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-512", "--name", "n", "--protect", "systemd-creds",
                                   code=1).stderr
    assert not (root / "keys/n.pem").exists()
    broken.unlink()
    quantavirt("storage", "resize", "a", "--size", "3M")


def test_without_a_credential_store_it_is_an_error(quantavirt, root, monkeypatch):
    monkeypatch.setenv("PATH", str(root.parent))
    assert "systemd-creds: is not installed on this host" in quantavirt(*GEN, "--protect", "systemd-creds", code=1).stderr
    assert not (root / "keys/k.pem").exists()


def test_the_credential_store_of_this_host(quantavirt, root):
    try:
        probe = subprocess.run(["systemd-creds", "encrypt", "--name=probe", "-", "-"], input=b"x", capture_output=True,
                               check=False, timeout=20)
    except OSError:
        pytest.skip("no systemd-creds here")
    if probe.returncode != 0:
        pytest.skip(f"systemd-creds does not work here: {probe.stderr.decode().strip()}")
    text = seal_and_use(quantavirt, root)
    sealed = base64.b64decode("".join(text.splitlines()[1:-1]))
    # It is the credential of that name, and of no other; and in the file as it is made, no key.
    opened = [subprocess.run(["systemd-creds", "decrypt", f"--name=quantavirt-{name}", "-", "-"], input=sealed,
                             capture_output=True, check=False, timeout=20) for name in "km"]
    assert opened[0].returncode == 0 and opened[1].returncode != 0
    pkcs8 = opened[0].stdout
    assert len(pkcs8) > 2400 and pkcs8[-32:] not in sealed and base64.b64encode(pkcs8)[-60:-8] not in sealed
