"""A GGUF model of any size whose weights mean nothing: what a load costs does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.backends.ggufs import ARRAY, F32, I32, STRING, Typed, string, value

WIDTH, INNER, HEADS = 4096, 8192, 32
"""So that every matrix of a layer is over 10 MiB: smaller ones an RPC server does not keep."""
_F32, _Q8_0 = 0, 8  # ggml_type
_ALIGNMENT = 32
_SCALE = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_MATRICES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (WIDTH, INNER),
    "ffn_up": (WIDTH, INNER),
    "ffn_down": (INNER, WIDTH),
}
LAYER_BYTES = sum(columns * rows for columns, rows in _MATRICES.values()) * 34 // 32


def write_weights(path: Path, layers: int) -> int:
    """A llama of so many layers, in Q8_0; how many bytes its file has."""
    tokens = ["<unk>", "<s>", "</s>", *_BYTES]
    vocabulary = len(tokens)
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "llama.embedding_length": WIDTH,
        "llama.block_count": layers,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": vocabulary,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": Typed(ARRAY, tokens, STRING),
        "tokenizer.ggml.scores": Typed(ARRAY, [0.0] * vocabulary, F32),
        "tokenizer.ggml.token_type": Typed(ARRAY, [2, 3, 3, *([6] * len(_BYTES))], I32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (WIDTH, vocabulary), _Q8_0),
        ("output_norm.weight", (WIDTH,), _F32),
        ("output.weight", (WIDTH, vocabulary), _Q8_0),
    ]
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{name}_norm.weight", (WIDTH,), _F32) for name in ("attn", "ffn")]
        tensors += [(f"blk.{layer}.{name}.weight", shape, _Q8_0) for name, shape in _MATRICES.items()]
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(_head(metadata, tensors))
        for _, shape, kind in tensors:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            if kind == _F32:
                file.write(np.ones(shape, np.float32).tobytes())
                continue
            blocks = random.integers(0, 256, (int(np.prod(shape)) // 32, 34), np.uint8)
            blocks[:, :2] = _SCALE
            file.write(blocks.data)
        return file.tell()


def _head(metadata: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int]]) -> bytes:
    body = b"GGUF" + (3).to_bytes(4, "little") + len(tensors).to_bytes(8, "little")
    body += len(metadata).to_bytes(8, "little")
    body += b"".join(string(key) + value(item) for key, item in metadata.items())
    at = 0
    for name, shape, kind in tensors:
        body += string(name) + len(shape).to_bytes(4, "little")
        body += b"".join(side.to_bytes(8, "little") for side in shape)
        body += kind.to_bytes(4, "little") + at.to_bytes(8, "little")
        size = int(np.prod(shape)) * (4 if kind == _F32 else 1)
        at += -(-(size if kind == _F32 else size * 34 // 32) // _ALIGNMENT) * _ALIGNMENT
    return body + b"\0" * (-len(body) % _ALIGNMENT)
