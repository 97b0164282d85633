"""A worker is killed in the middle of an answer: how long until the next token, and what the time goes to."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.bench.harness import Bench, BenchError, Row, Session, median
from tests.bench.heads import THREADS, lenders
from tests.bench.swarms import token, until_met
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

_MODEL = "replanned"
_KILL_AFTER, _TOKENS = 24, 96
_ANSWER_S = 60.0


@dataclass(frozen=True)
class _Times:
    """Seconds, one after the other."""

    noticing: float
    planning: float
    loading: float
    prefill: float

    @property
    def total(self) -> float:
        return self.noticing + self.planning + self.loading + self.prefill


async def run(session: Session) -> list[Row]:
    """A swarm for each round, since each costs a worker."""
    rounds = session.rounds(1, 5)
    session.tell(f"{rounds} rounds of an answer of {_TOKENS} tokens, one of two workers killed after {_KILL_AFTER}")
    times = []
    for number in range(rounds):
        times.append(_one(session))
        session.tell(f"[dim]round {number + 1}/{rounds}: {times[-1].total:.2f} s[/]")
    parts = {
        name: median([getattr(one, name) for one in times]) for name in ("noticing", "planning", "loading", "prefill")
    }
    return [
        Row(
            what="from a worker's SIGKILL to the next token of the answer, SmolLM2",
            value=f"{median([one.total for one in times]):.2f} s",
            against=", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()),
        )
    ]


def _one(session: Session) -> _Times:
    with lenders(session, [None, None], memory_mib=1024) as workers:
        with _head(session, workers) as head:
            came_s, killed_s = _answer(head, workers[0])
            [request] = head.get("/api/mesh/requests?limit=1")["requests"]
            timeline = head.get(f"/api/mesh/requests/{request['id']}/trace")["timeline"]
            at_s = {event["what"]: event["at_s"] for event in timeline}  # of each kind the last
            lost_s, planned_s, loaded_s = (at_s.get(what, 0.0) for what in ("lost", "prepared", "loaded"))
            # Tokens that were on their way when the worker died are none of the new plan's.
            next_s = next((came for came in came_s if came > loaded_s), 0.0)
            if not killed_s < lost_s < planned_s < loaded_s < next_s:
                raise BenchError(f"The answer did not go on by another plan: {timeline}\n{head.log[-2000:]}")
            head.stop()
        workers[0].process.wait()
    return _Times(lost_s - killed_s, planned_s - lost_s, loaded_s - planned_s, next_s - loaded_s)


@contextmanager
def _head(session: Session, workers: list[RunningNode]) -> Iterator[RunningNode]:
    data = session.data("replanner")
    write_model(
        data,
        _MODEL,
        parameters={"model": os.fspath(smollm2())},
        context_size=512,
        slots=1,
        threads=THREADS,
        shard="always",
        workers=[worker.name for worker in workers],
    )
    settings = {"solo": "false", "lan_discovery": "false", "mesh_host": "127.0.0.1", "name": "replanner"}
    with running_node(data, **settings, token=token(workers[0])) as node:
        until_met([node, *workers])
        node.until(lambda view: sum(len(one["targets"]) for one in view["nodes"]) == len(workers))
        yield node


def _answer(head: RunningNode, victim: RunningNode) -> tuple[list[float], float]:
    """When each token of an answer came, and when the victim was killed: seconds since it was asked for, when a trace
    begins, too."""
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "Tell me about rivers, and the boats on them."}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    came_s: list[float] = []
    killed_s = 0.0
    asked = time.monotonic()
    with httpx.Client(timeout=_ANSWER_S, trust_env=False) as client:
        with client.stream("POST", f"{head.url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                content = json.loads(line[6:])
                if "error" in content:
                    raise BenchError(f"The answer broke off: {content['error']}")
                if content["choices"] and content["choices"][0]["delta"].get("content"):
                    came_s.append(time.monotonic() - asked)
                if len(came_s) == _KILL_AFTER and not killed_s:
                    killed_s = time.monotonic() - asked
                    victim.process.send_signal(signal.SIGKILL)
    return came_s, killed_s


BENCH = Bench("replan", "from a worker's SIGKILL to the next token: noticing, planning, loading, prefill", run)
