# SPDX-License-Identifier: Apache-2.0
"""The storage commands: what they print, what they leave, how they fail."""
import json
import os
import re
import signal
import subprocess
import time

import pytest

from qvtest import paths

MIB = 1 << 20

INFO_KEYS = {
    "name", "format", "virtual_size", "actual_size", "path", "pool", "cluster_size", "compression", "prealloc",
    "backing", "snapshots", "encrypted", "kem", "aead", "key", "key_store", "locked", "lock_owner", "vms", "created",
}
CHECK_KEYS = {"image", "clean", "corruptions", "leaks", "repaired", "sectors_checked", "sectors_bad", "details"}


def left_behind(root):
    """Files under the root that belong to no image: what an interrupted command must not leave."""
    names = {p.stem for p in (root / "catalog").glob("*.json")} if (root / "catalog").is_dir() else set()
    files = [p for p in root.rglob("*") if p.is_file() and p.name != "lock"]
    return [p for p in files if p.stem not in names]


def fails(result, code, text):
    assert result.code == code, result
    assert result.stdout == ""
    assert result.stderr.startswith("quantavirt: ") and text in result.stderr, result


@pytest.fixture
def create(quantavirt):
    def call(name, form="raw", size="8M", *options, code=0):
        return quantavirt("storage", "create", "--name", name, "--format", form, "--size", size, *options, code=code)

    return call


# ---- create, info, list ----

@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_info_shows_the_contracts_lines(quantavirt, create, form):
    create("web-server", form, "1.5G", "--prealloc", "off")
    lines = quantavirt("storage", "info", "web-server").stdout.splitlines()
    assert lines[0] == "Name:         web-server"
    assert lines[1] == f"Format:       {form}"
    assert lines[2] == "Virtual Size: 1.5 GiB"
    assert re.fullmatch(r"Actual Size:  [\d.]+ (B|KiB)", lines[3])
    assert lines[4] == "Snapshots:    0"
    assert lines[5] == "Encrypted:    no"


def test_info_json_has_every_key(quantavirt, create, root):
    create("a", "qcow2", "10G", "--cluster-size", "4K", "--compression", "zstd")
    info = quantavirt("storage", "info", "a", "--json").json()
    assert set(info) == INFO_KEYS
    assert info["virtual_size"] == 10 << 30
    assert info["cluster_size"] == 4096 and info["compression"] == "zstd" and info["prealloc"] == "off"
    assert info["pool"] == "default" and info["path"] == str(root / "images/a.qcow2")
    assert info["snapshots"] == [] and info["vms"] == [] and info["encrypted"] is False
    assert info["locked"] is False and info["lock_owner"] is None and info["kem"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", info["created"])
    assert info == quantavirt("--json", "storage", "list").json()[0]


def test_raw_takes_its_full_size_unless_told_otherwise(quantavirt, create, root):
    create("full")
    create("sparse", "raw", "8M", "--prealloc", "off")
    sizes = {i["name"]: i for i in quantavirt("storage", "list", "--json").json()}
    assert sizes["full"]["actual_size"] >= 8 * MIB and sizes["full"]["prealloc"] == "falloc"
    assert sizes["sparse"]["actual_size"] == 0 and sizes["sparse"]["virtual_size"] == 8 * MIB
    assert (root / "images/full.raw").read_bytes() == bytes(8 * MIB)


@pytest.mark.parametrize("prealloc", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster", ["512", "4K", "64K", "2M"])
def test_new_qcow2_is_clean_for_qemu(quantavirt, create, qemu_img, root, cluster, prealloc):
    create("a", "qcow2", "4M", "--cluster-size", cluster, "--prealloc", prealloc)
    path = root / "images/a.qcow2"
    assert qemu_img("check", "--output=json", path)["check-errors"] == 0
    facts = qemu_img("info", "--output=json", path)
    assert facts["virtual-size"] == 4 * MIB and facts["format-specific"]["data"]["compat"] == "1.1"
    assert facts["cluster-size"] == {"512": 512, "4K": 4096, "64K": 65536, "2M": 2 * MIB}[cluster]
    if prealloc in ("falloc", "full"):
        assert quantavirt("storage", "info", "a", "--json").json()["actual_size"] >= 4 * MIB


def test_list_is_a_table_in_order_of_names(quantavirt, create):
    create("b")
    create("a", "qcow2", "1G")
    lines = [line.split() for line in quantavirt("storage", "list").stdout.splitlines()]
    assert lines[0] == ["NAME", "FORMAT", "VIRTUAL", "ACTUAL", "ENCRYPTED", "VMs"]
    assert lines[1][:4] == ["a", "qcow2", "1", "GiB"] and lines[2][:4] == ["b", "raw", "8", "MiB"]
    assert lines[1][-2:] == ["no", "-"]


def test_everything_is_its_owners_only(create, root):
    create("a")
    create("b", "qcow2")
    for path in [p for p in root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_commands_that_only_look_work_without_a_root(quantavirt, root):
    root.rmdir()
    assert quantavirt("storage", "list", "--json").json() == []
    fails(quantavirt("storage", "info", "a", code=None), 3, "a: no such image")
    assert not root.exists()


@pytest.mark.parametrize("args, code, text", [
    (["--size", "50"], 2, "hint: did you mean 50G?"),
    (["--size", "0"], 2, "at least 512"),
    (["--size", "8E"], 2, "largest size"),
    (["--size", "1M", "--prealloc", "metadata"], 2, "raw images have no metadata"),
    (["--size", "1M", "--cluster-size", "64K"], 2, "no clusters"),
    (["--size", "1M", "--compression", "zstd"], 2, "not compressed"),
    (["--size", "1M", "--format", "qcow2"], 2, "--format: given twice"),
    (["--size", "1M", "--pool", "nas"], 3, "nas: no such pool"),
    (["--size", "100T"], 1, "not enough space: 100 TiB needed"),
    (["--size", "1M", "--prealoc", "off"], 2, "hint: did you mean --prealloc?"),
    ([], 2, "--size is missing"),
])
def test_create_refuses(quantavirt, root, args, code, text):
    fails(quantavirt("storage", "create", "--name", "a", "--format", "raw", *args, code=None), code, text)
    assert left_behind(root) == []


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "x" * 65, "ä"])
def test_create_refuses_bad_names(quantavirt, root, name):
    result = quantavirt("storage", "create", f"--name={name}", "--format", "raw", "--size", "1M", code=2)
    assert left_behind(root) == [] and result.stderr.startswith("quantavirt: ")


def test_a_taken_name_is_refused_whatever_the_format(create, root):
    create("a")
    before = (root / "catalog/a.json").read_bytes()
    fails(create("a", code=None), 1, "a: an image of that name exists")
    fails(create("a", "qcow2", code=None), 1, "a: an image of that name exists")
    assert (root / "catalog/a.json").read_bytes() == before


def test_images_are_found_by_pool_and_by_path(quantavirt, create, root):
    create("a")
    path = root / "images/a.raw"
    assert quantavirt("storage", "info", "default/a", "--json").json()["name"] == "a"
    by_path = quantavirt("storage", "info", path, "--format", "raw", "--json").json()
    assert by_path["virtual_size"] == 8 * MIB and by_path["pool"] is None
    assert quantavirt("storage", "info", "./a.raw", "--format=raw", "--json", cwd=root / "images").json()["path"] == str(path)
    fails(quantavirt("storage", "info", path, code=None), 2, "--format is missing")
    fails(quantavirt("storage", "info", "nas/a", code=None), 3, "nas: no such pool")
    fails(quantavirt("storage", "info", "a", "--format", "qcow2", code=None), 2, "its format is raw")
    fails(quantavirt("storage", "resize", path, "--size", "1G", code=None), 2, "images of the catalogue only")
    fails(quantavirt("storage", "info", "/dev/null", "--format", "raw", code=None), 2, "neither")
    fails(quantavirt("storage", "info", "/nonexistent", "--format", "raw", code=None), 3, "No such file")


def test_a_full_standard_output_is_an_error(root):
    with open("/dev/full", "w") as full:
        done = subprocess.run([paths.QUANTAVIRT, "--root", root, "storage", "list"], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "standard output" in done.stderr


# ---- resize, delete ----

@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_resize_grows_and_never_shrinks(quantavirt, create, qemu_img, root, form):
    create("a", form, "1M")
    quantavirt("storage", "resize", "a", "--size", "4M")
    path = root / f"images/a.{form}"
    assert quantavirt("storage", "info", "a", "--json").json()["virtual_size"] == 4 * MIB
    assert qemu_img("info", "--output=json", "-f", form, path)["virtual-size"] == 4 * MIB
    before = path.read_bytes()
    fails(quantavirt("storage", "resize", "a", "--size", "2M", code=None), 2, "images only grow")
    assert path.read_bytes() == before
    quantavirt("storage", "resize", "a", "--size", "4M")
    if form == "qcow2":
        assert qemu_img("check", "--output=json", path)["check-errors"] == 0
    else:
        assert path.stat().st_blocks * 512 >= 4 * MIB  # all its space, as it was created


def test_a_resize_without_space_changes_nothing(quantavirt, create, root):
    create("a", "raw", "1M")
    fails(quantavirt("storage", "resize", "a", "--size", "100T", code=None), 1, "not enough space")
    assert (root / "images/a.raw").stat().st_size == MIB


def test_delete_removes_all_of_it(quantavirt, create, root):
    create("a")
    quantavirt("storage", "delete", "a")
    assert quantavirt("storage", "list", "--json").json() == []
    assert left_behind(root) == []
    fails(quantavirt("storage", "delete", "a", code=None), 3, "a: no such image")


def test_an_image_of_a_vm_is_not_deleted(quantavirt, create, root):
    create("a")
    (root / "configs").mkdir()
    (root / "configs/web.json").write_text(
        json.dumps({"name": "web", "storage": [{"type": "virtio-blk", "path": "a"}]}))
    fails(quantavirt("storage", "delete", "a", code=None), 4, "vm web is configured with it")
    assert quantavirt("storage", "info", "a", "--json").json()["vms"] == ["web"]
    (root / "configs/web.json").unlink()
    quantavirt("storage", "delete", "a")


# ---- convert, import, export: content, sparseness ----

@pytest.fixture
def content(disk_dir):
    """A raw file of 9 MiB and a sector: data of odd lengths, written zeros, holes, and data at the end."""
    path = disk_dir / "content.raw"
    with open(path, "wb") as f:
        for offset, piece in ((0, b"\x01" * 512), (100_000, os.urandom(300_001)), (2 * MIB, bytes(2 * MIB)),
                              (5 * MIB - 512, os.urandom(MIB)), (9 * MIB, b"end" + bytes(509))):
            f.seek(offset)
            f.write(piece)
    return path


@pytest.mark.parametrize("cluster", ["512", "4K", "64K", "256K", "2M"])
def test_content_survives_every_way(quantavirt, qemu_img, root, content, cluster, disk_dir):
    quantavirt("storage", "import", "--name", "r", content)
    quantavirt("storage", "convert", "r", "--target-format", "qcow2", "--output", "q", "--cluster-size", cluster)
    assert qemu_img("check", "--output=json", root / "images/q.qcow2")["check-errors"] == 0
    quantavirt("storage", "check", "q")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", content, root / "images/q.qcow2")
    quantavirt("storage", "convert", "q", "--target-format", "raw", "--output", "default/r2")
    quantavirt("storage", "export", "q", disk_dir / "out.raw", "--format", "raw")
    quantavirt("storage", "export", "q", disk_dir / "out.qcow2")
    for copy in (root / "images/r.raw", root / "images/r2.raw", disk_dir / "out.raw"):
        assert copy.read_bytes() == content.read_bytes()
        assert copy.stat().st_blocks * 512 < 2 * MIB  # 1.3 MiB of data
    qemu_img("compare", "-f", "raw", "-F", "qcow2", content, disk_dir / "out.qcow2")
    facts = {i["name"]: i for i in quantavirt("storage", "list", "--json").json()}
    assert facts["q"]["virtual_size"] == facts["r"]["virtual_size"] == 9 * MIB + 512


@pytest.mark.parametrize("options", [
    "cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "compat=0.10",
    "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on", "compression_type=zstd",
])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_qemu_made_is_imported(quantavirt, qemu_img, root, content, options, compressed, disk_dir):
    foreign = disk_dir / "foreign.qcow2"
    qemu_img("convert", *(["-c"] if compressed else []), "-f", "raw", "-O", "qcow2", "-o", options, content, foreign)
    quantavirt("storage", "import", "--name", "a", foreign)
    info = quantavirt("storage", "info", "a", "--json").json()
    assert info["format"] == "qcow2" and info["virtual_size"] == 9 * MIB + 512
    qemu_img("compare", "-f", "raw", "-F", "qcow2", content, root / "images/a.qcow2")
    quantavirt("storage", "import", "--name", "b", foreign, "--format", "raw")
    assert (root / "images/b.raw").read_bytes() == content.read_bytes()


def test_a_raw_file_of_odd_length_is_padded(quantavirt, root, disk_dir):
    odd = disk_dir / "odd.raw"
    odd.write_bytes(b"x" * 1000)
    for form in ("raw", "qcow2"):
        quantavirt("storage", "import", "--name", form, odd, "--format", form)
        quantavirt("storage", "export", form, disk_dir / form, "--format", "raw")
        assert (disk_dir / form).read_bytes() == b"x" * 1000 + bytes(24)


def test_import_never_follows_a_foreign_backing_name(quantavirt, qemu_img, root, disk_dir):
    (disk_dir / "secret").write_bytes(b"s" * MIB)
    for name, options in (("backing", ["-b", disk_dir / "secret", "-F", "raw"]),
                          ("data", ["-o", f"data_file={disk_dir}/data.raw"])):
        foreign = disk_dir / f"{name}.qcow2"
        qemu_img("create", "-f", "qcow2", *options, foreign, "1M")
        fails(quantavirt("storage", "import", "--name", "a", foreign, code=None), 1, f"it names the {name} file")
    assert left_behind(root) == []


def test_snapshots_of_a_foreign_image_are_not_lost_in_silence(quantavirt, qemu_img, disk_dir):
    foreign = disk_dir / "foreign.qcow2"
    qemu_img("create", "-f", "qcow2", foreign, "1M")
    qemu_img("snapshot", "-c", "one", foreign)
    assert len(quantavirt("storage", "info", foreign, "--format", "qcow2", "--json").json()["snapshots"]) == 1
    assert "not its 1 snapshot" in quantavirt("storage", "import", "--name", "a", foreign).stderr


def test_import_does_not_guess(quantavirt, qemu_img, disk_dir):
    for name in ("disk.img", "disk"):
        qemu_img("create", "-f", "qcow2", disk_dir / name, "1M")
        fails(quantavirt("storage", "import", "--name", "a", disk_dir / name, code=None), 2, "--source-format")
    quantavirt("storage", "import", "--name", "q", disk_dir / "disk.img", "--source-format", "qcow2")
    quantavirt("storage", "import", "--name", "r", disk_dir / "disk.img", "--source-format", "raw")
    formats = {i["name"]: i["format"] for i in quantavirt("storage", "list", "--json").json()}
    assert formats == {"q": "qcow2", "r": "raw"}


@pytest.mark.parametrize("make", [
    lambda p: p.write_bytes(b""), lambda p: p.mkdir(), lambda p: os.mkfifo(p), lambda p: None,
    lambda p: p.write_bytes(b"QFI\xfb" + os.urandom(100_000)),
])
def test_import_refuses_what_is_no_disk(quantavirt, root, disk_dir, make):
    make(disk_dir / "x.qcow2")
    result = quantavirt("storage", "import", "--name", "a", disk_dir / "x.qcow2", code=None, timeout=20)
    assert result.code in (1, 2, 3, 5) and result.stderr.startswith("quantavirt: "), result
    assert left_behind(root) == []


def test_export_does_not_overwrite(quantavirt, create, disk_dir):
    create("a")
    (disk_dir / "there").write_text("mine")
    fails(quantavirt("storage", "export", "a", disk_dir / "there", code=None), 1, "is there already")
    fails(quantavirt("storage", "export", "a", disk_dir / "no/where", code=None), 3, "No such file")
    assert (disk_dir / "there").read_text() == "mine"


# ---- check ----

def test_check_of_clean_images(quantavirt, create):
    create("r")
    create("q", "qcow2")
    assert "no metadata" in quantavirt("storage", "check", "r").stdout
    for name in ("r", "q"):
        found = quantavirt("storage", "check", name, "--json").json()
        assert set(found) == CHECK_KEYS
        assert found["image"] == name and found["clean"] is True
        assert (found["corruptions"], found["leaks"], found["details"]) == (0, 0, [])


def refcount_block(path):
    """Offset of the first refcount block."""
    data = path.read_bytes()
    table = int.from_bytes(data[48:56], "big")
    return int.from_bytes(data[table:table + 8], "big")


def test_check_tells_leaks_from_corruption(quantavirt, create, root):
    create("q", "qcow2")
    path = root / "images/q.qcow2"
    block = refcount_block(path)
    with open(path, "r+b") as f:
        f.seek(0, os.SEEK_END)
        f.write(bytes(65536))
        f.seek(block + 2 * 4)  # the cluster after the last one in use
        f.write(b"\0\1")
    assert path.stat().st_size == 5 * 65536, "the test knows the layout: header, table, block, L1, and a new one"
    leaked = quantavirt("storage", "check", "q", "--json", code=6)
    assert leaked.json()["leaks"] == 1 and leaked.json()["clean"] is False and leaked.json()["details"]
    assert leaked.stderr == "quantavirt: q: 1 leaked cluster found\n"
    with open(path, "r+b") as f:
        f.seek(block)
        f.write(b"\0\0")  # the header's own refcount
    broken = quantavirt("storage", "check", "q", "--json", code=5)
    assert broken.json()["corruptions"] >= 1
    path.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(65536))  # clusters of one byte
    assert quantavirt("storage", "check", "q", "--json", code=5).json()["clean"] is False
    fails(quantavirt("storage", "info", "q", code=None), 5, "q: ")
    assert quantavirt("storage", "list", "--json").json()[0]["virtual_size"] is None


# ---- at the same time, and killed ----

def start(root, *args):
    return subprocess.Popen([str(a) for a in (paths.QUANTAVIRT, "--root", root, *args)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_of_many_creations_of_one_name_exactly_one_wins(quantavirt, root):
    many = [start(root, "storage", "create", "--name", "a", "--format", form, "--size", "1M")
            for form in ["raw", "qcow2"] * 6]
    codes = [p.wait(30) for p in many]
    for p in many:
        p.communicate()
    assert sorted(codes)[0] == 0 and codes.count(0) == 1 and set(codes) <= {0, 1, 4}, codes
    assert len(quantavirt("storage", "list", "--json").json()) == 1
    assert len(list((root / "images").iterdir())) == 1


def test_commands_on_different_images_do_not_meet(quantavirt, root):
    many = [start(root, "storage", "create", "--name", f"i{n}", "--format", "qcow2", "--size", "1M") for n in range(8)]
    assert [p.wait(30) for p in many] == [0] * 8
    for p in many:
        p.communicate()
    many = [start(root, "storage", "delete", f"i{n}") for n in range(8)]
    assert [p.wait(30) for p in many] == [0] * 8
    for p in many:
        p.communicate()
    assert left_behind(root) == []


@pytest.mark.parametrize("command", ["create", "import", "convert", "compress", "export"])
def test_a_killed_command_leaves_nothing_half_made(quantavirt, root, disk_dir, command):
    source = disk_dir / "source.raw"
    source.write_bytes(os.urandom(MIB) * 48)
    quantavirt("storage", "import", "--name", "s", source)
    args = {
        "create": ["create", "--name", "a", "--format", "raw", "--size", "48M", "--prealloc", "full"],
        "import": ["import", "--name", "a", source, "--format", "qcow2"],
        "convert": ["convert", "s", "--target-format", "qcow2", "--output", "a"],
        "compress": ["convert", "s", "--target-format", "qcow2", "--output", "a", "--compress"],
        "export": ["export", "s", disk_dir / "out.raw"],
    }[command]
    killed = 0
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
        process = start(root, "storage", *args)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        images = [i["name"] for i in quantavirt("storage", "list", "--json").json()]
        if process.returncode != 0:
            assert images in (["s"], ["a", "s"])
        if "a" in images:
            quantavirt("storage", "check", "a")
            quantavirt("storage", "delete", "a")
        out = disk_dir / "out.raw"
        if out.exists():
            assert out.read_bytes() == source.read_bytes()
            out.unlink()
    assert killed > 0
    quantavirt("storage", *args)
    assert [p.name for p in left_behind(root) if p.parent.name != "locks"] == []
    assert sorted(p.name for p in disk_dir.iterdir() if p.is_file()) == \
        (["out.raw"] if command == "export" else []) + ["source.raw"]


def test_progress_comes_as_json_lines(root, disk_dir):
    big = disk_dir / "big.raw"
    with open(big, "wb") as f:
        for _ in range(32):
            f.write(os.urandom(MIB) * 8)
    begun = time.monotonic()
    done = subprocess.run(["nice", "-n", "19", paths.QUANTAVIRT, "--root", root, "--json", "storage", "import", "--name", "a",
                           big, "--format", "qcow2", "--cluster-size", "512"], capture_output=True, text=True, timeout=100)
    took = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    parts = [json.loads(line)["progress"] for line in done.stderr.splitlines()]
    assert parts or took < 2  # nothing is shown of what takes a second
    assert parts == sorted(parts) and all(0 <= p <= 1 for p in parts)
