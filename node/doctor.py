"""What `mesh doctor` looks at: data folder, backends, ports, network, token, and each peer. Explains and proposes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import trio

from backends.registry import find_backends
from mesh.discovery import Check, diagnose
from mesh.errors import Incompatible, NotAMember, PeerError, TokenError
from mesh.identity import Identity
from mesh.libp2p import Libp2pTransport
from mesh.records import Hardware, PeerRecord
from mesh.secretfile import SecretFileError
from mesh.swarm import Swarm
from mesh.token import JoinToken
from node import __version__
from node.catalog import read_catalog
from node.config import Settings
from node.datadir import running_url
from node.peers import DEFAULT_PORT, PROTOCOL_VERSION
from node.swarmdir import SwarmDir

KNOCK_S = 5.0
_MAX_KNOCKS = 8


async def examine(settings: Settings, view: dict[str, object] | None) -> list[Check]:
    """All findings; `view` is /api/mesh of the running node, None while none runs."""
    checks = [*_data(settings), *_backends(settings), *_ports(settings)]
    if settings.solo:
        return [*checks, Check("swarm", ok=True, finding="This node takes part in no swarm (setting solo).")]
    checks += await diagnose()
    token, found = _token(settings)
    checks.append(found)
    if view is not None:
        checks += _peers(view)
    elif token is not None:
        checks += await _knock_all(token)
    checks.append(
        Check("clocks", ok=True, finding="Clocks are never compared between machines: one that is wrong does no harm.")
    )
    return checks


def _data(settings: Settings) -> Iterator[Check]:
    folder = settings.data
    probe = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if os.access(probe, os.W_OK):
        yield Check("data folder", ok=True, finding=f"{folder} can be written.")
    else:
        yield Check("data folder", ok=False, finding=f"{folder} cannot be written.", advice="Name another with --data.")
    if url := running_url(folder):
        yield Check("node", ok=True, finding=f"A node runs on it and answers at {url}.")
    else:
        yield Check("node", ok=True, finding="No node runs on it now.")


def _backends(settings: Settings) -> Iterator[Check]:
    backends = find_backends()
    for name, backend in backends.items():
        why = backend.unavailable()
        if why is None:
            yield Check(f"backend {name}", ok=True, finding=f"{name} can open models.")
        else:
            yield Check(f"backend {name}", ok=False, finding=f"{name} cannot open models.", advice=why)
    catalog = read_catalog(settings.models_dir, backends)
    for file, reason in catalog.broken.items():
        yield Check(f"model {file}", ok=False, finding=reason, advice=f"Mend {settings.models_dir / file}.")


def _ports(settings: Settings) -> Iterator[Check]:
    if running_url(settings.data) is not None:
        return
    wanted = [("API port", settings.host, settings.port, "--port"), _mesh_port(settings)]
    for what, host, port, flag in wanted:
        if port and not _is_free(host, port):
            yield Check(
                what,
                ok=False,
                finding=f"Port {port} on {host} is taken by another program.",
                advice=f"Take another with {flag}, or 0 for any free one.",
            )
        elif port:
            yield Check(what, ok=True, finding=f"Port {port} on {host} is free.")


def _mesh_port(settings: Settings) -> tuple[str, str, int, str]:
    port = settings.mesh_port or SwarmDir(settings.data).port or DEFAULT_PORT
    return ("mesh port", settings.mesh_host, port, "--mesh-port")


def _token(settings: Settings) -> tuple[JoinToken | None, Check]:
    try:
        given = settings.token
        token = SwarmDir(settings.data).token() if given is None else JoinToken.parse(given.get_secret_value())
    except (TokenError, SecretFileError) as error:
        return None, Check("token", ok=False, finding=str(error), advice="Copy it again from `mesh token` on a member.")
    if token is None:
        advice = "`mesh up` makes a swarm; `mesh join TOKEN` enters one."
        return None, Check("token", ok=True, finding="This node has no join token yet.", advice=advice)
    return token, Check(
        "token", ok=True, finding=f"The join token is in order; it names {len(token.addresses)} addresses."
    )


def _peers(view: dict[str, object]) -> Iterator[Check]:
    nodes = view["nodes"]
    assert isinstance(nodes, list)
    others = [node for node in nodes if not node["self"]]
    if not others:
        yield Check(
            "peers",
            ok=True,
            finding="This node knows of no other.",
            advice="Run the line that `mesh up` printed on another machine.",
        )
    for node in others:
        name, state = f"peer {node['name']}", node["state"]
        if state == "incompatible":
            yield Check(
                name,
                ok=False,
                finding=f"It runs {node['version']}, protocol {node['protocol']}; this node speaks {PROTOCOL_VERSION}.",
                advice="Bring both to one version.",
            )
        elif state == "alive" and node["relayed"]:
            yield Check(
                name,
                ok=True,
                finding=f"Alive, but only through a relay ({node['round_trip_s'] * 1000:.0f} ms).",
                advice="Open its mesh port in the firewall for a direct way.",
            )
        elif state == "alive":
            yield Check(name, ok=True, finding=f"Alive, {node['round_trip_s'] * 1000:.1f} ms away.")
        else:
            yield Check(
                name,
                ok=state == "left",
                finding=f"{state.capitalize()}; last heard of {node['last_heard_s']:.0f} s ago at "
                f"{', '.join(node['addresses'][:2]) or 'no address'}.",
                advice="" if state == "left" else "Is it running? Can this machine reach that address and port?",
            )


async def _knock_all(token: JoinToken) -> list[Check]:
    """Dial each address of the token as a member would, under an identity of the moment."""
    if not token.addresses:
        return [Check("addresses", ok=True, finding="The token names no address; the LAN is searched.")]
    identity, keys = Identity.generate(), token.keys()
    transport = Libp2pTransport(identity, keys.network, ("/ip4/127.0.0.1/tcp/0",))
    record = PeerRecord(
        peer=identity.peer,
        name="doctor",
        version=__version__,
        protocol=PROTOCOL_VERSION,
        incarnation=1,
        sequence=0,
        addresses=(),
        roles=(),
        hardware=Hardware("", "", 0, 0),
        offers=(),
    )
    swarm = Swarm(identity, keys, transport, record)
    checks: list[Check] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await nursery.start(swarm.run)
        checks += [await _knock(swarm, address) for address in token.addresses[:_MAX_KNOCKS]]
        await swarm.leave()
        nursery.cancel_scope.cancel()
    return checks


async def _knock(swarm: Swarm, address: str) -> Check:
    name = f"address {address}"
    try:
        peer = await swarm.dial((address,), timeout_s=KNOCK_S)
    except (NotAMember, Incompatible) as error:
        return Check(name, ok=False, finding=str(error), advice="Compare `mesh token` and `mesh --version` on both.")
    except PeerError as error:
        return Check(
            name, ok=False, finding=f"Nobody answers: {error}", advice="Is that node running, and its mesh port open?"
        )
    member = swarm.roster.get(peer)
    return Check(name, ok=True, finding=f"{member.name if member else peer} answers and lets this node in.")


def _is_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True
