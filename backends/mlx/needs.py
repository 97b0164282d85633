"""How much memory an MLX model will take, and the context and slots that fit, from its folder alone."""

from __future__ import annotations

from backends.mlx.folder import Folder
from backends.mlx.settings import DTYPE_BYTES, Dtype, read_settings
from backends.sharding import RankShape
from backends.types import Capability, LoadSpec, ModelNeeds, OutOfMemory

MAX_AUTO_CONTEXT_TOKENS = 8192
MIN_AUTO_CONTEXT_TOKENS = 512
AUTO_SLOTS = (8, 4, 2, 1)
MAX_SLOTS = 64
_PROCESS_BYTES = 384 << 20  # interpreter, MLX, mlx-lm, tokenizer
_AUTO_KV_BYTES = 1 << 30  # what the KV cache may take unasked; more where the weights are larger still
_CACHE_STEP_TOKENS = 256  # MLX's caches grow by so many


def estimate(folder: Folder, load: LoadSpec) -> ModelNeeds:
    """What opening `load` takes. Raises OutOfMemory when even the smallest context is over `load.memory_bytes`."""
    settings = read_settings(load.engine)
    dtype = settings.dtype or folder.dtype
    size = 1 + len(load.shards)  # ranks
    weights = weights_of_rank(folder, dtype, size)
    wide = max(folder.integer("vocab_size"), folder.integer("intermediate_size"))
    scratch = _PROCESS_BYTES + 4 * 4 * wide * 64 + 4 * settings.prompt_tokens * folder.integer("intermediate_size")
    per_token = -(-_cache_bytes_per_token(folder, DTYPE_BYTES[dtype]) // size)
    trained = folder.integer("max_position_embeddings", MAX_AUTO_CONTEXT_TOKENS)
    limit = load.memory_bytes
    room = max(_AUTO_KV_BYTES, weights)
    if limit is not None:
        room = min(room, limit - weights - scratch)
    context = load.context_tokens or min(trained, MAX_AUTO_CONTEXT_TOKENS)
    choices = (load.slots,) if load.slots else AUTO_SLOTS
    slots = next((count for count in choices if per_token * context * caches(count) <= room), choices[-1])
    slots = min(slots, MAX_SLOTS)
    if not load.context_tokens and per_token:
        fitting = int(room / (per_token * caches(slots)))
        context = max(MIN_AUTO_CONTEXT_TOKENS, min(context, fitting - fitting % _CACHE_STEP_TOKENS))
    needed = weights + scratch + per_token * (context + _CACHE_STEP_TOKENS) * caches(slots)
    if limit is not None and needed > limit:
        raise OutOfMemory(
            f"Model {load.name} needs {_gib(needed)} ({_gib(weights)} of weights, {slots} slots of {context} tokens); "
            f"the memory budget is {_gib(limit)}. Take a smaller quantisation, or set fewer slots or a smaller "
            "context_size."
        )
    return ModelNeeds(memory_bytes=needed, context_tokens=context, slots=slots, capabilities=capabilities(folder, load))


def rank_shape(folder: Folder, load: LoadSpec, size: int) -> RankShape:
    """How `size` ranks would share it; one has it as a whole. Raises LoadFailed."""
    way = folder.way(size) if size > 1 else "tensor"
    layers = folder.integer("num_hidden_layers", 1)
    dtype = read_settings(load.engine).dtype or folder.dtype
    base, extra = divmod(layers, size)
    return RankShape(
        way=way,
        layers=tuple(base + (rank < extra) for rank in range(size)) if way == "pipeline" else (layers,) * size,
        weight_bytes=weights_of_rank(folder, dtype, size),
        # Attention and what follows it add up in each layer; a pipeline hands on what each rank has made. And the draw.
        exchanges=2 * layers + 1 if way == "tensor" else size + 1,
    )


def weights_of_rank(folder: Folder, dtype: Dtype, size: int) -> int:
    """Bytes that each of `size` ranks has."""
    weights = folder.weights_bytes
    if "quantization" not in folder.config and "quantization_config" not in folder.config:
        weights = weights * DTYPE_BYTES[dtype] // DTYPE_BYTES[folder.dtype]
    if size == 1:
        return weights
    own = min(folder.replicated_bytes, weights)
    return own + (weights - own) // size


def capabilities(folder: Folder, load: LoadSpec) -> tuple[Capability, ...]:
    """What a model in this folder can do."""
    chat = (Capability.CHAT,) if load.chat_template or folder.template else ()
    embedding = (Capability.EMBEDDING,) if folder.embeds else ()
    return (*chat, Capability.COMPLETION, *embedding, Capability.TOKENIZE)


def caches(slots: int) -> int:
    """How many full contexts are held at most: of the running sequences, and of ended ones that may come back."""
    return slots + max(1, slots // 2)


def _cache_bytes_per_token(folder: Folder, element_bytes: int) -> int:
    heads = folder.integer("num_attention_heads", 1)
    width = folder.integer("head_dim", folder.integer("hidden_size") // heads)
    elements = 2 * folder.integer("num_hidden_layers") * folder.integer("num_key_value_heads", heads) * width
    return elements * element_bytes


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
