"""Machines of their own as network namespaces: one cable each to a switch, which this process is at, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

_NETWORK = "10.118.7"
_PREFIX = f"m{os.getpid() % 100000}"


@dataclass(frozen=True)
class Machine:
    """A network namespace with an address."""

    host: str
    namespace: str
    cable: str

    @property
    def prefix(self) -> Sequence[str]:
        """What runs a command there."""
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        """Pull the cable out of the switch: the machine goes on, silent."""
        _ip("link", "set", self.cable, "nomaster")

    def mend(self) -> None:
        """Put the cable in again."""
        _ip("link", "set", self.cable, "master", f"{_PREFIX}sw")


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines on one switch. Skips the test, and says why, where this process may not make any."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NOT TESTED: a cut cable needs network namespaces, which need root and iproute2")
    made = [Machine(f"{_NETWORK}.{at + 2}", f"{_PREFIX}n{at}", f"{_PREFIX}c{at}") for at in range(count)]
    try:
        try:
            _ip("netns", "add", made[0].namespace)
            # An address of its own: it would take that of some cable, and another one when that is cut.
            _ip("link", "add", f"{_PREFIX}sw", "address", "02:00:0a:76:07:01", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"NOT TESTED: no network namespaces here: {error.stderr.decode().strip()}")
        _ip("address", "add", f"{_NETWORK}.1/24", "dev", f"{_PREFIX}sw")
        _ip("link", "set", f"{_PREFIX}sw", "up")
        for machine in made[1:]:
            _ip("netns", "add", machine.namespace)
        for machine in made:
            _ip("link", "add", machine.cable, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
            _ip("link", "set", machine.cable, "up")
            machine.mend()
            _ip("-n", machine.namespace, "address", "add", f"{machine.host}/24", "dev", "eth0")
            _ip("-n", machine.namespace, "link", "set", "eth0", "up")
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
        yield made
    finally:
        for machine in made:
            subprocess.run(["ip", "netns", "delete", machine.namespace], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{_PREFIX}sw"], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
