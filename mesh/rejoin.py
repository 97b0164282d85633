"""How a node finds its swarm again: what it remembered, and the addresses that its token or its settings name."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping

import trio

from mesh.errors import PeerError, PeerMisbehaved
from mesh.gossip import Gossip
from mesh.membership import Effect
from mesh.records import SignedRecord
from mesh.remembered import Memory, Remembered
from mesh.timing import Timing
from mesh.transport import Address, PeerId

_SAVE_S = 5.0  # at most so often
_PAUSE_MAX_S = 30.0

_log = logging.getLogger("mesh.rejoin")


def recall(memory: Memory, gossip: Gossip) -> list[Effect]:
    """Take in what an earlier run saved: its peers are dialled, its bans hold."""
    held, now = memory.load(), trio.current_time()
    effects: list[Effect] = []
    saved: list[SignedRecord | bytes] = [*held.bans, *held.records]
    for item in saved:
        try:
            effects += gossip.recall(item, now)
        except PeerMisbehaved as error:
            _log.warning("something remembered of the swarm is of no use: %s", error)
    return effects


async def save_changes(memory: Memory, gossip: Gossip) -> None:
    """Save what is worth remembering, when it has changed and at the end."""
    try:
        while True:
            await trio.sleep(_SAVE_S)
            await _save(memory, gossip)
    finally:
        with trio.move_on_after(1.0, shield=True):
            await _save(memory, gossip)


async def _save(memory: Memory, gossip: Gossip) -> None:
    if gossip.dirty:
        gossip.dirty = False
        await memory.save(Remembered(*gossip.lasting()))


async def dial_bootstrap(
    dial: Callable[[tuple[Address, ...]], Awaitable[PeerId]],
    missing: Callable[[Mapping[Address, PeerId]], list[Address]],
    timing: Timing,
    rng: random.Random,
) -> None:
    """Dial the addresses where nobody is known to be alive, with pauses that double. `missing` tells which, from who
    answered there last."""
    owners: dict[Address, PeerId] = {}
    pause_s = timing.redial_s

    async def one(address: Address) -> None:
        try:
            owners[address] = await dial((address,))
        except PeerError as error:
            _log.info("nobody to join at %s: %s", address, error)

    while True:
        addresses = missing(owners)
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(one, address)
        # Members that we met are redialled by membership itself: nothing here is urgent once they were there.
        await trio.sleep((pause_s if addresses else _PAUSE_MAX_S) * rng.uniform(0.8, 1.0))
        pause_s = min(_PAUSE_MAX_S, 2 * pause_s) if addresses else timing.redial_s
