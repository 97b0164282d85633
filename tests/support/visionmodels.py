"""A vision model, made here: an encoder of random weights for the embedded model, in LLaVA's form.

What it sees means nothing; but each image is told from each other, and the same is always the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.backends.ggufs import ARRAY, F32, Typed, gguf

IMAGE_SIZE, PATCH_SIZE = 32, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
_WIDTH, _WIDER, _HEADS = 32, 64, 2


def write_mmproj(path: Path, *, width: int, seed: int = 7) -> Path:
    """Write the encoder for a language model whose embeddings have `width` numbers."""
    draw = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}

    def tensor(name: str, *shape: int, size: float | None = None) -> None:
        scale = size if size is not None else shape[-1] ** -0.5
        tensors[name] = (draw.standard_normal(shape) * scale).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(_WIDTH, np.float32)
        tensors[f"{name}.bias"] = np.zeros(_WIDTH, np.float32)

    tensor("v.patch_embd.weight", _WIDTH, 3, PATCH_SIZE, PATCH_SIZE, size=0.1)
    tensor("v.position_embd.weight", IMAGE_TOKENS, _WIDTH, size=0.3)
    for layer in range(2):  # LLaVA leaves out the last one
        block = f"v.blk.{layer}"
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensor(f"{block}.{name}.weight", _WIDTH, _WIDTH)
            tensors[f"{block}.{name}.bias"] = np.zeros(_WIDTH, np.float32)
        tensor(f"{block}.ffn_up.weight", _WIDER, _WIDTH)
        tensor(f"{block}.ffn_down.weight", _WIDTH, _WIDER)
        tensors[f"{block}.ffn_up.bias"] = np.zeros(_WIDER, np.float32)
        tensors[f"{block}.ffn_down.bias"] = np.zeros(_WIDTH, np.float32)
    tensor("mm.0.weight", width, _WIDTH)
    tensors["mm.0.bias"] = np.zeros(width, np.float32)
    tensor("mm.2.weight", width, width, size=width**-0.5)
    tensors["mm.2.bias"] = np.zeros(width, np.float32)
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
    infos, data = [], b""
    for name, values in tensors.items():
        infos.append((name, values.shape[::-1], len(data)))
        data += values.tobytes()
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(gguf(metadata, infos, data=data))
    return path
