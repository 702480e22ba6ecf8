# SPDX-License-Identifier: Apache-2.0
"""A supervisor in Python: starts quantavirt-io and speaks its control protocol (src/control/README.md)."""
import json
import os
import socket
import subprocess

from . import paths

CONTROL_FD = 3
MESSAGE_MAX = 65536


class Refused(AssertionError):
    """A request ended with an error; `.kind` and `.message` as sent."""

    def __init__(self, command, error):
        super().__init__(f"{command}: {error['kind']}: {error['message']}")
        self.kind, self.message = error["kind"], error["message"]


class IoProcess:
    """A running I/O process. Events that arrive between replies gather in `.events`."""

    def __init__(self, threads=2):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.process = subprocess.Popen(
            [paths.BUILD / "quantavirt-io", "--threads", str(threads)], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={"LC_ALL": "C.UTF-8"}, pass_fds=(CONTROL_FD,),
            preexec_fn=lambda: os.dup2(theirs.fileno(), CONTROL_FD))
        theirs.close()
        self.next_id, self.events = 1, []

    @property
    def pid(self):
        return self.process.pid

    def send(self, command, fds=(), **args):
        """Sends a request without waiting; its id."""
        self.next_id += 1
        doc = {"id": self.next_id, "command": command, "arguments": args}
        socket.send_fds(self.socket, [json.dumps(doc).encode()], list(fds))
        return self.next_id

    def receive(self):
        """The next message; None at the end of the channel."""
        data = self.socket.recv(MESSAGE_MAX)
        return json.loads(data) if data else None

    def reply(self, request_id):
        """The reply to a request; Refused when it is an error."""
        while True:
            message = self.receive()
            assert message is not None, f"the I/O process ended\n{self.stop()[1]}"
            if "event" in message:
                self.events.append((message["event"], message["data"]))
            elif message["id"] == request_id:
                if not message["ok"]:
                    raise Refused(request_id, message["error"])
                return message["result"]

    def call(self, command, fds=(), **args):
        return self.reply(self.send(command, fds, **args))

    def event(self, name):
        """Waits for an event; its data."""
        while True:
            for i, (got, data) in enumerate(self.events):
                if got == name:
                    del self.events[i]
                    return data
            message = self.receive()
            assert message is not None, f"the I/O process ended\n{self.stop()[1]}"
            if "event" in message:
                self.events.append((message["event"], message["data"]))

    def add_disk(self, disk_id, path, fmt, flags=os.O_RDWR, **args):
        """disk-add of one file, which this process then no longer has open."""
        fd = os.open(path, flags)
        try:
            how = {k: args.pop(k) for k in ("cache", "io", "readonly", "cache_required") if k in args}
            return self.call("disk-add", [fd], id=disk_id, chain=[{"fd": 0, "format": fmt, **how}], **args)
        finally:
            os.close(fd)

    def stop(self, timeout=20):
        """Closes the channel, as a supervisor's death does; (exit code, what it said on stderr)."""
        self.socket.close()
        try:
            _, stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, stderr = self.process.communicate()
        return self.process.returncode, stderr
