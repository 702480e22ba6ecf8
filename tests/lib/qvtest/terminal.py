# SPDX-License-Identifier: Apache-2.0
"""A command at a terminal: what it asks there, what it is told, whether it echoes."""
import os
import pty
import select
import signal
import termios
import time

from . import paths


class Terminal:
    """`quantavirt` at a terminal of its own, which is its controlling one."""

    def __init__(self, root, *args):
        self.said = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # Who runs the tests in the background may have them ignore these; a shell at a terminal does not.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.environ.pop("QUANTAVIRT_PASSPHRASE_FILE", None)
            os.execv(paths.QUANTAVIRT, [str(paths.QUANTAVIRT), "--root", str(root), *map(str, args)])

    def echoes(self):
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def _read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # nobody has the other end any more
                return False
            self.said += data.decode(errors="replace")
            return bool(data)
        return True

    def wait(self, text, timeout=30):
        """Until it has said TEXT; what it said up to there is forgotten."""
        end = time.monotonic() + timeout
        while text not in self.said:
            assert self._read(0.2) or text in self.said, f"{text!r} never came: {self.said!r}"
            assert time.monotonic() < end, f"{text!r} does not come: {self.said!r}"
        before, _, self.said = self.said.partition(text)
        return before

    def answer(self, prompt, text):
        """What it is told after PROMPT, where it must not echo."""
        before = self.wait(prompt)
        assert not self.echoes(), prompt
        os.write(self.fd, (text + "\n").encode())
        return before

    def end(self, timeout=30):
        """(exit code, or minus the signal; all that it said since)."""
        end = time.monotonic() + timeout
        while True:
            more = self._read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self._read(0) and select.select([self.fd], [], [], 0)[0]:
                    pass
                return os.waitstatus_to_exitcode(status), self.said
            if not more:
                time.sleep(0.02)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it does not end: {self.said!r}")

    def close(self):
        os.close(self.fd)
