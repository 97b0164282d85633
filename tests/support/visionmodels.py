"""A vision model, made here: an encoder of random weights for the embedded model, in LLaVA's form.

What it sees means nothing; but each image is told from each other, and the same is always the same.
"""

from __future__ import annotations

from pathlib import Path

from tests.backends.ggufs import ARRAY, F32, Typed
from tests.support.ggufweights import Tensors, write_gguf

IMAGE_SIZE, PATCH_SIZE = 32, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
_WIDTH, _WIDER, _HEADS = 32, 64, 2


def write_mmproj(path: Path, *, width: int, seed: int = 7) -> Path:
    """Write the encoder for a language model whose embeddings have `width` numbers."""
    tensors = Tensors(seed)
    tensors.random("v.patch_embd.weight", _WIDTH, 3, PATCH_SIZE, PATCH_SIZE, size=0.1)
    tensors.random("v.position_embd.weight", IMAGE_TOKENS, _WIDTH, size=0.3)
    for layer in range(2):  # LLaVA leaves out the last one
        block = f"v.blk.{layer}"
        tensors.norm(f"{block}.ln1", _WIDTH)
        tensors.norm(f"{block}.ln2", _WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors.linear(f"{block}.{name}", _WIDTH, _WIDTH)
        tensors.linear(f"{block}.ffn_up", _WIDER, _WIDTH)
        tensors.linear(f"{block}.ffn_down", _WIDTH, _WIDER)
    tensors.linear("mm.0", width, _WIDTH)
    tensors.linear("mm.2", width, width)
    metadata = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.embedding_length": _WIDTH,
        "clip.vision.feed_forward_length": _WIDER,
        "clip.vision.block_count": 2,
        "clip.vision.projection_dim": width,
        "clip.vision.attention.head_count": _HEADS,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_size": IMAGE_SIZE,
        "clip.vision.patch_size": PATCH_SIZE,
        "clip.vision.image_mean": Typed(ARRAY, [0.5, 0.5, 0.5], F32),
        "clip.vision.image_std": Typed(ARRAY, [0.5, 0.5, 0.5], F32),
    }
    return write_gguf(path, metadata, tensors)
