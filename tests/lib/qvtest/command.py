# SPDX-License-Identifier: Apache-2.0
"""Running programs: results that explain themselves, nothing left behind."""
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path


class Result:
    """What a finished program said. `code` is negative for a signal."""

    def __init__(self, argv, code, stdout, stderr):
        self.argv, self.code, self.stdout, self.stderr = argv, code, stdout, stderr

    def json(self):
        return json.loads(self.stdout)

    def __str__(self):
        return f"$ {' '.join(self.argv)}\nexit code {self.code}\n{self.stdout}{self.stderr}"


class CommandFailed(AssertionError):
    """A command ended with another exit code than the test asked for."""

    def __init__(self, result, wanted):
        super().__init__(f"wanted exit code {wanted}\n{result}")
        self.result = result


def run(*argv, code=0, timeout=60, **kwargs):
    """Runs a program to its end. `code`: the exit code it must have; None for any.

    Its output goes to files, not pipes: a pipe would stay open, and be waited for, as long as anything
    it left running in the background holds it.
    """
    argv = [str(a) for a in argv]
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(argv, stdout=out, stderr=err, **kwargs) as process:
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                status = None
        texts = []
        for f in (out, err):
            f.seek(0)
            texts.append(f.read().decode(errors="replace"))
    result = Result(argv, status, *texts)
    if status is None:
        raise AssertionError(f"still ran after {timeout} s\n{result}")
    if code is not None and result.code != code:
        raise CommandFailed(result, code)
    return result


class Daemon:
    """A program that runs until it is stopped, and says on stdout when it is ready."""

    def __init__(self, *argv, ready="ready", timeout=20, **kwargs):
        self.argv = [str(a) for a in argv]
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, **kwargs)
        self.ready_line = self._wait_ready(ready, timeout) if ready else None

    @property
    def pid(self):
        return self.process.pid

    def _wait_ready(self, word, timeout):
        fd = self.process.stdout.fileno()
        os.set_blocking(fd, False)
        text, end = "", time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                text += os.read(fd, 65536).decode(errors="replace")
            except BlockingIOError:
                pass
            for line in text.splitlines(keepends=True):
                if line.startswith(word) and line.endswith("\n"):
                    return line.rstrip("\n")
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop(signal.SIGKILL)
        raise AssertionError(f"$ {' '.join(self.argv)}\nnever said {word!r}; exit code {self.process.returncode}\n"
                             f"{text}{self.stderr}")

    def stop(self, sig=signal.SIGTERM, timeout=20):
        """Ends the program and returns its exit code; kills it, and fails, if it does not obey."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            _, self.stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, self.stderr = self.process.communicate()
            raise AssertionError(f"$ {' '.join(self.argv)}\nstill ran {timeout} s after signal {sig}\n"
                                 f"{self.stderr}") from None
        except ValueError:  # stopped before; its pipes are closed
            pass
        return self.process.returncode


def processes_naming(path):
    """Pids of processes that have PATH in their command line; not this one."""
    needle, found = os.fsencode(str(path)), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if needle in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile
            pass
    return found
