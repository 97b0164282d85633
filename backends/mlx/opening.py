"""From a LoadSpec to a running engine: the model, its tokenizer and its template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from backends.chat.template import ChatTemplate
from backends.mlx.device import Device
from backends.mlx.engine import MlxEngine
from backends.mlx.folder import Folder, read_folder
from backends.mlx.jobs import Preparer
from backends.mlx.needs import caches, estimate
from backends.mlx.settings import Settings, read_settings
from backends.mlx.sharing import Ranks, lazy_model, meet
from backends.mlx.words import Words
from backends.types import Capability, EngineInfo, LoadFailed, LoadSpec


def open_engine(load: LoadSpec, progress: Callable[[float], None]) -> MlxEngine:
    """Open the model in the folder that `load` names. Raises LoadFailed."""
    settings = read_settings(load.engine)
    folder = read_folder(load.path)
    needs = estimate(folder, load)
    words = Words(folder.path, folder.integer("vocab_size"))
    source = load.chat_template or folder.template
    template = ChatTemplate(source, bos=folder.bos, eos=folder.eos) if source else None
    progress(0.1)
    end_tokens = folder.end_tokens
    if folder.eos:
        end_tokens += tuple(words.tokenize(folder.eos, add_special=False, parse_special=True)[:1])
    embeds = Capability.EMBEDDING in needs.capabilities
    info = EngineInfo(
        capabilities=needs.capabilities,
        context_tokens=needs.context_tokens,
        slots=needs.slots,
        embedding_size=folder.integer("hidden_size") if embeds else 0,
        details={
            "architecture": folder.family,
            "device": str(mx.default_device()),
            "dtype": settings.dtype or folder.dtype,
            "deterministic": load.deterministic,
            "machines": 1 + len(load.shards),
        },
    )
    preparer = Preparer(
        words,
        template,
        bos=folder.bos,
        end_tokens=end_tokens,
        embeds=embeds,
        context_tokens=needs.context_tokens,
    )
    device: Device | Ranks
    if load.shards:
        device = meet(folder, settings, [shard.endpoint for shard in load.shards], slots=needs.slots)
    else:
        device = Device(open_model(folder, settings), slots=needs.slots, prompt_tokens=settings.prompt_tokens)
    return MlxEngine(
        device,
        words.pieces,
        preparer,
        info,
        end_tokens=end_tokens,
        kept_tokens=needs.context_tokens * (caches(needs.slots) - needs.slots),
        prompt_tokens=settings.prompt_tokens,
        exact=load.deterministic,
    )


def open_model(folder: Folder, settings: Settings) -> Any:
    """The model with its weights in memory. Raises LoadFailed."""
    model = lazy_model(folder, settings)
    try:
        mx.eval(model.parameters())
    except (RuntimeError, ValueError) as error:
        raise LoadFailed(f"MLX cannot load the weights in {folder.path}: {error}") from error
    return model
