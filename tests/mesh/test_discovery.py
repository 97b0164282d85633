"""Discovery: zeroconf on loopback, for real, and what `mesh doctor` says where it cannot work."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from zeroconf import IPVersion, ServiceInfo, Zeroconf

from mesh.discovery import Found, LanFinder, ListFinder, checks, diagnose
from mesh.discovery.checks import PORT
from mesh.discovery.lan import SERVICE, usable_interfaces
from mesh.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = ("127.0.0.1",)


class Seen:
    """What a finder has reported."""

    def __init__(self) -> None:
        self.sightings: list[Found] = []
        self._more = trio.Event()

    def __call__(self, found: Found) -> None:
        self.sightings.append(found)
        self._more.set()
        self._more = trio.Event()

    async def until(self, wanted: Callable[[Found], bool]) -> Found:
        with trio.fail_after(20):
            while True:
                for each in self.sightings:
                    if wanted(each):
                        return each
                await self._more.wait()


def finder(fingerprint: str, port: int, peer: str = "") -> LanFinder:
    return LanFinder(fingerprint, peer or Identity.generate().peer, lambda: (f"/ip4/127.0.0.1/tcp/{port}",))


@pytest.fixture
def fingerprint() -> str:
    """Of a swarm that no other test run on this network has."""
    return os.urandom(8).hex()


async def test_members_on_one_network_find_each_other_and_nobody_else(fingerprint: str) -> None:
    peers = [Identity.generate().peer for _ in range(3)]
    left, right = finder(fingerprint, 4001, peers[0]), finder(fingerprint, 4002, peers[1])
    other = finder(os.urandom(8).hex(), 4003, peers[2])
    seen: dict[str, Seen] = {"left": Seen(), "right": Seen(), "other": Seen()}
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run, seen["other"])
        await nursery.start(left.run, seen["left"])
        await nursery.start(right.run, seen["right"])
        found = await seen["left"].until(lambda each: each.peer == peers[1])
        assert found == Found(peers[1], ("/ip4/127.0.0.1/tcp/4002",), "lan")
        await seen["right"].until(lambda each: each.peer == peers[0])
        assert (left.problem, right.problem) == ("", "")
        nursery.cancel_scope.cancel()
    assert {each.peer for each in seen["left"].sightings} == {peers[1]}
    assert {each.peer for each in seen["right"].sightings} == {peers[0]}
    assert seen["other"].sightings == []


async def test_what_strangers_announce_is_not_believed(fingerprint: str) -> None:
    """A service whose name is not the peer that it tells of, or without a port, is left out."""

    def announce() -> Zeroconf:
        zeroconf = Zeroconf(interfaces=list(LOOPBACK), ip_version=IPVersion.V4Only)
        for name, port, peer in (("mallory", 1, "alice"), ("bob", 0, "bob"), ("x", 1, ""), ("carol", 4009, "carol")):
            properties = {"fingerprint": fingerprint, "peer": peer}
            address = [socket.inet_aton("127.0.0.1")]
            info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", port=port, addresses=address, properties=properties)
            zeroconf.register_service(info, cooperating_responders=True)
        return zeroconf

    zeroconf = await trio.to_thread.run_sync(announce)
    seen = Seen()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(finder(fingerprint, 4001).run, seen)
            await seen.until(lambda each: each.peer == "carol")
            nursery.cancel_scope.cancel()
    finally:
        await trio.to_thread.run_sync(zeroconf.close)
    assert {each.peer for each in seen.sightings} == {"carol"}


async def test_a_finder_says_why_it_finds_nobody(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    nowhere = LanFinder("0" * 16, "peer", lambda: ())
    elsewhere = LanFinder("0" * 16, "peer", lambda: ("/ip4/127.0.0.1/tcp/1",), interfaces=("192.0.2.77",))
    async with trio.open_nursery() as nursery:
        await nursery.start(nowhere.run, Seen())
        await nursery.start(elsewhere.run, Seen())
        await trio.sleep(1)
        assert "no IPv4 address" in nowhere.problem
        nursery.cancel_scope.cancel()


async def test_a_list_is_reported_at_once_and_again(autojump_clock: trio.testing.MockClock) -> None:
    seen = Seen()
    async with trio.open_nursery() as nursery:
        await nursery.start(ListFinder(("/ip4/192.0.2.1/tcp/1", "/dns/x/tcp/1"), source="token", repeat_s=30).run, seen)
        await trio.sleep(35)
        nursery.cancel_scope.cancel()
    assert [each.addresses[0] for each in seen.sightings] == ["/ip4/192.0.2.1/tcp/1", "/dns/x/tcp/1"] * 2
    assert {(each.peer, each.source) for each in seen.sightings} == {(None, "token")}


# What `mesh doctor` says


async def test_all_is_well_on_loopback() -> None:
    found = await diagnose(LOOPBACK)
    assert [check.name for check in found] == ["interfaces", "mdns port", "multicast on 127.0.0.1"]
    assert all(check.ok for check in found), found


async def test_an_interface_that_is_not_there() -> None:
    check = (await diagnose(("192.0.2.77",)))[-1]
    assert (check.ok, check.finding) == (False, "No interface has the address 192.0.2.77.")
    assert check.advice


async def test_the_port_of_mdns_is_taken() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        try:
            selfish.bind(("", PORT))
        except OSError:
            pytest.skip(f"NOT TESTED: something on this machine listens on UDP port {PORT} already")
        found = {check.name: check for check in await diagnose(LOOPBACK)}
    assert not found["mdns port"].ok
    assert "Another program" in found["mdns port"].advice


def test_loopback_alone_where_only_that_is_listened_on() -> None:
    assert usable_interfaces(loopback_only=True) == LOOPBACK
    assert "127.0.0.1" in usable_interfaces(loopback_only=False)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENETUNREACH, "no route"),
        (errno.EADDRNOTAVAIL, "No interface"),
        (errno.EPERM, "firewall"),
        (errno.EIO, "Input/output"),
    ],
)
def test_an_error_of_the_system_becomes_a_sentence(number: int, said: str) -> None:
    assert said in checks._why("192.0.2.1", OSError(number, os.strerror(number)))


async def test_multicast_that_does_not_come_back_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ECHO_S", 0.0)  # not even in no time
    check = (await diagnose(LOOPBACK))[-1]
    assert not check.ok
    assert "is blocked" in check.finding
    assert "firewall" in check.advice


def test_a_machine_without_a_network() -> None:
    """In a network namespace of its own, with nothing but loopback."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("NOT TESTED: network namespaces need root and iproute2")
    code = "import trio; from mesh.discovery import diagnose; print(trio.run(diagnose))"
    script = f"ip link set lo up && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: no network namespaces here: {done.stderr.strip()[-200:]}")
    assert "ok=False" in done.stdout
    assert "No network interface" in done.stdout
