"""Which machines hold which layers of a model that none of them can hold: a pure function of measured facts.

A step of decoding passes through all layers, one machine after the other, so what a split costs is added up:

    token_s = for every machine  weights on it / bytes of weights that it gets through in a second
            + for every worker   round trip + what one token carries over the border / speed of the link
            + what the last one sends back / speed of its link

and its reciprocal is the rate that is promised. The rules:

1. A model that fits this node is not split, nor one that another node has and can hold: there it is faster. `force`
   (`shard: always`) overrides it.
2. Without workers that can be had now there is no split; with an explicit list only those count, and all are used.
3. Candidates are the k best workers, for every k, by speed and by memory. Layers go to the fastest first, up to the
   memory of each; the head takes the first layers of the model, the last worker the output. The least token_s wins:
   so a worker that is not needed is left out, as every one costs a round trip.
4. If the memory of all is not enough, the answer says how much is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from backends.sharding import Shape

UNKNOWN_BYTES_PER_S = 5e9
"""Weights that a machine gets through in a second, where nobody has measured it."""
UNKNOWN_LINK_BYTES_PER_S = 100e6
"""Of a link over which nothing has been loaded yet: a gigabit's worth."""
HANDLING_S = 0.0007
"""What one token costs at a worker beside the round trip: its graph is sent, run and answered, through two pumps.
Without a direct tunnel it is some 2 ms, which is learnt from the first answers."""
LAYER_S = 0.00012
"""What a layer costs beside reading its weights: a step is many small operations."""


@dataclass(frozen=True, slots=True)
class Place:
    """A machine that can take layers."""

    id: str
    name: str
    memory_bytes: int
    bytes_per_s: float = 0.0
    """Weights that it gets through in a second; 0: not measured."""
    rtt_s: float = 0.0
    link_bytes_per_s: float = 0.0
    """From the head to it; 0: not measured."""
    cached: bool = False
    """It has had these weights before, and kept them."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one machine holds."""

    place: Place
    layers: int
    weight_bytes: int
    memory_bytes: int
    """Weights, cache and scratch."""


@dataclass(frozen=True, slots=True)
class Split:
    """A model over several machines: the head first, then the workers in the order of the layers."""

    head: Share
    workers: tuple[Share, ...]
    token_s: float
    load_s: float
    way: str = "layers"
    """Each machine has layers of its own; or it is shared by ranks: "tensor" (each has a part of every layer) or
    "pipeline"."""

    @property
    def tokens_per_s(self) -> float:
        return 1 / self.token_s if self.token_s else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about one model."""

    model: str
    need_bytes: int
    fits: tuple[str, ...]
    """Names of the nodes that can hold it alone, this one first."""
    split: Split | None
    whole_token_s: float
    """On the first of `fits`; 0 where there is none."""
    why: tuple[str, ...]
    """Sentences for people, the decision first."""

    @property
    def whole(self) -> bool:
        """Whether it is to be opened in one piece, here or elsewhere."""
        return self.split is None and bool(self.fits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What any plan is made from."""

    model: str
    need_bytes: int
    """Opened in one piece."""
    head: Place
    workers: tuple[Place, ...]
    """Those that can be had now."""
    elsewhere: tuple[str, ...] = ()
    """Names of nodes that have the model and can hold it."""
    never: bool = False
    force: bool = False
    named: tuple[str, ...] = ()
    """The workers to use, all of them; empty: the planner's choice."""
    slowdown: float = 1.0
    """How much slower than predicted this model has turned out to be before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Asked):
    """All that a plan in layers is made from."""

    shape: Shape


def plan(question: Question) -> Plan:
    """Decide, by the rules above."""
    split, missing = _best(question)
    weights = sum(question.shape.layer_bytes) + question.shape.output_bytes
    whole_s = whole_token_s(question, weights, len(question.shape.layer_bytes))
    return decide(question, split, missing, whole_s)


def decide(asked: Asked, split: Split | None, missing: str, whole_s: float) -> Plan:
    """Whether the best `split` is taken; without one, `missing` says why there is none. `whole_s`: the time of a token
    where the model is in one piece."""
    head = asked.head
    fits = ((head.name,) if asked.need_bytes <= head.memory_bytes else ()) + asked.elsewhere

    def decided(chosen: Split | None, *why: str) -> Plan:
        return Plan(asked.model, asked.need_bytes, fits, chosen, whole_s if fits else 0.0, why)

    if asked.never:
        return decided(None, "Its file says `shard: never`.")
    if fits and not asked.force:
        where = f"It fits on {', '.join(fits)}"
        if split is None:
            return decided(None, f"{where}.")
        return decided(
            None,
            f"{where}, where it is expected to make {1 / whole_s:.1f} tokens/s; split it would make "
            f"{split.tokens_per_s:.1f}. `shard: always` in its file forces the split.",
        )
    if split is None:
        return decided(None, missing)
    reasons = [f"It needs {_gib(asked.need_bytes)}; this node may use {_gib(head.memory_bytes)}."]
    if fits:
        reasons = [f"Its file says `shard: always`; it would fit on {', '.join(fits)}."]
    spare = [place.name for place in asked.workers if place.id not in {s.place.id for s in split.workers}]
    if spare:
        reasons.append(f"Not needed, and each would cost a round trip a token: {', '.join(spare)}.")
    unmeasured = [share.place.name for share in (split.head, *split.workers) if not share.place.bytes_per_s]
    if unmeasured:
        reasons.append(f"Speed assumed, not measured: {', '.join(unmeasured)}.")
    return decided(split, *reasons)


def _best(question: Question) -> tuple[Split | None, str]:
    """The split with the least token_s; or what is missing for one."""
    workers = question.workers
    if question.named:
        workers = tuple(place for place in workers if {place.name, place.id} & set(question.named))
        lacking = [name for name in question.named if not any(name in (p.name, p.id) for p in workers)]
        if not workers:
            return None, f"None of the workers that its file names can be had now: {', '.join(lacking)}."
        candidates: Iterable[tuple[Place, ...]] = [tuple(sorted(workers, key=pace, reverse=True))]
    else:
        if not workers:
            return None, (
                f"It needs {_gib(question.need_bytes)}, this node may use {_gib(question.head.memory_bytes)}, and no "
                "RPC worker can be had now. Start one with `mesh join TOKEN --rpc-worker`."
            )
        candidates = _candidates(workers)
    splits = [split for chosen in candidates for split in _splits(question, chosen, even=bool(question.named))]
    if splits:
        return min(splits, key=lambda split: (round(split.token_s, 9), len(split.workers))), ""
    shape = question.shape
    layers = sum(shape.layer_bytes) + sum(shape.layer_cache_bytes) + shape.output_bytes
    room = sum(max(0, place.memory_bytes - shape.scratch_bytes) for place in workers)
    room += max(0, question.head.memory_bytes - shape.head_bytes - shape.scratch_bytes)
    names = ", ".join(f"{place.name} {_gib(place.memory_bytes)}" for place in workers)
    return None, (
        f"Its layers need {_gib(layers)}; this node and the workers ({names}) have room for {_gib(room)}. "
        "More workers, a smaller context_size or fewer slots would help."
    )


def _candidates(workers: Sequence[Place]) -> Iterator[tuple[Place, ...]]:
    seen: set[frozenset[str]] = set()
    by_speed = sorted(workers, key=lambda place: (pace(place), -place.rtt_s, place.memory_bytes), reverse=True)
    by_memory = sorted(workers, key=lambda place: (place.memory_bytes, pace(place)), reverse=True)
    for order in (by_speed, by_memory):
        for count in range(1, len(order) + 1):
            chosen = frozenset(place.id for place in order[:count])
            if chosen not in seen:
                seen.add(chosen)
                yield tuple(sorted(order[:count], key=pace, reverse=True))


def _splits(question: Question, workers: tuple[Place, ...], *, even: bool) -> Iterator[Split]:
    """The splits over exactly these workers: with as many layers as the head can take, and with as few as it must."""
    shape, head = question.shape, question.head
    layers = len(shape.layer_bytes)
    room = head.memory_bytes - shape.head_bytes - shape.scratch_bytes
    most = 0
    while most < layers and (room := room - _layer(shape, most)) >= 0:
        most += 1
    if head.memory_bytes < shape.head_bytes:
        return
    fewest = next((count for count in range(most + 1) if _fill(question, count, workers, even=even)), None)
    if fewest is None:
        return
    for count in sorted({fewest, most, *([_fair(question, workers, fewest, most)] if even else [])}):
        if filled := _fill(question, count, workers, even=even):
            yield _priced(question, count, workers, filled)


def _fair(question: Question, workers: tuple[Place, ...], fewest: int, most: int) -> int:
    """The head's part where all named machines share by speed."""
    paces = [pace(place) for place in workers]
    own = pace(question.head)
    return min(most, max(fewest, round(len(question.shape.layer_bytes) * own / (own + sum(paces)))))


def _fill(question: Question, first: int, workers: tuple[Place, ...], *, even: bool) -> tuple[int, ...]:
    """Layers of each worker from layer `first` on; empty if they do not all fit. The output goes to the last."""
    if even and (shared := _walk(question.shape, first, _quotas(question.shape, first, workers))):
        return shared
    return _walk(question.shape, first, [float(place.memory_bytes) for place in workers])


def _quotas(shape: Shape, first: int, workers: tuple[Place, ...]) -> list[float]:
    """Memory that each should take so that all share by speed."""
    todo = sum(_layer(shape, layer) for layer in range(first, len(shape.layer_bytes))) + shape.output_bytes
    paces = [pace(place) for place in workers]
    largest = max((_layer(shape, layer) for layer in range(first, len(shape.layer_bytes))), default=0)
    wanted = [todo * pace / sum(paces) + shape.scratch_bytes + largest for pace in paces]
    return [min(float(place.memory_bytes), want) for place, want in zip(workers, wanted, strict=True)]


def _walk(shape: Shape, first: int, rooms: Sequence[float]) -> tuple[int, ...]:
    """Give the layers out in order, each worker up to its room; everyone gets at least one, or there is no split."""
    layers = len(shape.layer_bytes)
    layer, counts = first, []
    for index, room in enumerate(rooms):
        left = room - shape.scratch_bytes
        last = index == len(rooms) - 1
        after = len(rooms) - 1 - index  # workers that still want one
        count = 0
        while layer < layers - after and left >= _layer(shape, layer) + (
            shape.output_bytes if layer == layers - 1 else 0
        ):
            left -= _layer(shape, layer)
            layer, count = layer + 1, count + 1
        if last and layer == layers and not count and left >= shape.output_bytes:
            counts.append(0)
            return tuple(counts)
        if not count:
            return ()
        counts.append(count)
    return tuple(counts) if layer == layers else ()


def _priced(question: Question, first: int, workers: tuple[Place, ...], counts: tuple[int, ...]) -> Split:
    shape = question.shape
    head = Share(
        question.head,
        first,
        sum(shape.layer_bytes[:first]),
        shape.head_bytes + (shape.scratch_bytes if first else 0) + sum(_layer(shape, layer) for layer in range(first)),
    )
    shares, layer = [], first
    for place, count in zip(workers, counts, strict=True):
        held = range(layer, layer + count)
        weights = sum(shape.layer_bytes[number] for number in held)
        memory = shape.scratch_bytes + sum(_layer(shape, number) for number in held)
        shares.append(Share(place, count, weights, memory))
        layer += count
    last = shares[-1]
    shares[-1] = replace(
        last,
        weight_bytes=last.weight_bytes + shape.output_bytes,
        memory_bytes=last.memory_bytes + shape.output_bytes,
    )
    token_s = head.weight_bytes / pace(head.place) + LAYER_S * len(shape.layer_bytes)
    load_s = 0.0
    for share in shares:
        link = _link(share.place)
        token_s += share.weight_bytes / pace(share.place) + share.place.rtt_s + HANDLING_S
        token_s += 2 * shape.border_bytes / link
        load_s += (0.0 if share.place.cached else share.weight_bytes / link) + share.weight_bytes / pace(share.place)
    token_s += shape.result_bytes / _link(shares[-1].place)
    return Split(head, tuple(shares), token_s * question.slowdown, load_s)


def whole_token_s(asked: Asked, weight_bytes: int, layers: int) -> float:
    """The time of a token where all weights are at the head."""
    return (weight_bytes / pace(asked.head) + LAYER_S * layers) * asked.slowdown


def _layer(shape: Shape, layer: int) -> int:
    return shape.layer_bytes[layer] + shape.layer_cache_bytes[layer]


def pace(place: Place) -> float:
    """Bytes of weights that a machine gets through in a second, measured or assumed."""
    return place.bytes_per_s or UNKNOWN_BYTES_PER_S


def _link(place: Place) -> float:
    return place.link_bytes_per_s or UNKNOWN_LINK_BYTES_PER_S


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.2f} GiB"
