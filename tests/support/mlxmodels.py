"""A folder as MLX wants it: a tiny llama of random weights, a token a byte. Made in a moment, and the same every time.

Its answers are printable ASCII, since what else there is has no weights in its output, and far apart, since those that
there are, are large: rounding does not change a text.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HEADS = 6
_WIDTH, _INNER, _LAYERS = 48, 96, 2
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny_llama(folder: Path, *, heads: int = HEADS) -> Path:
    """The model in `folder`, which is made. Its heads divide among 2, 3 or 6 ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = 256 + len(_SPECIAL)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": _WIDTH // HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 258,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", _tokenizer())
    words = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": _TEMPLATE}
    _write_json(folder / "tokenizer_config.json", words)
    _write_safetensors(folder / "model.safetensors", _weights(vocabulary, heads))
    return folder


def write_tiny_qwen2(folder: Path) -> Path:
    """One for which mlx-lm has pipelines, and whose heads divide by three alone."""
    write_tiny_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    _write_json(
        folder / "config.json", config | {"model_type": "qwen2", "num_attention_heads": 3, "num_key_value_heads": 3}
    )
    weights = _weights(config["vocab_size"], HEADS)
    for number in range(_LAYERS):
        for name in ("q_proj", "k_proj", "v_proj"):
            weights[f"model.layers.{number}.self_attn.{name}.bias"] = np.zeros(_WIDTH, np.float32)
    _write_safetensors(folder / "model.safetensors", weights)
    return folder


def _letters() -> list[str]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _tokenizer() -> dict[str, object]:
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 256 + number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _weights(vocabulary: int, heads: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    attention = heads * (_WIDTH // HEADS)

    def matrix(rows: int, columns: int, scale: float = 0.25) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    head = matrix(vocabulary, _WIDTH, 1.5)
    head[[row for row in range(vocabulary) if not 0x20 <= row < 0x7F]] = 0.0
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, _WIDTH, 1.0),
        "model.norm.weight": np.ones(_WIDTH, np.float32),
        "lm_head.weight": head,
    }
    for number in range(_LAYERS):
        layer = f"model.layers.{number}."
        weights |= {
            layer + "input_layernorm.weight": np.ones(_WIDTH, np.float32),
            layer + "post_attention_layernorm.weight": np.ones(_WIDTH, np.float32),
            layer + "self_attn.q_proj.weight": matrix(attention, _WIDTH),
            layer + "self_attn.k_proj.weight": matrix(attention, _WIDTH),
            layer + "self_attn.v_proj.weight": matrix(attention, _WIDTH),
            layer + "self_attn.o_proj.weight": matrix(_WIDTH, attention),
            layer + "mlp.gate_proj.weight": matrix(_INNER, _WIDTH),
            layer + "mlp.up_proj.weight": matrix(_INNER, _WIDTH),
            layer + "mlp.down_proj.weight": matrix(_WIDTH, _INNER),
        }
    return weights


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
