"""Processes by a name that is given once, so that others can tell whether they live."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        machine: tells the machine since its last start, and a container on it, from others of the same host name.
        born: when it was started, as its id may be given again.
    """

    host: str
    machine: str
    pid: int
    born: str | None

    @classmethod
    def this(cls) -> Process:
        return cls(socket.gethostname(), machine(), os.getpid(), birth(os.getpid()))

    @property
    def is_gone(self) -> bool:
        """Whether it has ended; of other machines nothing is known."""
        return self.machine == machine() and birth(self.pid) != self.born


@functools.cache
def machine() -> str:
    """The name of this machine, see `Process`."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def birth(pid: int) -> str | None:
    """When a process of this machine was started; None if it is gone."""
    if Path("/proc/self/stat").exists():
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else fields[18]
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip() or None
