"""How much memory a GGUF model will take, and the context and slots that fit, from its header alone."""

from __future__ import annotations

from pathlib import Path

from backends.llama_cpp.gguf import Header
from backends.sharding import Shape
from backends.types import Capability, LoadFailed, LoadSpec, ModelNeeds, OutOfMemory

MAX_AUTO_CONTEXT_TOKENS = 8192
AUTO_SLOTS = (8, 4, 2, 1)
MIN_AUTO_CONTEXT_TOKENS = 512
MAX_SLOTS = 256  # LLAMA_MAX_SEQ
BATCH_TOKENS = 512
_AUTO_KV_BYTES = 1 << 30  # what the KV cache may take unasked; more where the weights are larger still
_PROCESS_BYTES = 96 << 20  # interpreter, bindings, tokenizer and what the graphs need at least
_CONTEXT_ALIGNMENT = 256  # llama.cpp pads a sequence's context to it
_POOLING_NONE, _POOLING_RANK = 0, 4
_EMBEDDINGS, _POSITIONS, _OUTPUT = "token_embd.weight", "position_embd.weight", "output.weight"
_MAX_OUTPUT_ROWS = 64  # of logits in one batch: a row for every slot, and some for echoed prompts
_SERVER_BYTES = 16 << 20  # messages and graphs on a machine that holds layers
_KV_ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


def estimate(header: Header, load: LoadSpec) -> ModelNeeds:
    """What opening `load` takes. Raises OutOfMemory when even the smallest context is over `load.memory_bytes`."""
    weights = header.file_bytes + _PROCESS_BYTES + _compute_bytes(header) + encoder_bytes(load)
    per_token = _kv_bytes_per_token(header, str(load.engine.get("cache_type") or "f16"))
    trained = header.integer("context_length") or MAX_AUTO_CONTEXT_TOKENS
    limit = load.memory_bytes
    room = max(_AUTO_KV_BYTES, header.file_bytes)
    if limit is not None:
        room = min(room, limit - weights)
    wanted = load.context_tokens or min(trained, MAX_AUTO_CONTEXT_TOKENS)
    choices = (load.slots,) if load.slots else AUTO_SLOTS
    slots = next((count for count in choices if per_token * wanted * (count + 1) <= room), choices[-1])
    context = _padded(wanted)
    if not load.context_tokens and per_token:
        fitting = int(room / (per_token * (slots + 1)))
        context = max(MIN_AUTO_CONTEXT_TOKENS, min(context, fitting - fitting % _CONTEXT_ALIGNMENT))
    if _POSITIONS in header.other_bytes:  # one vector for each position: beyond the last, llama.cpp ends the process
        context = min(context, trained)
    needed = int(weights + per_token * context * (slots + 1))  # one more for embeddings, made when first asked
    if limit is not None and needed > limit:
        raise OutOfMemory(
            f"Model {load.name} needs {_gib(needed)} ({_gib(header.file_bytes)} of weights, "
            f"{slots} slots of {context} tokens); the memory budget is {_gib(limit)}. "
            "Take a smaller quantisation, or set fewer slots or a smaller context_size."
        )
    return ModelNeeds(
        memory_bytes=needed,
        context_tokens=context,
        slots=min(slots, MAX_SLOTS),
        capabilities=capabilities(header, load),
        quantisation=header.quantisation,
    )


def shape(header: Header, load: LoadSpec, needs: ModelNeeds) -> Shape:
    """The model as a row of layers, opened with the numbers of `needs`. Raises LoadFailed where it cannot be cut."""
    if not header.block_bytes or embeds_only(header):
        raise LoadFailed(f"Model {load.name} has no layers that could be on another machine.")
    layers = len(header.block_bytes)
    cache = _kv_bytes_per_token(header, str(load.engine.get("cache_type") or "f16"))
    cache_bytes = int(cache * needs.context_tokens * (needs.slots + 1)) // layers
    vocabulary = header.lengths.get("tokenizer.ggml.tokens", 0)
    looked_up = header.other_bytes.get(_EMBEDDINGS, 0)
    output = sum(size for name, size in header.other_bytes.items() if name.startswith("output"))
    if _OUTPUT not in header.other_bytes:  # the same matrix both ways: it is held twice
        output += looked_up
    logits_bytes = 4 * vocabulary
    return Shape(
        layer_bytes=header.block_bytes,
        layer_cache_bytes=(cache_bytes,) * layers,
        output_bytes=output,
        head_bytes=_PROCESS_BYTES
        + encoder_bytes(load)
        + looked_up
        + header.data_offset
        + logits_bytes * _MAX_OUTPUT_ROWS,
        scratch_bytes=_compute_bytes(header) + logits_bytes * _MAX_OUTPUT_ROWS + _SERVER_BYTES,
        border_bytes=4 * header.integer("embedding_length"),
        result_bytes=logits_bytes,
    )


def capabilities(header: Header, load: LoadSpec) -> tuple[Capability, ...]:
    """What a model of this header can do."""
    if ranks(header):
        return (Capability.RERANK, Capability.TOKENIZE)
    if embeds_only(header):
        return (Capability.EMBEDDING, Capability.TOKENIZE)
    template = load.chat_template or header.text("tokenizer.chat_template")
    chat = ((Capability.CHAT, Capability.VISION) if load.mmproj else (Capability.CHAT,)) if template else ()
    return (*chat, Capability.COMPLETION, Capability.EMBEDDING, Capability.TOKENIZE)


def encoder_bytes(load: LoadSpec) -> int:
    """What the encoder of images takes: its weights, and scratch memory of about their half. Raises LoadFailed."""
    if not load.mmproj:
        return 0
    try:
        size = Path(load.mmproj).stat().st_size
    except (OSError, ValueError) as error:
        raise LoadFailed(f"Model {load.name}: its mmproj {load.mmproj} cannot be read: {error}.") from error
    return size + size // 2


def embeds_only(header: Header) -> bool:
    """True of an encoder: it pools, it does not generate."""
    return not header.metadata.get(f"{header.architecture}.attention.causal", True) or pools(header)


def pools(header: Header) -> bool:
    """Whether the file says how to pool the embeddings of an input."""
    return header.integer("pooling_type", _POOLING_NONE) != _POOLING_NONE


def ranks(header: Header) -> bool:
    """Whether what the model makes of an input is a score: how well a document answers a query."""
    return header.integer("pooling_type", _POOLING_NONE) == _POOLING_RANK


def _kv_bytes_per_token(header: Header, cache_type: str) -> float:
    if embeds_only(header):
        return 0.0
    heads = header.integer("attention.head_count", 1) or 1
    width = header.integer("embedding_length")
    kv_heads = header.integer("attention.head_count_kv", heads)
    key = header.integer("attention.key_length", width // heads)
    value = header.integer("attention.value_length", width // heads)
    elements = header.integer("block_count") * kv_heads * (key + value)
    return elements * _KV_ELEMENT_BYTES.get(cache_type, 2.0)


def _compute_bytes(header: Header) -> int:
    """The scratch memory of one batch: the widest activations in float32, several alive at a time."""
    width = max(header.integer("feed_forward_length"), header.integer("embedding_length"))
    return BATCH_TOKENS * width * 4 * 4


def _padded(tokens: int) -> int:
    return -(-tokens // _CONTEXT_ALIGNMENT) * _CONTEXT_ALIGNMENT


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
