"""What Prometheus sees of a node. Names follow its conventions: base units, `_total` for counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from backends.types import EngineStats, Usage
from node.slots import Model, State

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LOAD_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """A registry of its own, so that several nodes fit one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mesh_requests",
            "Requests by model, operation and outcome (ok, cancelled, or the kind of the error).",
            ("model", "operation", "outcome"),
            registry=self._registry,
        )
        self.first_token_s = Histogram(
            "mesh_time_to_first_token_seconds",
            "From the arrival of a request to its first token, waiting and loading included.",
            ("model",),
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self.tokens_per_s = Histogram(
            "mesh_tokens_per_second",
            "Decoding rate of one answer.",
            ("model",),
            buckets=_TOKENS_PER_S,
            registry=self._registry,
        )
        self.tokens = Counter(
            "mesh_tokens",
            "Tokens by model and kind: prompt, cached (of the prompt, found in a KV cache), completion.",
            ("model", "kind"),
            registry=self._registry,
        )
        self.loads = Counter(
            "mesh_model_loads", "Loads by model and outcome.", ("model", "outcome"), registry=self._registry
        )
        self.load_s = Histogram(
            "mesh_model_load_seconds",
            "Time that successful loads took.",
            ("model",),
            buckets=_LOAD_S,
            registry=self._registry,
        )
        self.crashes = Counter(
            "mesh_engine_crashes", "Workers that ended by themselves.", ("model",), registry=self._registry
        )
        self.routed = Counter(
            "mesh_routed",
            "Attempts at requests that entered here, by the node that got them.",
            ("node",),
            registry=self._registry,
        )
        self.bounced = Counter(
            "mesh_bounced",
            "Attempts that this node sent back: it would have taken clearly longer than another.",
            ("node",),
            registry=self._registry,
        )
        self.resumed = Counter(
            "mesh_resumed",
            "Answers that went on at this node after another had died under them.",
            ("node",),
            registry=self._registry,
        )
        self.served = Counter(
            "mesh_served",
            "Calls that peers sent here, by outcome (ok, cancelled, bounced, or the kind of the error).",
            ("outcome",),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self.on_first_token: list[Callable[[float], None]] = []
        """Told of every time to a first token."""

    def watch(
        self,
        models: Callable[[], Iterable[tuple[Model, EngineStats | None]]],
        budget_bytes: int,
    ) -> None:
        """Let every scrape look at the models' state itself."""
        self._registry.register(_State(models, budget_bytes))

    def watch_peers(self, peers: Callable[[], Iterable[PeerFacts]]) -> None:
        """Let every scrape look at the peers themselves."""
        self._registry.register(_PeerState(peers))

    def watch_shards(self, shards: Callable[[], ShardFacts]) -> None:
        """Add what models over several nodes cost."""
        self._registry.register(_Shards(shards))

    def note_first_token(self, model: str, seconds: float) -> None:
        """An answer has begun, so long after its request had arrived."""
        self.first_token_s.labels(model).observe(seconds)
        for tell in self.on_first_token:
            tell(seconds)

    def note_usage(self, model: str, usage: Usage) -> None:
        """Count what a finished call cost."""
        self.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(model, "cached").inc(usage.cached_tokens)
        self.tokens.labels(model, "completion").inc(usage.completion_tokens)
        if usage.completion_tokens > 1 and usage.decode_s > 0:
            self.tokens_per_s.labels(model).observe(usage.completion_tokens / usage.decode_s)

    def exposition(self) -> tuple[bytes, str]:
        """The text to serve, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def families(self) -> Iterable[Metric]:
        """All metrics with their documentation."""
        return self._registry.collect()


class PeerFacts(NamedTuple):
    """What is shown of one peer."""

    node: str
    alive: bool
    round_trip_s: float
    in_flight: int
    sent_bytes: int
    received_bytes: int


class _PeerState(Collector):
    def __init__(self, peers: Callable[[], Iterable[PeerFacts]]) -> None:
        self._peers = peers

    def collect(self) -> Iterable[Metric]:
        alive = GaugeMetricFamily("mesh_peer_alive", "1 while a peer is alive.", labels=["node"])
        trip = GaugeMetricFamily("mesh_peer_round_trip_seconds", "Smoothed round trip to a peer.", labels=["node"])
        flight = GaugeMetricFamily(
            "mesh_peer_in_flight", "Slots of a peer that calls of this node hold.", labels=["node"]
        )
        octets = CounterMetricFamily(
            "mesh_peer_bytes", "Payload exchanged with a peer, by direction.", labels=["node", "direction"]
        )
        for peer in self._peers():
            alive.add_metric([peer.node], peer.alive)
            trip.add_metric([peer.node], peer.round_trip_s)
            flight.add_metric([peer.node], peer.in_flight)
            octets.add_metric([peer.node, "sent"], peer.sent_bytes)
            octets.add_metric([peer.node, "received"], peer.received_bytes)
        return (alive, trip, flight, octets)


class ShardFacts(NamedTuple):
    """What is shown of models over several nodes, at their head, and of what this node lends."""

    loads: int
    replans: int
    sent_bytes: int
    received_bytes: int
    round_trips: int
    restarts: int


class _Shards(Collector):
    def __init__(self, shards: Callable[[], ShardFacts]) -> None:
        self._shards = shards

    def collect(self) -> Iterable[Metric]:
        facts = self._shards()
        octets = CounterMetricFamily(
            "mesh_tunnel_bytes", "Bytes through tunnels to workers, by direction.", labels=["direction"]
        )
        octets.add_metric(["sent"], facts.sent_bytes)
        octets.add_metric(["received"], facts.received_bytes)
        return (
            octets,
            CounterMetricFamily("mesh_tunnel_round_trips", "Answers awaited through tunnels.", value=facts.round_trips),
            CounterMetricFamily("mesh_shard_loads", "Models split over several nodes.", value=facts.loads),
            CounterMetricFamily("mesh_replans", "Plans made anew since a worker failed.", value=facts.replans),
            CounterMetricFamily(
                "mesh_rpc_server_restarts",
                "Ends of this node's RPC server, each followed by a start.",
                value=facts.restarts,
            ),
        )


class _State(Collector):
    def __init__(self, models: Callable[[], Iterable[tuple[Model, EngineStats | None]]], budget_bytes: int) -> None:
        self._models = models
        self._budget_bytes = budget_bytes

    def collect(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily("mesh_queue_length", "Requests that wait for a slot.", labels=["model"])
        slots = GaugeMetricFamily(
            "mesh_slots", "Slots of loaded models by state: leased or free.", labels=["model", "state"]
        )
        loaded = GaugeMetricFamily("mesh_model_loaded", "1 while a model is loaded.", labels=["model"])
        memory = GaugeMetricFamily("mesh_engine_memory_bytes", "Resident memory of a model's worker.", labels=["model"])
        prefill = GaugeMetricFamily(
            "mesh_engine_prefill_tokens_per_second", "Measured rate of prompts, moving average.", labels=["model"]
        )
        decode = GaugeMetricFamily(
            "mesh_engine_decode_tokens_per_second",
            "Measured rate of answers over the whole batch, moving average.",
            labels=["model"],
        )
        for model, stats in self._models():
            ready = model.state is State.READY
            queue.add_metric([model.name], model.queue)
            loaded.add_metric([model.name], ready)
            if ready:
                slots.add_metric([model.name, "leased"], model.leased)
                slots.add_metric([model.name, "free"], model.slots - model.leased)
            if stats is not None:
                memory.add_metric([model.name], stats.memory_bytes)
                prefill.add_metric([model.name], stats.prefill_tokens_per_s)
                decode.add_metric([model.name], stats.decode_tokens_per_s)
        budget = GaugeMetricFamily(
            "mesh_memory_budget_bytes", "Memory that loaded models may take together.", value=self._budget_bytes
        )
        return (queue, slots, loaded, memory, prefill, decode, budget)


def metrics_markdown() -> str:
    """docs/metrics.md, from the metrics above."""
    metrics = Metrics()
    metrics.watch(lambda: (), 0)
    metrics.watch_peers(lambda: ())
    metrics.watch_shards(lambda: ShardFacts(0, 0, 0, 0, 0, 0))
    lines = [
        "# Metrics",
        "",
        "<!-- Generated by `make docs` from node/metrics.py: change it there. -->",
        "",
        "`GET /metrics` in Prometheus' text format.",
        "",
        "| metric | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    labels = {
        "mesh_requests": "model, operation, outcome",
        "mesh_slots": "model, state",
        "mesh_tokens": "model, kind",
        "mesh_model_loads": "model, outcome",
        "mesh_memory_budget_bytes": "",
        "mesh_routed": "node",
        "mesh_resumed": "node",
        "mesh_bounced": "node",
        "mesh_served": "outcome",
        "mesh_peer_alive": "node",
        "mesh_peer_round_trip_seconds": "node",
        "mesh_peer_in_flight": "node",
        "mesh_peer_bytes": "node, direction",
        "mesh_tunnel_bytes": "direction",
        "mesh_tunnel_round_trips": "",
        "mesh_shard_loads": "",
        "mesh_replans": "",
        "mesh_rpc_server_restarts": "",
    }
    for family in metrics.families():
        if family.name.startswith("mesh_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            row = (f"`{name}`", family.type, labels.get(family.name, "model"), family.documentation)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
