# SPDX-License-Identifier: Apache-2.0
"""Encrypted images as the specification has them: a second implementation reads what the product writes."""
import base64
import hashlib
import random
import shutil
import signal
import struct
from pathlib import Path

import pytest

from qvtest import paths
from qvtest.command import run

pytest.importorskip("cryptography")
from cryptography.exceptions import InvalidTag  # noqa: E402
from qvtest.encrypted import Corrupt, Image  # noqa: E402

VECTORS = Path(__file__).parent / "vectors" / "encrypted-image-v1.txt"
SECTOR = 4096


def private_key(root, name):
    text = (root / "keys" / f"{name}.pem").read_text()
    return base64.b64decode("".join(line for line in text.splitlines() if not line.startswith("-")))


def image_file(root, name="a"):
    return root / "images" / f"{name}.qcow2"


def make(quantavirt, root, content, *options):
    raw = root.parent / "source.raw"
    raw.write_bytes(content)
    quantavirt("storage", "create", "--name", "a", "--format", "encrypted", "--size", str(len(content)), *options)
    quantavirt("storage", "delete", "a")
    key = ("--key", "a") if (root / "keys" / "a.pem").exists() else ()
    quantavirt("storage", "import", "--name", "raw", raw, "--source-format", "raw")
    quantavirt("storage", "convert", "raw", "--target-format", "encrypted", "--output", "a", *key, *options)
    quantavirt("storage", "delete", "raw")
    raw.unlink()


def qemu_io(server, *commands):
    args = [word for command in commands for word in ("-c", command)]
    run(paths.engine_program("qemu-io"), "-f", "raw", *args, f"nbd+unix:///?socket={server.socket}")


def some_content(size, seed=1):
    """Random bytes with holes."""
    rng = random.Random(seed)
    content = bytearray(size)
    for _ in range(20):
        at = rng.randrange(size)
        content[at:at + 30000] = rng.randbytes(len(content[at:at + 30000]))
    return bytes(content)


@pytest.mark.parametrize("options", [
    ("--kem", "ML-KEM-512", "--aead", "AES-256-GCM"),
    ("--kem", "ML-KEM-768", "--aead", "ChaCha20-Poly1305", "--cluster-size", "4K"),
    ("--kem", "ML-KEM-1024", "--aead", "AES-256-GCM", "--cluster-size", "1M"),
])
def test_reader_made_from_the_specification(quantavirt, root, options):
    content = some_content(1500 * 1024 + 512)  # ends inside a sector
    make(quantavirt, root, content, *options)
    assert Image(image_file(root), private_key=private_key(root, "a")).content() == content


def test_reader_replays_the_log_of_an_image_in_use(quantavirt, root, serve):
    content = bytearray(some_content(512 * 1024))
    make(quantavirt, root, bytes(content))
    server = serve("a", "nbd")
    copy = root.parent / "copy.qcow2"
    rng = random.Random(3)
    for _ in range(5):
        at, byte = rng.randrange(1000) * 512, rng.randrange(1, 256)
        content[at:at + 9000] = bytes([byte]) * len(content[at:at + 9000])
        qemu_io(server, f"write -P {byte} {at} {len(content[at:at + 9000])}", "flush")
        shutil.copy(image_file(root), copy)
        image = Image(copy, private_key=private_key(root, "a"))
        assert image.content() == bytes(content)
    assert image.overrides  # the table has not got them yet


def test_plaintext_is_in_no_file(quantavirt, root, serve):
    marker = b"plaintext that must not reach the disk."
    content = (marker * 2000)[:64 * 1024]
    make(quantavirt, root, content)
    pattern = root.parent / "m"
    pattern.write_bytes(content)
    server = serve("a", "nbd")
    qemu_io(server, f"write -s {pattern} 0 64k", "flush", f"write -s {pattern} 0 64k")
    server.stop(signal.SIGKILL)
    for file in root.rglob("*"):
        if file.is_file():
            assert marker not in file.read_bytes(), file
    assert Image(image_file(root), private_key=private_key(root, "a")).content() == content


def test_check_data_names_bad_sectors_and_the_others_live(quantavirt, root):
    content = some_content(400 * 1024, seed=5)
    content = bytes(b or 1 for b in content)
    make(quantavirt, root, content)
    quantavirt("storage", "snapshot", "create", "a", "--name", "s")
    good = quantavirt("storage", "check", "a", "--data", "--json").json()
    assert good["clean"] and good["sectors_checked"] == 100 and good["sectors_bad"] == []
    image = Image(image_file(root), private_key=private_key(root, "a"))
    host = next(h for h in range(len(image.bytes) // SECTOR) if image.entry(h)[:4] != bytes(4))
    with open(image_file(root), "r+b") as file:
        file.seek((host + 7) * SECTOR + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    bad = quantavirt("storage", "check", "a", "--data", "--json", code=5).json()
    assert len(bad["sectors_bad"]) == 1 and not bad["clean"]
    sector = bad["sectors_bad"][0]["sector"]
    image = Image(image_file(root), private_key=private_key(root, "a"))
    for i in range(100):
        if i == sector:
            with pytest.raises(InvalidTag):
                image.sector(i)
        else:
            assert image.sector(i) == content[i * SECTOR:(i + 1) * SECTOR]
    text = quantavirt("storage", "check", "a", "--data", code=5)
    assert f"sector {sector} " in text.stdout
    quantavirt("storage", "check", "a")  # the metadata is as it should be


def load_vectors():
    """{"name": value, ...} and the image of the vector file."""
    values, image = {}, bytearray()
    for line in VECTORS.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, value = line.split(maxsplit=1)
        if name.startswith("@"):
            at, data = int(name[1:], 16), bytes.fromhex(value)
            image[len(image):] = bytes(max(0, at + len(data) - len(image)))
            image[at:at + len(data)] = data
        else:
            values[name] = value
    image[len(image):] = bytes(int(values["size"]) - len(image))
    return values, bytes(image)


def test_vectors(tmpfs_dir):
    values, raw = load_vectors()
    file = tmpfs_dir / "v.qcow2"
    file.write_bytes(raw)
    image = Image(file, private_key=bytes.fromhex(values["private-key"]))
    assert hashlib.sha3_256(image.content()).hexdigest() == values["content-sha3-256"]
    again = Image(file, data_key=bytes.fromhex(values["data-key"]))
    assert again.sector(0) == image.sector(0) != bytes(SECTOR)
    assert len(image.content()) == int(values["virtual-size"])
    assert struct.unpack(">I", image.entry(next(
        h for h in range(len(raw) // SECTOR) if image.entry(h)[:4] != bytes(4)))[:4])[0] in image.keys


def test_reader_refuses_a_wrong_key(tmpfs_dir):
    _, raw = load_vectors()
    file = tmpfs_dir / "v.qcow2"
    file.write_bytes(raw)
    with pytest.raises(Corrupt):
        Image(file, data_key=bytes(32))
