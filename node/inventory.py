"""The models as clients see them: names, aliases, capabilities. Reads the model files and their headers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backends.engine import Backend
from backends.types import Capability, LoadFailed, MeshError, ModelDisabled, ModelMissing, ModelNeeds, OutOfMemory
from node.catalog import Catalog, ModelSpec, read_catalog
from node.fingerprint import fingerprint

_log = logging.getLogger("mesh.models")


@dataclass(frozen=True, slots=True)
class Entry:
    """A model and what it needs; or why that cannot be said."""

    spec: ModelSpec
    needs: ModelNeeds | None
    error: MeshError | None
    digest: str = ""  # node/fingerprint.py; empty where the file cannot be read
    sharded: bool = False  # it does not fit this node, or is not to: layers of it are on others

    @property
    def checked_needs(self) -> ModelNeeds:
        """The needs. Raises what reading the model's file raised."""
        if self.needs is None:
            error = self.error or LoadFailed(f"Model {self.spec.name} cannot be opened.")
            raise type(error)(error.message)
        return self.needs

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self.needs.capabilities if self.needs else ()


class Sharding(Protocol):
    """node.sharding.Sharding, as far as it is asked here."""

    def wanted(self, spec: ModelSpec, trouble: MeshError | None) -> bool:
        """Whether a split is to be tried."""

    def needs(self, spec: ModelSpec) -> ModelNeeds:
        """What a split takes of this node. Raises LoadFailed."""


class Inventory:
    """The catalog with every model's needs. `reload` reads both again."""

    def __init__(self, folder: Path, backends: Mapping[str, Backend], budget_bytes: int) -> None:
        self._folder = folder
        self._backends = backends
        self._budget_bytes = budget_bytes
        self._catalog = Catalog()
        self._entries: dict[str, Entry] = {}
        self.sharding: Sharding | None = None
        """Asked about models that this node does not hold alone."""

    @property
    def entries(self) -> list[Entry]:
        """All models that are not disabled, by name."""
        return [entry for _, entry in sorted(self._entries.items()) if not entry.spec.file.disabled]

    @property
    def broken(self) -> Mapping[str, str]:
        """Model files that cannot be used, and why."""
        return self._catalog.broken

    def reload(self) -> list[str]:
        """Read all model files again; the names of models that have changed or are gone."""
        self._catalog = read_catalog(self._folder, self._backends)
        for name, reason in self._catalog.broken.items():
            _log.warning("model file %s is left out: %s", self._folder / name, reason)
        old, self._entries = self._entries, {}
        for name, spec in self._catalog.models.items():
            self._entries[name] = self._entry(spec)
        return [name for name, entry in old.items() if self._entries.get(name) != entry]

    def refresh(self) -> bool:
        """Other nodes have come, gone or changed: what of the models that depend on them? Whether any has changed."""
        changed = False
        for name, entry in self._entries.items():
            if entry.sharded or (entry.needs is None and isinstance(entry.error, OutOfMemory)):
                self._entries[name] = self._entry(entry.spec)
                changed = changed or self._entries[name].needs != entry.needs
        return changed

    def spec(self, name: str) -> ModelSpec:
        """The model file of that name or alias. Raises ModelMissing or ModelDisabled."""
        spec = self._catalog.find(name)
        if spec is None:
            near = self._catalog.near(name)
            hint = f' Did you mean "{near}"?' if near else " To see available models, call GET /v1/models"
            raise ModelMissing(f'model "{name[:200]}" not found.{hint}')
        if spec.file.disabled:
            raise ModelDisabled(f'model "{spec.name}" is disabled on this node.')
        return spec

    def resolve(self, name: str) -> Entry:
        """The model of that name or alias. Raises ModelMissing, ModelDisabled, or what reading its file raised."""
        spec = self.spec(name)
        entry = self._entries[spec.name]
        if entry.needs is None:  # the file may have come or been mended since
            entry = self._entries[spec.name] = self._entry(spec)
        return entry

    def _entry(self, spec: ModelSpec) -> Entry:
        backend = self._backends.get(spec.backend)
        try:
            if backend is None:
                raise LoadFailed(f"Model {spec.name} needs the backend {spec.backend}, which is not installed.")
            load = spec.load_spec(self._budget_bytes)
            needs: ModelNeeds | None = None
            trouble: OutOfMemory | None = None
            try:
                needs = backend.needs(load)
            except OutOfMemory as error:
                trouble = error
            sharded = self.sharding is not None and self.sharding.wanted(spec, trouble)
            if sharded and self.sharding is not None:
                needs = self.sharding.needs(spec)
            elif trouble is not None:
                raise trouble
            return Entry(spec, needs, None, fingerprint(spec.backend, load), sharded)
        except LoadFailed as error:
            return Entry(spec, None, error)
