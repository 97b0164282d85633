"""All replicas of a model, here and on the peers, as the router wants them."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from backends.types import MeshError, ModelMissing
from mesh.estimate import Need, Replica
from mesh.faults import Faults
from mesh.membership import State
from mesh.prefix import PrefixIndex
from mesh.records import Load, Offer
from mesh.reservations import Reservations
from mesh.roster import Member, Roster
from mesh.transport import PeerId
from node.inventory import Entry, Inventory
from node.offers import Offers


class View:
    """Reads the inventory, the roster and this node's own books; decides nothing."""

    def __init__(
        self, inventory: Inventory, offers: Offers, own: PeerId, roster: Roster | None, own_name: str = "this node"
    ) -> None:
        """`roster` is None for a node without a swarm."""
        self._inventory = inventory
        self._offers = offers
        self._roster = roster
        self._own_name = own_name
        self._faults: defaultdict[PeerId, Faults] = defaultdict(Faults)
        self.own = own
        self.book = Reservations()
        self.prefixes = PrefixIndex()

    @property
    def own_name(self) -> str:
        """This node's name as the others see it."""
        return self._roster.own_name if self._roster is not None else self._own_name

    @property
    def has_swarm(self) -> bool:
        """Whether this node takes part in one."""
        return self._roster is not None

    def local(self, model: str) -> Entry:
        """This node's own model of that name or alias. Raises what Inventory.resolve raises."""
        return self._inventory.resolve(model)

    def member(self, name: str) -> Member | None:
        """The peer of that name or id."""
        return self._roster.by_name(name) if self._roster is not None else None

    def replicas(self, need: Need, now: float) -> tuple[list[Replica], MeshError | None]:
        """All replicas that may serve `need`, and what is wrong with this node's own model if something is."""
        cached = self.prefixes.cached(need.prefix, need.prompt_tokens, now)
        found: list[Replica] = []
        trouble: MeshError | None = None
        try:
            entry = self.local(need.model)
            entry.checked_needs  # noqa: B018  # raises what is wrong with the file
            if offer := self._offers.of(entry):
                found.append(self._own_replica(entry, offer, cached, now))
        except MeshError as error:
            trouble = error
        for member, offer in self._remote(need.model):
            if member.usable:
                found.append(self._replica(member, offer, cached, now))
        return found, trouble

    def narrow(self, need: Need, tokens: int, now: float) -> set[PeerId]:
        """Who has no longer a context of the model than that."""
        replicas, _ = self.replicas(need, now)
        return {replica.peer for replica in replicas if 0 < replica.offer.context_tokens <= tokens}

    def holders_down(self, model: str) -> list[str]:
        """Names of peers that have the model and cannot be asked now."""
        return [
            member.name for member, _ in self._remote(model) if not member.usable and member.state is not State.LEFT
        ]

    def down(self, peer: PeerId) -> bool:
        """Whether that is a peer which cannot be asked now."""
        member = self._roster.get(peer) if self._roster is not None else None
        return member is not None and not member.usable

    def models(self) -> Mapping[str, list[tuple[Member, Offer]]]:
        """Every model of every usable peer, by name."""
        by_name: defaultdict[str, list[tuple[Member, Offer]]] = defaultdict(list)
        for member in self._members():
            if member.usable:
                for offer in member.record.offers:
                    by_name[offer.model].append((member, offer))
        return by_name

    def failed(self, peer: PeerId, *, failed: bool, now: float) -> None:
        """A call that this node sent to a peer has ended."""
        self._faults[peer].record(failed=failed, now=now)

    def forget(self, peer: PeerId) -> None:
        """A peer is gone: its cache is empty when it comes back, and what was sent there is over."""
        self.prefixes.forget(peer)
        self.book.forget(peer)

    def _own_replica(self, entry: Entry, offer: Offer, cached: Mapping[PeerId, int], now: float) -> Replica:
        return Replica(
            peer=self.own,
            name=self.own_name,
            offer=offer,
            load=self._offers.load(entry.spec.name, now),
            cached_tokens=cached.get(self.own, 0),
            local=True,
        )

    def _replica(self, member: Member, offer: Offer, cached: Mapping[PeerId, int], now: float) -> Replica:
        self.book.seen(member.peer, member.last_heard, rtt_s=member.rtt_s)
        return Replica(
            peer=member.peer,
            name=member.name,
            offer=offer,
            load=member.loads.get(offer.model) or Load(offer.model, "absent"),
            rtt_s=member.rtt_s,
            reserved=self.book.on(member.peer, offer.model),
            cached_tokens=cached.get(member.peer, 0),
            error_rate=self._faults[member.peer].rate(now) if member.peer in self._faults else 0.0,
        )

    def _remote(self, model: str) -> Iterator[tuple[Member, Offer]]:
        for member in self._members():
            offers = [offer for offer in member.record.offers if model == offer.model or model in offer.aliases]
            if offers:
                yield member, max(offers, key=lambda offer: offer.model == model)  # a name of its own wins

    def _members(self) -> Iterable[Member]:
        return self._roster.members if self._roster is not None else ()


def missing(model: str, known: Iterable[str]) -> ModelMissing:
    """Nobody has it; `known` are the names that somebody has."""
    near = next(iter(difflib.get_close_matches(model, list(known), 1)), None)
    hint = f' Did you mean "{near}"?' if near else " To see available models, call GET /v1/models"
    return ModelMissing(f'model "{model[:200]}" not found.{hint}')
