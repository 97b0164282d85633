"""A ranking model, made here: a BERT of random weights that knows letters, with a head that gives one score."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from tests.backends.ggufs import ARRAY, F32, I32, STRING, Typed
from tests.support.ggufweights import Tensors, write_gguf

CONTEXT_TOKENS = 64
_WIDTH, _WIDER, _HEADS, _LAYERS = 32, 64, 2, 2
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = [*_SPECIAL, *(f"\u2581{letter}" for letter in ascii_lowercase), *ascii_lowercase]
"""The first letter of a word, as BERT's GGUF files write it, and those that follow."""


def write_ranker(path: Path, *, pooling: int = 4, template: str | None = None, constant: float | None = None) -> Path:
    """Write it. `pooling` is llama.cpp's number, 4 being a score; `constant` makes it say this of everything."""
    tensors = Tensors(11)
    tensors.random("token_embd.weight", len(VOCABULARY), _WIDTH, size=1.0)
    tensors.random("position_embd.weight", CONTEXT_TOKENS, _WIDTH, size=0.3)
    tensors.random("token_types.weight", 2, _WIDTH, size=0.1)
    tensors.norm("token_embd_norm", _WIDTH)
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors.linear(f"{block}.{name}", _WIDTH, _WIDTH)
        tensors.linear(f"{block}.ffn_up", _WIDER, _WIDTH)
        tensors.linear(f"{block}.ffn_down", _WIDTH, _WIDER)
        tensors.norm(f"{block}.attn_output_norm", _WIDTH)
        tensors.norm(f"{block}.layer_output_norm", _WIDTH)
    if pooling == 4:
        tensors.linear("cls", _WIDTH, _WIDTH)
        tensors.linear("cls.output", 1, _WIDTH)
        if constant is not None:
            tensors["cls.output.weight"] = np.zeros((1, _WIDTH), np.float32)
            tensors["cls.output.bias"] = np.full(1, constant, np.float32)
    metadata: dict[str, Any] = {
        "general.architecture": "bert",
        "bert.context_length": CONTEXT_TOKENS,
        "bert.embedding_length": _WIDTH,
        "bert.block_count": _LAYERS,
        "bert.feed_forward_length": _WIDER,
        "bert.attention.head_count": _HEADS,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": Typed(ARRAY, VOCABULARY, STRING),
        "tokenizer.ggml.scores": Typed(ARRAY, [0.0] * len(VOCABULARY), F32),
        "tokenizer.ggml.token_type": Typed(ARRAY, [3] * len(_SPECIAL) + [1] * (len(VOCABULARY) - len(_SPECIAL)), I32),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }
    if template is not None:
        metadata["tokenizer.chat_template.rerank"] = template
    return write_gguf(path, metadata, tensors)
