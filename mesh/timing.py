"""How often peers beat and how long they wait: one frozen value, with presets as values.

Every knob says its unit, what follows from it, and the trade-off. All of it is the local monotonic clock's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one node. Nodes of one swarm may differ: each promises its own pace in its beats, and is judged by that."""

    beat_s: float = 1.0
    """Between two beats to one peer, in a swarm of up to `beats_per_s * beat_s` peers. Shorter notices a silent machine
    sooner and has fresher loads; costs one small message per peer and beat, both ways."""

    beats_per_s: float = 50.0
    """Beats a node sends per second, to all peers together. Above that it slows down: pace = max(beat_s, peers /
    beats_per_s), so a large swarm costs each node no more per second, and notices silence later in proportion."""

    max_pace_s: float = 10.0
    """The slowest pace that a peer may promise: nobody can ask not to be missed for an hour."""

    suspect_beats: float = 2.2
    """Paces of silence until SUSPECT (not routed to): two lost beats and their jitter. Fewer is quicker and flaps."""

    dead_beats: float = 3.5
    """Paces of silence until DEAD. At 1 s: 3.5 s, and what was asked of it is resumed elsewhere."""

    lost_s: float = 0.9
    """From a lost connection (SUSPECT at once, redialled at once) to DEAD, if the redial neither succeeds nor is
    refused before. Longer rides out a flapping link, and keeps a crashed machine's calls waiting."""

    redial_s: float = 1.0
    """Between two dials of a peer that died less than `recent_s` ago. A healed link is noticed within
    redial_s + one connection set-up."""

    dials_per_s: float = 20.0
    """Dials of recently dead peers per second, all together: the pause is max(redial_s, dead / dials_per_s)."""

    recent_s: float = 60.0
    """How long a dead peer is redialled at that pace; then each pause is twice the last, up to `redial_max_s`."""

    redial_max_s: float = 60.0
    """The longest pause between two dials of a peer that is not there."""

    dial_timeout_s: float = 1.0
    """For one dial of a known peer: with redial_s as the start-to-start interval, a dial into a cut link does not hide
    that the link has healed. Too short for a far peer means never connecting to it: see WAN."""

    patience_s: float = 0.3
    """Of two peers that learn of each other, the one with the higher id leaves it this long to the other to dial."""

    admission_s: float = 5.0
    """For the whole challenge with a stranger, and for its first record. After that the connection is dropped."""

    stall_s: float = 0.25
    """A timer that comes later than this means that our own loop stood still: no peer is blamed for that silence. Also
    how long peers get to be heard afterwards."""

    ghost_s: float = 60.0
    """A peer known only from another's word, and never reached, is forgotten after this long."""

    forget_s: float = 24 * 3600.0
    """A peer that died or left, or that is remembered from an earlier run, is forgotten after this long."""


LAN = Timing()
"""Machines of one network: a silent one is dead after 3.5 s."""

WAN = replace(LAN, beat_s=2.0, lost_s=3.0, dial_timeout_s=4.0, patience_s=1.0, admission_s=10.0)
"""Round trips of 100 ms and more, and relays: a silent machine is dead after 7 s, a healed link noticed in 5 s."""

LOCAL = replace(LAN, beat_s=0.5, lost_s=0.5, redial_s=0.5, dial_timeout_s=0.5, patience_s=0.1)
"""Nodes of one machine: a silent process is dead after 1.75 s."""

PRESETS = {"lan": LAN, "wan": WAN, "local": LOCAL}
