# SPDX-License-Identifier: Apache-2.0
"""ML-KEM, AEADs and HKDF beside another implementation, from the npm registry: tests/oracle. Also by way of a provider."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qvtest import paths
from qvtest.command import run

SOURCE = Path(__file__).parents[1] / "oracle"
PROVIDERS = paths.BUILD / "tests/providers"
PROGRAM = paths.BUILD / "tests/unit/crypto/test_crypto_vectors"


def install(folder):
    """The packages that the lock file names, kept in the build folder from run to run."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    lock = (SOURCE / "package-lock.json").read_text()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != lock:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, folder)
        argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
        try:
            said = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("the npm registry does not answer")
        if said.returncode:
            # Other content than the lock file names is no matter of the network.
            assert "EINTEGRITY" not in said.stderr, said.stderr
            pytest.skip(f"the npm registry cannot be reached: {said.stderr.strip().splitlines()[-1:]}")
        stamp.write_text(lock)
    shutil.copy(SOURCE / "make-vectors.js", folder)


@pytest.fixture(scope="module")
def vectors():
    folder = paths.BUILD / "oracle"
    install(folder)
    out = folder / "vectors"
    shutil.rmtree(out, ignore_errors=True)
    run("node", folder / "make-vectors.js", out)
    return out


def results(*args, code=0):
    """(cases, failed) of test_crypto_vectors."""
    said = run(PROGRAM, *args, code=code)
    return tuple(map(int, re.search(r"^(\d+) cases, (\d+) failed$", said.stdout, re.M).groups()))


def test_another_implementation_agrees(vectors):
    assert results(vectors) == (1852, 0)


def test_a_provider_agrees_with_it(vectors):
    assert results(vectors, "quac100", PROVIDERS / "good") == (1852, 0)


def test_a_provider_that_misbehaves_does_not(vectors):
    cases, failed = results(vectors, "quac100", PROVIDERS / "bad", code=1)
    assert cases == 1852 and failed > 300


def test_providers_and_the_vectors_of_wycheproof():
    folder = paths.REPO / "../shared/vectors"
    if not folder.is_dir():
        pytest.skip("no such vectors beside the checkout")
    cases, failed = results(folder, "quac100", PROVIDERS / "good")
    assert cases > 2000 and failed == 0
    assert results(folder, "quac100", PROVIDERS / "bad", code=1)[1] > 300
