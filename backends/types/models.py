"""What a model is to the node: what it can do, what it needs, how to open it, how it is doing."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Capability(StrEnum):
    """What a request can ask of a model."""

    CHAT = "chat"
    VISION = "vision"  # a chat with images in it
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    TOKENIZE = "tokenize"


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Layers of a model that another machine holds."""

    endpoint: str  # 127.0.0.1:PORT, this machine's end of a tunnel to it
    layers: int  # the last shard has the output's weights, too


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to open one model: what node/catalog.py makes of a model's YAML and a backend reads."""

    name: str
    path: str = ""  # absolute path of the weights; empty for a backend without any
    mmproj: str = ""  # absolute path of the encoder of images that belongs to them; empty: none
    context_tokens: int | None = None  # of ONE sequence; None: the backend decides within memory_bytes
    slots: int | None = None  # concurrent sequences; None: the backend decides within memory_bytes
    memory_bytes: int | None = None  # what the node would grant; None: no limit
    threads: int | None = None  # None: the backend decides
    gpu_layers: int | None = None  # None: as many as fit
    deterministic: bool = False  # same text alone, in company, after a prefix hit and resumed
    sampling: dict[str, Any] = {}  # the model's defaults, fields of `Sampling`
    max_tokens: int | None = None  # default output limit
    stop: tuple[str, ...] = ()  # always stop strings, beside the request's own
    chat_template: str | None = None  # jinja2, overrides the one in the file
    engine: dict[str, Any] = {}  # the YAML's `engine:` table; only the backend knows its keys
    local_layers: int = 0  # where there are `shards`: the first layers, which this machine holds
    shards: tuple[Shard, ...] = ()  # the others, in order


class ModelNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend expects of a model before opening it, and the numbers it would open it with."""

    memory_bytes: int
    context_tokens: int
    slots: int
    capabilities: tuple[Capability, ...]
    quantisation: str = ""  # of the weights, for people; empty: not known


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine says of itself once its model is open."""

    capabilities: tuple[Capability, ...]
    context_tokens: int  # of one sequence
    slots: int
    load_s: float = 0.0
    embedding_size: int = 0
    details: dict[str, str | int | float | bool] = {}  # for people: architecture, quantisation, device, ...


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an engine is doing; sent once a second while it works and when it becomes idle.

    Rates are moving averages of what was measured, 0 before the first measurement.
    """

    slots_used: int = 0
    queued_tokens: int = 0  # prompt tokens accepted and not yet processed
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0  # aggregate over the batch
    decode_batch: float = 0.0  # sequences in the batch, averaged alike
    decode_gain: float = 0.0  # the aggregate grows as the batch to this power; 0 while no two sizes were measured
    prompt_tokens: int = 0  # in all, since the load
    cached_tokens: int = 0  # of them, found in a KV cache
    completion_tokens: int = 0
    memory_bytes: int = 0  # resident set of the child
