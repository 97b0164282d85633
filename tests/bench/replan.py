"""A worker is killed in the middle of an answer: how long until the next token, and what the time goes to."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import httpx

from tests.bench.harness import Bench, BenchError, Row, Session, median
from tests.bench.heads import THREADS, lenders
from tests.bench.swarms import token, until_met
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

_MODEL = "replanned"
_KILL_AFTER, _TOKENS = 24, 96
_ANSWER_S = 60.0
_STAMP = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*"
_NOTICED = re.compile(_STAMP + rf"The engine of model {_MODEL} ended by itself", re.MULTILINE)
_PLANNED = re.compile(_STAMP + rf"{_MODEL}: layers: .* expected", re.MULTILINE)
_LOADED = re.compile(_STAMP + rf"loaded {_MODEL} in", re.MULTILINE)


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
            died_s, planned_s, loaded_s = (_last(pattern, head.log) for pattern in (_NOTICED, _PLANNED, _LOADED))
            # Tokens that were on their way when the worker died are none of the new plan's.
            next_s = next((at_s for at_s in came_s if at_s > loaded_s), None)
            if next_s is None or not killed_s <= died_s + 0.001 <= planned_s + 0.002 <= loaded_s + 0.003:
                raise BenchError(f"The answer did not go on by another plan:\n{head.log[-2000:]}")
            head.stop()
        workers[0].process.wait()
    return _Times(max(0.0, died_s - killed_s), planned_s - died_s, loaded_s - planned_s, next_s - loaded_s)


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
    """When each token of an answer came, and when the victim was killed; by the wall clock, as the log has it."""
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
    with httpx.Client(timeout=_ANSWER_S, trust_env=False) as client:
        with client.stream("POST", f"{head.url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                content = json.loads(line[6:])
                if "error" in content:
                    raise BenchError(f"The answer broke off: {content['error']}")
                if content["choices"] and content["choices"][0]["delta"].get("content"):
                    came_s.append(time.time())
                if len(came_s) == _KILL_AFTER and not killed_s:
                    killed_s = time.time()
                    victim.process.send_signal(signal.SIGKILL)
    return came_s, killed_s


def _last(pattern: re.Pattern[str], log: str) -> float:
    found = pattern.findall(log)
    if not found:
        raise BenchError(f"The head's log does not have {pattern.pattern}:\n{log[-2000:]}")
    return datetime.strptime(found[-1], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007 (local, as the log has it)


BENCH = Bench("replan", "from a worker's SIGKILL to the next token: noticing, planning, loading, prefill", run)
