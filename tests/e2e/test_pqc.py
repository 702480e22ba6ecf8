# SPDX-License-Identifier: Apache-2.0
"""Keys and key stores: `quantavirt pqc`. Stand-ins for hardware are in tests/providers."""
import json
import os
import stat
from collections import Counter

import pytest

from qvtest import paths

PROVIDERS = paths.QUANTAVIRT.parent / "tests/providers"
ALGORITHMS = ["ML-KEM-512", "ML-KEM-768", "ML-KEM-1024", "X25519MLKEM768"]


def fails(result, code, *texts):
    assert result.code == code, result
    for text in texts:
        assert text in result.stderr, result
    return result


@pytest.fixture
def keys(root):
    folder = root / "keys"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def passphrase(disk_dir):
    def write(text, name="passphrase"):
        path = disk_dir / name
        path.write_text(text + "\n")
        return path
    return write


@pytest.fixture
def oplog(disk_dir, monkeypatch):
    """What the stand-ins were asked since the last look: {"quac100 decapsulate ML-KEM-768": 3}."""
    path = disk_dir / "oplog"
    monkeypatch.setenv("KEY_TEST_LOG", str(path))

    def look():
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return Counter(lines)
    return look


@pytest.fixture
def quac100(keys):
    def install(which):
        (keys / "stores.json").write_text(json.dumps({"quac100": {"modules": str(PROVIDERS / which)}}))
    return install


@pytest.fixture
def token(keys, disk_dir, monkeypatch):
    """A configured PKCS#11 token; the folder of its objects."""
    folder = disk_dir / "token"
    folder.mkdir()
    (disk_dir / "pin").write_text("1234\n")
    monkeypatch.setenv("TESTTOKEN_DIR", str(folder))
    (keys / "stores.json").write_text(json.dumps({"pkcs11": {
        "module": str(PROVIDERS / "testtoken.so"), "pin_file": str(disk_dir / "pin"), "token": "testtoken"}}))
    return folder


# ---- software keys ----

@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_software_key_is_made_listed_and_opens_an_image(quantavirt, root, algorithm):
    made = quantavirt("pqc", "key-gen", "--algorithm", algorithm, "--name", "k", "--json").json()
    assert (made["name"], made["algorithm"], made["store"], made["images"]) == ("k", algorithm, "software", [])
    assert quantavirt("pqc", "key-list", "--json").json() == [made]
    assert quantavirt("pqc", "key-info", made["fingerprint"][:16], "--json").json() == made
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k")
    quantavirt("storage", "resize", "a", "--size", "2M")
    assert quantavirt("pqc", "key-info", "k", "--json").json()["images"] == ["a"]
    assert stat.S_IMODE((root / "keys").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in (root / "keys").iterdir())


def test_a_private_key_file_is_pkcs8_that_openssl_reads(quantavirt, root):
    import hashlib
    import base64
    made = quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--json").json()
    text = (root / "keys/k.pem").read_text()
    der = base64.b64decode("".join(line for line in text.splitlines() if not line.startswith("-")))
    # RFC 9935: version 0, id-alg-ml-kem-768, OCTET STRING { SEQUENCE { seed (64), expanded key (2400) } }
    assert der[4:7] == bytes.fromhex("020100") and bytes.fromhex("0609608648016503040402") in der[:24]
    expanded = der[-2400:]
    public = expanded[1152:1152 + 1184]  # FIPS 203, 7.1: dk = dk_PKE || ek || H(ek) || z
    spki = bytes.fromhex("308204b2300b0609608648016503040402038204a100") + public
    assert hashlib.sha3_256(spki).hexdigest() == made["fingerprint"]
    assert hashlib.sha3_256(public).digest() == expanded[1152 + 1184:1152 + 1184 + 32]


def test_names_are_checked_and_taken_once(quantavirt):
    gen = ("pqc", "key-gen", "--algorithm", "ML-KEM-512", "--name")
    quantavirt(*gen, "k")
    fails(quantavirt(*gen, "k", code=None), 1, "a key of that name exists")
    fails(quantavirt(*gen, "../k", code=None), 2, "key name")
    fails(quantavirt("pqc", "key-info", "none", code=None), 3, "none: no such key")
    fails(quantavirt("pqc", "key-gen", "--algorithm", "RSA", "--name", "r", code=None), 2)


def test_a_key_under_a_passphrase_needs_it(quantavirt, root, passphrase, monkeypatch):
    right, wrong = passphrase("correct horse"), passphrase("battery", "wrong")
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--passphrase-file", right)
    assert "PRIVATE KEY" not in (root / "keys/k.pem").read_text()
    create = ("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k")
    fails(quantavirt(*create, code=None, start_new_session=True), 2, "a passphrase is needed, and there is no terminal")
    monkeypatch.setenv("QUANTAVIRT_PASSPHRASE_FILE", str(wrong))
    fails(quantavirt(*create, code=None), 5, "wrong passphrase")
    assert not (root / "images/a.qcow2").exists()
    monkeypatch.setenv("QUANTAVIRT_PASSPHRASE_FILE", str(right))
    quantavirt(*create)
    quantavirt("storage", "resize", "a", "--size", "2M")


def test_export_and_import_under_a_passphrase(quantavirt, disk_dir, passphrase):
    right, wrong = passphrase("correct horse"), passphrase("battery", "wrong")
    key = quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--json").json()
    out = disk_dir / "k.wrapped"
    quantavirt("pqc", "key-export", "k", "--output", out, "--passphrase-file", right)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert quantavirt("pqc", "key-info", "k", "--json").json()["exported"] is True
    fails(quantavirt("pqc", "key-export", "k", "--output", out, "--passphrase-file", right, code=None), 1, "is there already")
    fails(quantavirt("pqc", "key-import", "--name", "l", out, "--passphrase-file", wrong, code=None), 5, "wrong passphrase")
    again = quantavirt("pqc", "key-import", "--name", "l", out, "--passphrase-file", right, "--json").json()
    assert again["fingerprint"] == key["fingerprint"]
    text = bytearray(out.read_bytes())
    text[400] ^= 1
    out.write_bytes(text)
    fails(quantavirt("pqc", "key-import", "--name", "m", out, "--passphrase-file", right, code=None), 5)
    assert len(quantavirt("pqc", "key-list", "--json").json()) == 2


def test_export_to_another_key_and_to_a_public_key_file(quantavirt, disk_dir):
    for name, algorithm in (("k", "ML-KEM-1024"), ("to", "ML-KEM-768")):
        quantavirt("pqc", "key-gen", "--algorithm", algorithm, "--name", name)
    quantavirt("pqc", "key-export", "to", "--public", "--output", disk_dir / "to.pem")
    assert (disk_dir / "to.pem").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    fingerprint = quantavirt("pqc", "key-info", "k", "--json").json()["fingerprint"]
    for i, to in enumerate(("to", disk_dir / "to.pem")):
        quantavirt("pqc", "key-export", "k", "--to", to, "--output", disk_dir / f"w{i}")
        again = quantavirt("pqc", "key-import", "--name", f"again{i}", disk_dir / f"w{i}", "--json").json()
        assert again["fingerprint"] == fingerprint
    quantavirt("pqc", "key-delete", "to")
    fails(quantavirt("pqc", "key-import", "--name", "x", disk_dir / "w0", code=None), 3, "which is not here")


def test_a_bare_public_key_only_wraps(quantavirt, disk_dir):
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k")
    quantavirt("pqc", "key-export", "k", "--public", "--output", disk_dir / "k.pem")
    quantavirt("pqc", "key-delete", "k")
    bare = quantavirt("pqc", "key-import", "--name", "bare", disk_dir / "k.pem", "--json").json()
    assert bare["private"] is False
    fails(quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "bare", code=None),
          2, "bare public key")
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    assert "not tried" in quantavirt("storage", "key-slot", "add", "a", "--key", "bare").stdout
    fails(quantavirt("storage", "rekey", "a", "--key", "bare", code=None), 2, "bare public key")


def test_a_key_that_images_need_stays(quantavirt):
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k")
    for name in "ab":
        quantavirt("storage", "create", "--name", name, "--format", "encrypted", "--size", "1M", "--key", "k")
    fails(quantavirt("pqc", "key-delete", "k", code=None), 4, "needed by images a, b")
    quantavirt("storage", "delete", "a")
    quantavirt("storage", "rekey", "b", "--key", "k")  # onto itself: a fresh slot
    fails(quantavirt("pqc", "key-delete", "k", code=None), 4, "needed by image b")
    quantavirt("storage", "delete", "b")
    quantavirt("pqc", "key-delete", "k")
    assert quantavirt("pqc", "key-list", "--json").json() == []


def test_secrets_are_on_no_command_line_and_in_no_output(quantavirt, root, passphrase):
    """What a private key holds shows up nowhere but in its own file."""
    out = [quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-512", "--name", "k", "-v"),
           quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k", "-v"),
           quantavirt("storage", "info", "a"), quantavirt("pqc", "key-info", "k"), quantavirt("pqc", "status")]
    secret = "".join((root / "keys/k.pem").read_text().splitlines()[1:-1])
    for result in out:
        text = result.stdout + result.stderr
        assert not any(secret[i:i + 24] in text for i in range(0, len(secret) - 24, 24))


# ---- status ----

def test_status_tells_whether_images_can_be_opened(quantavirt, root):
    status = quantavirt("pqc", "status", "--json").json()
    assert status["ok"] and status["ml_kem_self_test"] and status["memory_guarded"]
    assert status["openssl"].startswith("OpenSSL 3.") and min(status["aead_bytes_per_second"].values()) > 0
    stores = {s["store"]: s for s in status["stores"]}
    assert stores["software"]["usable"] and not stores["quac100"]["present"] and not stores["pkcs11"]["present"]
    assert "quac100.so" in stores["quac100"]["detail"]
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    status = quantavirt("pqc", "status", "--json").json()
    assert status["ok"] and status["keys"][0]["images"] == ["a"]
    for f in (root / "keys").glob("a.*"):
        f.unlink()
    status = quantavirt("pqc", "status", "--json", code=1).json()
    assert not status["ok"] and status["images_locked"] == ["a"]


def test_what_does_not_open_says_which_key_it_needs(quantavirt, root):
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    fingerprint = quantavirt("pqc", "key-info", "a", "--json").json()["fingerprint"]
    for f in (root / "keys").glob("a.*"):
        f.unlink()
    fails(quantavirt("storage", "resize", "a", "--size", "2M", code=None), 3, "key a (ML-KEM-768", fingerprint,
          "store software answered: no such key", "store quac100 answered: no OpenSSL provider quac100",
          "store pkcs11 answered: no module is configured")


# ---- quac100 ----

def test_quac100_does_every_operation_of_its_keys(quantavirt, quac100, oplog):
    quac100("good")
    assert "OpenSSL provider quac100" in quantavirt("pqc", "status").stdout
    oplog()
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    did = oplog()
    assert did["quac100 keygen ML-KEM-768"] >= 1 and did["quac100 encapsulate ML-KEM-768"] >= 1
    info = quantavirt("storage", "info", "a")
    assert "Key Backend:  QUAC 100 Hardware" in info.stdout
    assert not oplog()  # looking needs no key
    quantavirt("pqc", "key-list")
    assert not oplog()
    # Opening: the self-test decapsulates six times, and the image's slot once more.
    quantavirt("storage", "resize", "a", "--size", "2M")
    assert oplog()["quac100 decapsulate ML-KEM-768"] == 7
    # A software key leaves the card alone.
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "soft", "--store", "software")
    quantavirt("storage", "create", "--name", "b", "--format", "encrypted", "--size", "1M", "--key", "soft")
    quantavirt("storage", "resize", "b", "--size", "2M")
    assert not oplog()


@pytest.mark.parametrize("mode", [None, "random-keys", "wrong-secret", "own-secret", "fixed"])
def test_a_provider_that_misbehaves_is_caught_before_a_disk_depends_on_it(quantavirt, root, quac100, mode, monkeypatch):
    if mode:
        monkeypatch.setenv("QUAC100_TEST_MODE", mode)
    quac100("bad")
    fails(quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", code=None), 1,
          "store quac100 is unusable")
    fails(quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--store", "quac100", code=None), 1,
          "store quac100 is unusable")
    assert list((root / "keys").glob("*.pem")) == [] and list((root / "images").glob("*")) == []
    assert "UNUSABLE" in quantavirt("pqc", "status", code=None).stdout
    # Never a silent fallback; asked for by name, software works beside it.
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--store", "software")
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k")


def test_a_card_that_turns_bad_opens_nothing(quantavirt, quac100):
    quac100("good")
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    quac100("bad")
    fails(quantavirt("storage", "resize", "a", "--size", "2M", code=None), 1, "needs key a",
          "store quac100 answered: store quac100 is unusable")
    assert quantavirt("pqc", "status", code=1)
    quac100("good")
    quantavirt("storage", "resize", "a", "--size", "2M")


def test_quac100_absent_is_a_precise_error(quantavirt, keys, disk_dir):
    (keys / "stores.json").write_text(json.dumps({"quac100": {"modules": str(disk_dir)}}))
    fails(quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--store", "quac100", code=None), 3,
          f"no quac100.so in {disk_dir}")
    (disk_dir / "quac100.so").write_text("not a module")
    fails(quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-768", "--name", "k", "--store", "quac100", code=None), 1,
          "does not start")


# ---- pkcs11 ----

@pytest.mark.parametrize("algorithm", ALGORITHMS[:3])
def test_a_token_makes_and_uses_keys_that_never_leave_it(quantavirt, root, token, oplog, algorithm, disk_dir):
    quantavirt("pqc", "key-gen", "--algorithm", algorithm, "--name", "k", "--store", "pkcs11")
    assert oplog()[f"pkcs11 keygen {algorithm}"] == 1
    assert not (root / "keys/k.pem").exists() and len(list(token.iterdir())) == 1
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", "--key", "k")
    assert oplog()[f"pkcs11 decapsulate {algorithm}"] >= 1
    assert "Key Backend:  PKCS#11" in quantavirt("storage", "info", "a").stdout
    quantavirt("storage", "resize", "a", "--size", "2M")
    assert oplog() == {f"pkcs11 decapsulate {algorithm}": 1}
    fails(quantavirt("pqc", "key-export", "k", "--output", disk_dir / "x", code=None), 1, "never leaves the token")
    fails(quantavirt("pqc", "key-delete", "k", code=None), 4)
    quantavirt("storage", "delete", "a")
    quantavirt("pqc", "key-delete", "k")
    assert list(token.iterdir()) == []


def test_the_token_is_the_best_store(quantavirt, token):
    out = quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    assert "Made key a for it in store pkcs11" in out.stdout


@pytest.mark.parametrize("variable,text", [("TESTTOKEN_OLD", "does not offer PKCS#11 3.2"),
                                           ("TESTTOKEN_NO_MECHANISMS", "no mechanism CKM_ML_KEM"),
                                           ("TESTTOKEN_WRONG_SECRET", "fails its self-test")])
def test_a_token_that_cannot_is_named(quantavirt, token, monkeypatch, variable, text):
    monkeypatch.setenv(variable, "1")
    fails(quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", code=None), 1, text)
    assert list(token.iterdir()) == []


def test_mechanism_numbers_can_be_configured(quantavirt, keys, token, monkeypatch, oplog):
    monkeypatch.setenv("TESTTOKEN_NO_MECHANISMS", "1")
    settings = json.loads((keys / "stores.json").read_text())
    settings["pkcs11"].update({"mechanism": 0x17, "key_gen_mechanism": 0xf})
    (keys / "stores.json").write_text(json.dumps(settings))
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M")
    assert oplog()["pkcs11 keygen ML-KEM-768"] == 1


def test_a_wrong_pin_says_so(quantavirt, token, disk_dir):
    (disk_dir / "pin").write_text("9999")
    fails(quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", code=None), 1, "wrong PIN")


def test_settings_with_a_mistake_are_refused(quantavirt, keys):
    (keys / "stores.json").write_text('{"pkcs11": {"modul": "/x.so"}}')
    fails(quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", "1M", code=None), 2,
          "stores.json", "modul")


# ---- crashes ----

def test_a_killed_key_gen_can_be_run_again(quantavirt, root, keys):
    """The private key is written before the record; a file without a record is put aside, not lost."""
    (keys / "k.pem").write_text("left by a killed command")
    os.chmod(keys / "k.pem", 0o600)
    quantavirt("pqc", "key-gen", "--algorithm", "ML-KEM-512", "--name", "k")
    assert [f.read_text() for f in keys.glob("k.pem.orphan-*")] == ["left by a killed command"]
    assert len(quantavirt("pqc", "key-list", "--json").json()) == 1
