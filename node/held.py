"""A model that is on several nodes right now."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.transport import PeerId
from mesh.tunnel import LocalEnd, Traffic
from node.catalog import ModelSpec
from node.plan import Plan, Split


@dataclass(slots=True)
class Held:
    """Kept by node/sharding.py from the lease of its workers to their return."""

    spec: ModelSpec
    plan: Plan
    split: Split
    ends: dict[PeerId, LocalEnd]
    """Of its workers, in the order of the split."""
    target: str
    """What of them is leased."""
    slowdown: float
    """By which the split's prediction was corrected already."""
    digest: str
    loading: bool = True
    given_up: bool = False
    """This node itself ended the leases: none of them is to blame for that."""

    @property
    def traffic(self) -> Traffic:
        """Through all its tunnels so far."""
        total = Traffic()
        for end in self.ends.values():
            total.add(end.traffic)
        return total
