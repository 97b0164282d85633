"""The loaded models: carries out what node/slots.py decides, one long-lived task a worker."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import trio

from backends.engine import Backend
from backends.process import LogRing, Worker, open_worker
from backends.types import EngineCrashed, EngineStats, LoadFailed, LoadSpec, MeshError
from node.catalog import ModelSpec
from node.metrics import Metrics
from node.slots import Effect, Grant, Load, Model, Refuse, Slots, State, Unload

_log = logging.getLogger("mesh.pool")
_SHOWN_LOG_LINES = 20
_NEW_PLANS = 4  # in one load


class OpenWorker(Protocol):
    """`backends.process.open_worker`, or a double of it."""

    def __call__(
        self, backend: Backend, load: LoadSpec, *, log: LogRing, progress: Callable[[float], None]
    ) -> AbstractAsyncContextManager[Worker]: ...


class Sharding(Protocol):
    """node.sharding.Sharding, as far as it is asked here."""

    def prepare(self, spec: ModelSpec) -> AbstractAsyncContextManager[LoadSpec]:
        """How to open a model, for as long as it stays open. Raises LoadFailed."""

    def loaded(self, name: str, seconds: float) -> None:
        """A load has succeeded."""

    def failed(self, spec: ModelSpec, load: LoadSpec, error: MeshError) -> bool:
        """A load has failed; whether another plan is worth a try."""

    def lost(self, name: str) -> None:
        """A loaded engine has died."""


class _AnotherPlan(Exception):
    """A load has failed by the fault of another node, which is left out of the next plan."""


@dataclass(slots=True)
class _Held:
    """What the pool keeps of one model between loads."""

    spec: ModelSpec
    log: LogRing = field(default_factory=LogRing)
    worker: Worker | None = None
    progress: float = 0.0
    end: trio.Event = field(default_factory=trio.Event)  # set to unload
    gone: trio.Event = field(default_factory=trio.Event)  # set when the slots know of the worker's end


@dataclass(frozen=True, slots=True)
class Loading:
    """A load that succeeded, by trio's clock."""

    began: float
    prepared: float
    """Where it is to run was known by then, and whoever else takes part was there."""
    loaded: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.loaded - self.began


@dataclass(slots=True)
class _Waiter:
    decided: trio.Event = field(default_factory=trio.Event)
    error: MeshError | None = None


class Pool:
    """Hands out workers. Everything from one trio thread."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        metrics: Metrics,
        *,
        budget_bytes: int,
        queue_limit: int,
        idle_unload_s: float,
        load_timeout_s: float,
        open_worker: OpenWorker = open_worker,
        sharding: Sharding | None = None,
    ) -> None:
        """`sharding` opens models that are on several nodes; without it all are opened here."""
        self._backends = backends
        self._metrics = metrics
        self._load_timeout_s = load_timeout_s
        self._open_worker = open_worker
        self._sharding = sharding
        self._slots = Slots(budget_bytes=budget_bytes, queue_limit=queue_limit, idle_unload_s=idle_unload_s)
        self._held: dict[str, _Held] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._last_ticket = 0
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        self._idle = trio.Event()
        self._loadings: dict[str, Loading] = {}
        self.budget_bytes = budget_bytes
        self.on_change: list[Callable[[], None]] = []
        """Called after every change of leases, queues and loaded models; must be quick."""
        metrics.watch(self.models, budget_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then stop all workers."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                self._changed = trio.Event()
                pause = self._slots.next_tick() - trio.current_time()
                with trio.move_on_after(max(0.0, pause) if pause < math.inf else math.inf):
                    await self._changed.wait()
                self._carry_out(self._slots.tick(trio.current_time()))

    @asynccontextmanager
    async def lease(
        self, spec: ModelSpec, *, memory_bytes: int, slots: int, client: str, weight: int
    ) -> AsyncIterator[Worker]:
        """Wait for `weight` slots of a model, loading it if need be; they are free again on the way out.

        `memory_bytes` and `slots` are what the model is expected to need and to have. Raises Busy, LoadFailed or
        OutOfMemory.
        """
        held = self._remember(spec)
        while held.worker is not None and held.worker.died.is_set():
            await held.gone.wait()  # or this call would be granted a slot of the dead
        self._slots.register(spec.name, memory_bytes=memory_bytes, slots=slots, pinned=spec.file.pinned)
        self._last_ticket += 1
        ticket = self._last_ticket
        waiter = self._waiters[ticket] = _Waiter()
        try:
            self._carry_out(
                self._slots.request(ticket, spec.name, client=client, weight=weight, now=trio.current_time())
            )
            await waiter.decided.wait()
            if waiter.error is not None:
                raise waiter.error
            worker = held.worker
            if worker is None:  # it died between the grant and now
                raise EngineCrashed(f"The engine of model {spec.name} ended before the call began.")
            yield worker
        finally:
            del self._waiters[ticket]
            self._carry_out(self._slots.release(ticket, trio.current_time()))
            if not self._waiters:
                self._idle.set()

    async def drain(self) -> None:
        """Refuse everything new and wait until all leases are given back."""
        self._carry_out(self._slots.close())
        while self._waiters:
            self._idle = trio.Event()
            await self._idle.wait()

    def unload(self, name: str) -> None:
        """Unload a model if nothing runs on it."""
        self._carry_out(self._slots.unload(name))

    def renew(self, spec: ModelSpec, *, memory_bytes: int, slots: int) -> None:
        """Load a model anew, if it is loaded, as soon as what runs on it has ended."""
        assert self._nursery is not None, "Pool.run has not been started"
        if self.loaded(spec.name) is not None:
            self._carry_out(self._slots.renew(spec.name, trio.current_time()))
            self._nursery.start_soon(self._wait_for, spec, memory_bytes, slots)

    async def _wait_for(self, spec: ModelSpec, memory_bytes: int, slots: int) -> None:
        with suppress(MeshError):  # it has been logged, and the next caller gets to know
            async with self.lease(spec, memory_bytes=memory_bytes, slots=slots, client="-", weight=1):
                pass

    def keep(self, name: str, seconds: float) -> None:
        """From now on unload a model after so long without calls; 0: as soon as nothing runs on it."""
        self._slots.keep(name, seconds)
        self._changed.set()

    def pin(self, name: str, *, pinned: bool) -> None:
        """From now on a model is kept whatever happens, or no longer."""
        self._slots.pin(name, pinned=pinned)
        self._changed.set()

    def expires_in_s(self, name: str) -> float:
        """Seconds until a model is unloaded if it is not used; infinite if never."""
        model = self._slots.models.get(name)
        return math.inf if model is None else self._slots.expiry(model) - trio.current_time()

    def models(self) -> list[tuple[Model, EngineStats | None]]:
        """The state of every model that has been asked for."""
        return [
            (model, worker.stats if (worker := self._held[name].worker) is not None else None)
            for name, model in self._slots.models.items()
        ]

    def loaded(self, name: str) -> Worker | None:
        """The worker of a model, while it is loaded."""
        held = self._held.get(name)
        return held.worker if held else None

    def load_s(self, name: str) -> float:
        """Seconds that the last load of a model took; 0 before the first."""
        return self._loadings[name].seconds if name in self._loadings else 0.0

    def loading(self, name: str) -> Loading | None:
        """The last load of a model that succeeded."""
        return self._loadings.get(name)

    def progress(self, name: str) -> float | None:
        """The share of a model's load that is done, while it loads."""
        model = self._slots.models.get(name)
        return self._held[name].progress if model is not None and model.state is State.LOADING else None

    def log(self, name: str) -> LogRing | None:
        """What the workers of a model have printed."""
        held = self._held.get(name)
        return held.log if held else None

    # -- effects --

    def _remember(self, spec: ModelSpec) -> _Held:
        held = self._held.setdefault(spec.name, _Held(spec))
        held.spec = spec
        return held

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant(ticket):
                    self._waiters[ticket].decided.set()
                case Refuse(ticket, error):
                    self._waiters[ticket].error = error
                    self._waiters[ticket].decided.set()
                case Load(name):
                    assert self._nursery is not None, "Pool.run has not been started"
                    held = self._held[name]
                    held.end, held.gone = trio.Event(), trio.Event()
                    self._nursery.start_soon(self._hold, name)
                case Unload(name):
                    self._held[name].end.set()
        self._changed.set()
        for tell in self.on_change:
            tell()

    async def _hold(self, name: str) -> None:
        """Load a model and keep it until it is to go, or dies."""
        held = self._held[name]
        started = trio.current_time()
        with trio.CancelScope(deadline=started + self._load_timeout_s) as scope:
            for attempt in range(1 + _NEW_PLANS):
                try:
                    if await self._open(held, scope, last=attempt == _NEW_PLANS):
                        self._on_death(name, held)
                        return
                    break
                except _AnotherPlan:
                    continue
                except MeshError as error:
                    self._on_load_failed(name, error)
                    return
        if scope.cancelled_caught:
            self._on_load_failed(name, LoadFailed(f"Model {name} did not load within {self._load_timeout_s:.0f} s."))
            return
        _log.info("unloaded %s", name)
        self._carry_out(self._slots.gone(name, trio.current_time()))

    async def _open(self, held: _Held, scope: trio.CancelScope, *, last: bool) -> bool:
        """Load a model and keep it; whether it died. Raises MeshError, or _AnotherPlan if a new plan may do better."""
        spec, held.progress, started = held.spec, 0.0, trio.current_time()
        sharding = self._sharding
        async with sharding.prepare(spec) if sharding is not None else self._whole(spec) as load:
            prepared = trio.current_time()
            try:
                async with self._open_worker(
                    self._backends[spec.backend],
                    load,
                    log=held.log,
                    progress=lambda share: setattr(held, "progress", share),
                ) as worker:
                    scope.deadline = math.inf
                    held.worker = worker
                    if sharding is not None:
                        sharding.loaded(spec.name, trio.current_time() - started)
                    self._on_loaded(spec.name, worker, Loading(started, prepared, trio.current_time()))
                    died = await _first(worker.died, held.end)
                    if not died:
                        held.worker = None
                    elif sharding is not None:
                        sharding.lost(spec.name)
                    return died
            except MeshError as error:
                if sharding is not None and sharding.failed(spec, load, error) and not last:
                    _log.warning("%s Another plan is made. Its last lines:\n%s", error.message, self._tail(held))
                    raise _AnotherPlan from error
                raise

    @asynccontextmanager
    async def _whole(self, spec: ModelSpec) -> AsyncIterator[LoadSpec]:
        # With the node's whole budget, as when its needs were estimated: the same numbers come out.
        yield spec.load_spec(self.budget_bytes)

    def _on_death(self, name: str, held: _Held) -> None:
        # At once: the dead need no memory, and callers are waiting to start anew.
        self._metrics.crashes.labels(name).inc()
        _log.warning("The engine of model %s ended by itself. Its last lines:\n%s", name, self._tail(held))
        held.worker = None
        crash = EngineCrashed(f"The engine of model {name} keeps crashing.")
        gone = held.gone
        self._carry_out(self._slots.gone(name, trio.current_time(), crash=crash))
        gone.set()

    def _on_loaded(self, name: str, worker: Worker, loading: Loading) -> None:
        seconds = loading.seconds
        self._metrics.loads.labels(name, "ok").inc()
        self._metrics.load_s.labels(name).observe(seconds)
        self._loadings[name] = loading
        info = worker.info
        _log.info("loaded %s in %.1f s: %d slots of %d tokens", name, seconds, info.slots, info.context_tokens)
        self._carry_out(self._slots.loaded(name, slots=info.slots, now=trio.current_time()))

    def _on_load_failed(self, name: str, error: MeshError) -> None:
        self._metrics.loads.labels(name, error.kind).inc()
        _log.error("%s Its last lines:\n%s", error.message, self._tail(self._held[name]))
        self._carry_out(self._slots.load_failed(name, error, trio.current_time()))

    def tell_fault(self, name: str, error: MeshError) -> None:
        """Log a call's failure together with what its engine printed."""
        printed = self._tail(self._held[name]) if name in self._held else ""
        _log.error("%s The engine of model %s printed:\n%s", error.message, name, printed)

    @staticmethod
    def _tail(held: _Held) -> str:
        return "\n".join(f"    {line}" for line in held.log.tail(_SHOWN_LOG_LINES)) or "    (none)"


async def _first(died: trio.Event, end: trio.Event) -> bool:
    """Wait for one of the two; True if it was the death."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch, died)
        nursery.start_soon(watch, end)
    return died.is_set() and not end.is_set()
