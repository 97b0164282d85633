"""Puts the question to node/plan.py and node/rankplan.py: from a model's header, the roster, and what was learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from backends.engine import Backend
from backends.sharding import RankingBackend, ShardingBackend
from backends.types import LoadFailed, ModelNeeds, OutOfMemory
from mesh.transport import PeerId
from node.catalog import ModelSpec
from node.fingerprint import fingerprint
from node.learnt import Learnt
from node.lenders import Lenders, Refuses
from node.plan import Place, Plan, Question, plan
from node.rankplan import RankQuestion, plan_ranks

_CACHE_SHARES = (0.95, 0.8, 0.6, 0.4, 0.2)
"""Of the memory that the weights leave, how much to plan for running sequences; the rest is lost to whole layers."""


class Planner:
    """Everything from the trio thread."""

    def __init__(self, backends: Mapping[str, Backend], budget_bytes: int, lenders: Lenders, learnt: Learnt) -> None:
        self._backends = backends
        self._budget_bytes = budget_bytes
        self._lenders = lenders
        self._learnt = learnt

    def plan(self, spec: ModelSpec, without: frozenset[PeerId] = frozenset()) -> tuple[Plan, ModelNeeds]:
        """What is to be done about a model, and the numbers it would be opened with. Raises LoadFailed."""
        backend = self._backends.get(spec.backend)
        if backend is None or not isinstance(backend, (ShardingBackend, RankingBackend)):
            raise LoadFailed(f"The backend {spec.backend} cannot split a model over several nodes.")
        doubtful = self._lenders.doubtful
        found, needs = self._plan(spec, backend, without | doubtful)
        if _lacks(spec, found) and doubtful - without:
            # Better one that failed a moment ago, and may be back, than none.
            found, needs = self._plan(spec, backend, without)
        return found, needs

    def _plan(self, spec: ModelSpec, backend: Backend, without: frozenset[PeerId]) -> tuple[Plan, ModelNeeds]:
        whole, fits = backend.needs(spec.load_spec(None)), True
        try:
            whole = backend.needs(spec.load_spec(self._budget_bytes))
        except OutOfMemory:
            fits = False
        need_bytes = whole.memory_bytes if fits else max(whole.memory_bytes, self._budget_bytes + 1)
        if isinstance(backend, ShardingBackend):
            target, refuses = backend.target, backend.refuses
            found, needs = self._plan_layers(spec, backend, backend, whole, need_bytes, without)
        else:
            assert isinstance(backend, RankingBackend)
            target, refuses = backend.rank_target, backend.refuses
            found, needs = self._plan_ranks(spec, backend, whole, need_bytes, without)
        if _lacks(spec, found) and (others := "; ".join(self._lenders.others(target, refuses))):
            found = replace(found, why=(*found.why, f"Of those that lend memory, {others.removesuffix('.')}."))
        return found, needs

    def _plan_layers(
        self,
        spec: ModelSpec,
        backend: Backend,
        sharding: ShardingBackend,
        whole: ModelNeeds,
        need_bytes: int,
        without: frozenset[PeerId],
    ) -> tuple[Plan, ModelNeeds]:
        loose = spec.load_spec(None)
        shape = sharding.shape(loose, whole)
        digest = fingerprint(spec.backend, loose)
        workers = tuple(
            replace(place, cached=self._learnt.keeps(place.id, digest))
            for place in self._places(sharding.target, sharding.refuses, without)
        )
        head = self._head(workers)
        # What it takes without any cache, and what all have room for besides.
        bare = whole.memory_bytes - sum(shape.layer_cache_bytes)
        rooms = sum(max(0, place.memory_bytes - shape.scratch_bytes) for place in workers)
        rooms += max(0, head.memory_bytes - shape.head_bytes - shape.scratch_bytes)
        spare = rooms - sum(shape.layer_bytes) - shape.output_bytes
        found: Plan | None = None
        needs = whole
        for share in _CACHE_SHARES:
            try:
                needs = backend.needs(spec.load_spec(bare + max(0, int(spare * share))))
            except OutOfMemory:
                needs = whole
            found = plan(Question(shape=sharding.shape(loose, needs), **self._asked(spec, need_bytes, head, workers)))
            if found.split is not None or not workers:
                break
        assert found is not None
        return found, needs

    def _plan_ranks(
        self, spec: ModelSpec, ranking: RankingBackend, whole: ModelNeeds, need_bytes: int, without: frozenset[PeerId]
    ) -> tuple[Plan, ModelNeeds]:
        loose = spec.load_spec(None)
        # They have the weights on their own disks.
        workers = tuple(
            replace(place, cached=True) for place in self._places(ranking.rank_target, ranking.refuses, without)
        )
        found, needs = plan_ranks(
            RankQuestion(
                shape=lambda size: ranking.rank_shape(loose, size),
                needs=lambda room, size: ranking.rank_needs(spec.load_spec(room), size),
                **self._asked(spec, need_bytes, self._head(workers), workers),
            )
        )
        return found, needs or whole

    def _asked(self, spec: ModelSpec, need_bytes: int, head: Place, workers: tuple[Place, ...]) -> dict[str, Any]:
        """The arguments of node.plan.Asked."""
        return {
            "model": spec.name,
            "need_bytes": need_bytes,
            "head": head,
            "workers": workers,
            "elsewhere": tuple(self._lenders.holding(fingerprint(spec.backend, spec.load_spec(None)))),
            "never": spec.file.shard == "never",
            "force": spec.file.shard == "always",
            "named": spec.file.workers,
            "slowdown": self._learnt.slowdown(spec.name),
        }

    def _head(self, workers: tuple[Place, ...]) -> Place:
        """This node. Nobody has measured it: it is taken for one like the others."""
        rates = [place.bytes_per_s for place in workers if place.bytes_per_s]
        return Place("", self._lenders.own_name, self._budget_bytes, sum(rates) / len(rates) if rates else 0.0)

    def _places(self, target: str, refuses: Refuses, without: frozenset[PeerId]) -> Iterator[Place]:
        for member, found in self._lenders.free(target, refuses):
            if member.peer not in without:
                yield Place(
                    member.peer,
                    member.name,
                    found.memory_bytes,
                    found.bytes_per_s,
                    member.rtt_s,
                    self._learnt.link_bytes_per_s(member.peer),
                )


def _lacks(spec: ModelSpec, found: Plan) -> bool:
    """Whether it is to be split, and cannot be."""
    return found.split is None and (not found.fits or spec.file.shard == "always")
