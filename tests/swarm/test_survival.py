"""Never lose an answer: nodes die, cables are cut, and every client gets the text that it would have got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.networks import Machine, machines
from tests.support.nodes import Swarm, write_model
from tests.swarm.chats import Told, chats
from tests.swarm.conftest import MODELS, SLOTS

QUESTIONS = [f"Question {number}: what is the colour of the sky on day {number}?" for number in range(60)]


class Killer:
    """Ends the node that serves most, other than the entry node, once it has so many chats under way."""

    def __init__(self, entry: str, begun: int, end: Callable[[str], object]) -> None:
        self._entry = entry
        self._begun = begun
        self._end = end
        self.victim = ""
        self.hit = 0
        """Chats that it was answering."""

    def __call__(self, told: Sequence[Told]) -> bool:
        serving = Counter(one.node for one in told if one.text and not one.finish)
        del serving[self._entry]
        for name, count in serving.most_common(1):
            if count >= self._begun:
                self.victim, self.hit = name, count
                self._end(name)
                return True
        return False


def resumed(nodes: Swarm, entry: str) -> int:
    """How many of the entry node's requests went on elsewhere in the middle."""
    return sum(request["resumed"] for request in nodes[entry].get("/api/mesh/requests?limit=1000")["requests"])


async def test_sixty_chats_survive_the_death_of_the_node_that_serves_most(three: Swarm) -> None:
    undisturbed = await chats(three["a"], "undisturbed", QUESTIONS)
    assert {(one.done, one.finish, one.tokens) for one in undisturbed} == {(True, "stop", 60)}
    kill = Killer("a", SLOTS, three.kill)
    told = await chats(three["a"], "fake", QUESTIONS, kill)
    assert [one.outcome for one in told] == [one.outcome for one in undisturbed]
    assert resumed(three, "a") >= SLOTS // 2  # a few may have been complete in that moment
    three["a"].until_sees(**{kill.victim: "dead"})


async def test_a_real_model_goes_on_where_the_dead_node_stopped(three: Swarm) -> None:
    questions = QUESTIONS[:10]
    undisturbed = await chats(three["a"], "smol", questions, max_tokens=24)
    assert all(one.done and one.text for one in undisturbed)
    kill = Killer("a", 2, three.kill)
    told = await chats(three["a"], "smol", questions, kill, max_tokens=24)
    assert [one.outcome for one in told] == [one.outcome for one in undisturbed]
    assert resumed(three, "a") >= 1


@pytest.fixture
def cabled(tmp_path: Path) -> Iterator[tuple[Swarm, dict[str, Machine]]]:
    """Three nodes on machines of their own."""
    with machines(3) as made:
        hosts = dict(zip("abc", made, strict=True))
        nodes = Swarm(tmp_path, {"api_keys": "key"})
        for name in hosts:
            write_model(tmp_path / name, "fake", **MODELS["a"]["fake"])
            write_model(tmp_path / name, "undisturbed", **MODELS["a"]["undisturbed"])
        try:
            for name, machine in hosts.items():
                nodes.start(name, prefix=machine.prefix, host=machine.host, mesh_host=machine.host)
            nodes.until_met()
            yield nodes, hosts
        finally:
            nodes.close()


async def test_sixty_chats_survive_a_cut_cable_and_the_machine_comes_back(
    cabled: tuple[Swarm, dict[str, Machine]],
) -> None:
    nodes, hosts = cabled
    undisturbed = await chats(nodes["a"], "undisturbed", QUESTIONS)
    cut = Killer("a", SLOTS, lambda name: hosts[name].cut())
    told = await chats(nodes["a"], "fake", QUESTIONS, cut)
    assert [one.outcome for one in told] == [one.outcome for one in undisturbed]
    assert resumed(nodes, "a") >= SLOTS // 2
    nodes["a"].until_sees(**{cut.victim: "dead"})
    hosts[cut.victim].mend()
    nodes.until_met()  # both processes are the same as before
    [again] = await chats(nodes["a"], "fake", QUESTIONS[:1], headers={"X-Mesh-Node": cut.victim})
    assert (again.node, again.outcome) == (cut.victim, undisturbed[0].outcome)
