"""From the roster to a question: who may be planned with, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from trio.testing import MockClock

from backends.llama_cpp import backend as llama_cpp
from backends.mlx import backend as mlx
from backends.types import LoadFailed
from mesh.membership import State
from mesh.records import Hardware, Offer, PeerRecord, Target
from mesh.roster import Member
from mesh.swarm import Swarm
from node.catalog import ModelFile, ModelSpec
from node.fingerprint import fingerprint
from node.learnt import Learnt
from node.lenders import LEFT_OUT_S, Lenders
from node.planner import Planner
from tests.support.mlxmodels import write_tiny_llama
from tests.support.models import smollm2

MIB = 1 << 20
VERSION = "7.0.0"


@dataclass
class Roster:
    """Has what node/lenders.py reads of mesh.roster.Roster."""

    members: Sequence[Member]
    own_name: str = "head"

    def get(self, peer: str) -> Member | None:
        return next((member for member in self.members if member.peer == peer), None)


@dataclass
class Peers:
    """Has what node/lenders.py reads of mesh.swarm.Swarm."""

    roster: Roster
    peer: str = "me"
    opened: list[str] = field(default_factory=list)


def member(name: str, *targets: Target, offers: tuple[Offer, ...] = (), state: State = State.ALIVE) -> Member:
    hardware = Hardware(system="", processor="", cores=1, memory_bytes=1)
    record = PeerRecord(
        peer=name,
        name=name,
        version="1",
        protocol=1,
        incarnation=1,
        sequence=1,
        addresses=(),
        roles=(),
        hardware=hardware,
        offers=offers,
        targets=targets,
    )
    return Member(record, name, state)


def rpc(mib: int = 400, **facts: Any) -> Target:
    return Target(**{"name": "rpc", "version": VERSION, "memory_bytes": mib * MIB, **facts})


def rank(mib: int = 4000, **facts: Any) -> Target:
    return Target(**{"name": "mlx-rank", "version": "1", "memory_bytes": mib * MIB, **facts})


def planner(*members: Member, budget: int = 180 * MIB) -> tuple[Planner, Lenders]:
    lenders = Lenders()
    lenders.swarm = cast(Swarm, Peers(Roster(members)))
    return Planner({"llama-cpp": llama_cpp, "mlx": mlx}, budget, lenders, Learnt()), lenders


def smol(**fields: Any) -> ModelSpec:
    fields = {"parameters": {"model": str(smollm2())}, "context_size": 512, "slots": 2, **fields}
    file = ModelFile.model_validate({"name": "smol", **fields})
    return ModelSpec(file, "llama-cpp", str(smollm2()), 1, Path("smol.yaml"))


def tiny(folder: Path, **fields: Any) -> ModelSpec:
    file = ModelFile.model_validate({"name": "tiny", "context_size": 256, "slots": 2, **fields})
    return ModelSpec(file, "mlx", str(folder), 1, Path("tiny.yaml"))


async def test_a_worker_of_another_version_is_not_planned_with_and_that_is_said() -> None:
    old, new = member("old", rpc(version="6.0.0")), member("new", rpc())
    made, _ = planner(old, new)
    found, _ = made.plan(smol())
    assert found.split is not None
    assert [share.place.name for share in found.split.workers] == ["new"]
    made, _ = planner(old, member("newer", rpc(version="7.1.0")), member("odd", rpc(version="")))
    found, _ = made.plan(smol())
    assert found.split is None
    assert "old is left out: its RPC server speaks version 6.0.0; this node's llama.cpp speaks 7.0" in found.why[-1]
    assert "newer is left out" in found.why[-1]
    assert "odd is left out" in found.why[-1]


async def test_what_others_have_leased_is_named_with_its_holder() -> None:
    made, _ = planner(member("w", rpc(leased_by="rival")), member("rival"), member("own", rpc(40, leased_by="me")))
    found, _ = made.plan(smol())
    assert found.split is None
    assert "(own 0.04 GiB)" in found.why[0]
    assert found.why[-1] == "Of those that lend memory, w is leased to rival."


async def test_one_too_little_beside_one_that_is_enough() -> None:
    made, _ = planner(member("small", rpc(20)), member("large", rpc(400)))
    found, _ = made.plan(smol())
    assert found.split is not None
    assert [share.place.name for share in found.split.workers] == ["large"]
    made, _ = planner(member("small", rpc(20)))
    found, _ = made.plan(smol())
    assert found.split is None
    assert "have room for" in found.why[0]


async def test_who_failed_is_left_out_for_a_while(autojump_clock: MockClock) -> None:
    made, lenders = planner(member("a", rpc(bytes_per_s=9e9)), member("b", rpc(bytes_per_s=1e9)))

    def chosen() -> list[str]:
        split = made.plan(smol())[0].split
        assert split is not None
        return [share.place.name for share in split.workers]

    assert chosen() == ["a"]
    lenders.leave_out("a")
    assert chosen() == ["b"]
    lenders.leave_out("b")
    assert chosen() == ["a"]  # better than none
    roomy, others = planner(member("a", rpc()), budget=4000 * MIB)
    others.leave_out("a")
    assert roomy.plan(smol())[0].split is None  # it fits
    assert roomy.plan(smol(shard="always"))[0].split is not None
    assert made.plan(smol(), frozenset({"a", "b"}))[0].split is None
    autojump_clock.jump(LEFT_OUT_S / 2)
    assert lenders.doubtful == {"a", "b"}
    autojump_clock.jump(LEFT_OUT_S)
    assert not lenders.doubtful


async def test_who_is_not_there_lends_nothing() -> None:
    made, _ = planner(member("w", rpc(), state=State.SUSPECT))
    found, _ = made.plan(smol())
    assert "no RPC worker" in found.why[0]


# -- ranks --


async def test_a_model_of_mlx_is_planned_in_ranks(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "m", heads=3)
    made, _ = planner(*(member(name, rank()) for name in ("w1", "w2", "w3")), member("other", rpc()), budget=4000 * MIB)
    found, needs = made.plan(tiny(folder, shard="always"))
    assert found.split is not None
    assert found.split.way == "tensor"
    assert [share.place.name for share in found.split.workers] == ["w1", "w2"]  # three heads
    assert {share.layers for share in found.split.workers} == {2}
    assert found.split.head.memory_bytes == needs.memory_bytes
    assert found.split.tokens_per_s > 0


async def test_a_rank_of_another_version_and_a_model_that_another_node_holds(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "m")
    made, _ = planner(member("w", rank(version="2")), budget=1 * MIB)
    found, _ = made.plan(tiny(folder))
    assert found.split is None
    assert "its ranks speak version 2" in found.why[-1]
    digest = fingerprint("mlx", tiny(folder).load_spec(None))
    offer = Offer(model="tiny", digest=digest, backend="mlx", capabilities=(), context_tokens=1, slots=1)
    made, _ = planner(member("w", rank()), member("big", offers=(offer,)), budget=1 * MIB)
    found, _ = made.plan(tiny(folder))
    assert (found.split, found.fits) == (None, ("big",))


async def test_a_backend_that_cannot_be_split(tmp_path: Path) -> None:
    made, _ = planner()
    file = ModelFile.model_validate({"name": "f", "backend": "fake"})
    with pytest.raises(LoadFailed, match="cannot split"):
        made.plan(ModelSpec(file, "fake", "", 1, tmp_path / "f.yaml"))
