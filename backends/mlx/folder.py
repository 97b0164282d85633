"""What the files beside the weights say of a model: a folder as Hugging Face's tools write it.

Read in the node, too, which has none of MLX's libraries; so nothing here needs them, and no weights are read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.mlx.settings import DTYPE_BYTES, Dtype
from backends.types import LoadFailed

_MAX_JSON_BYTES = 256 << 20  # a tokenizer of 260k tokens has 30 MB
_ENDS_BYTES = 1 << 20

FAMILIES_THAT_EMBED = frozenset(
    {
        *("llama", "mistral", "mixtral", "ministral3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("gemma", "gemma2", "gemma3_text"),
        *("phi3", "olmo2", "smollm3", "granite", "cohere", "starcoder2"),
    }
)
"""Model types whose hidden states mlx-lm gives out: `model.model` ends with the final norm."""

FAMILIES_THAT_SHARD = frozenset(
    {
        *("llama", "mistral", "ministral3", "mistral4", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "exaone_moe"),
        *("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v41", "glm4_moe", "glm4_moe_lite", "gpt_oss"),
        *("iquestloopcoder", "kimi_k25", "kimi_k3", "longcat_flash", "longcat_flash_ngram", "minimax"),
        *("minimax_m3_vl", "muse_spark", "step3p5"),
    }
)
"""Model types for which mlx-lm 0.32.2 has tensor parallelism."""

FAMILIES_THAT_PIPELINE = frozenset(
    {
        *("bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v41", "glm4_moe", "glm4_moe_lite"),
        *("kimi_k3", "minimax_m3_vl", "ministral3", "mistral4", "muse_spark", "qwen2", "qwen3_5", "qwen3_moe"),
        "qwen3_next",
    }
)
"""Model types for which it has pipelines."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder."""

    path: Path
    config: dict[str, Any]
    weights_bytes: int
    template: str | None
    end_tokens: tuple[int, ...]
    bos: str
    eos: str

    @property
    def family(self) -> str:
        """The architecture, as mlx-lm calls it."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def text(self) -> dict[str, Any]:
        """The part of the configuration that describes the language model."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, dict) else self.config

    def integer(self, name: str, default: int = 0) -> int:
        """A number of the configuration; `default` where there is none."""
        value = self.text.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default

    @property
    def dtype(self) -> Dtype:
        """Of what is not quantised."""
        named = str(self.text.get("torch_dtype") or self.text.get("dtype") or "float16").removeprefix("torch.")
        return next((dtype for dtype in DTYPE_BYTES if dtype == named), "float16")

    @property
    def replicated_bytes(self) -> int:
        """Weights that every rank of a shared model has: what tokens are looked up in, and what scores them."""
        bits = 8 * DTYPE_BYTES[self.dtype]
        quantised = self.config.get("quantization") or self.config.get("quantization_config")
        if isinstance(quantised, dict) and isinstance(quantised.get("bits"), int):
            bits = quantised["bits"] + 1  # and its scales
        matrices = 1 if self.text.get("tie_word_embeddings") else 2
        size = matrices * self.integer("vocab_size") * self.integer("hidden_size") * bits // 8
        return min(size, self.weights_bytes)

    def way(self, size: int) -> str:
        """How `size` ranks would share it: "tensor" or "pipeline". Raises LoadFailed with the reason."""
        heads = self.integer("num_attention_heads", 1)
        return way_for(
            heads,
            self.integer("num_key_value_heads", heads),
            self.integer("num_hidden_layers"),
            size,
            shards=self.family in FAMILIES_THAT_SHARD,
            pipelines=self.family in FAMILIES_THAT_PIPELINE,
        )

    @property
    def embeds(self) -> bool:
        """Whether the mean of its hidden states can be had."""
        return self.family in FAMILIES_THAT_EMBED


def way_for(heads: int, kv_heads: int, layers: int, size: int, *, shards: bool, pipelines: bool) -> str:
    """How `size` ranks share a model: "tensor" where its heads divide, else "pipeline". `shards`, `pipelines`: what
    mlx-lm has for its architecture. Raises LoadFailed with the reason."""
    divides = heads % size == 0 and kv_heads % size == 0
    if shards and divides:
        return "tensor"
    if pipelines and layers >= size:
        return "pipeline"
    if not shards and not pipelines:
        raise LoadFailed("mlx-lm cannot share a model of this architecture among ranks.")
    if shards and not divides:
        raise LoadFailed(
            f"{size} ranks cannot share this model: its {heads} heads ({kv_heads} of keys and values) do not divide by "
            f"{size}, and mlx-lm has no pipeline for its architecture."
        )
    raise LoadFailed(f"{size} ranks cannot share this model's {layers} layers.")


def read_folder(path: str) -> Folder:
    """The folder at `path`. Raises LoadFailed: it is no model, or lacks a file."""
    folder = Path(path)
    if not folder.is_dir():
        raise LoadFailed(
            f"{path} is no folder. A model for MLX is one, with config.json, tokenizer.json and *.safetensors in it."
        )
    config = _json(folder / "config.json", needed=True)
    if config.get("model_file"):
        raise LoadFailed(f"{path} brings Python code of its own (model_file in its config.json), which is not run.")
    weights = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if not weights:
        raise LoadFailed(f"There are no weights (model*.safetensors) in {path}.")
    if not (folder / "tokenizer.json").is_file():
        raise LoadFailed(f"There is no tokenizer.json in {path}. `mlx_lm.convert` writes one.")
    words = _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    return Folder(
        path=folder,
        config=config,
        weights_bytes=weights,
        template=_template(folder, words),
        end_tokens=_ids(config.get("eos_token_id"), generation.get("eos_token_id")),
        bos=_word(words.get("bos_token")),
        eos=_word(words.get("eos_token")),
    )


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json. Raises LoadFailed."""
    return _json(folder / "tokenizer.json", needed=True)


def identity(folder: Path) -> str:
    """What the weights in a folder are, whatever it is called: 32 hex digits of its files that say so, of the weights'
    own tables of contents, and of a little of the weights. Raises LoadFailed."""
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes() + (folder / "tokenizer.json").read_bytes())
        for file in sorted(folder.glob("model*.safetensors")):
            size = file.stat().st_size
            digest.update(file.name.encode() + size.to_bytes(8, "big"))
            with file.open("rb") as weights:
                digest.update(weights.read(_ENDS_BYTES))
                weights.seek(max(0, size - _ENDS_BYTES))
                digest.update(weights.read(_ENDS_BYTES))
    except OSError as error:
        raise LoadFailed(f"The model in {folder} cannot be read: {error}") from error
    return digest.hexdigest()[:32]


def _json(path: Path, *, needed: bool = False) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise LoadFailed(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB.")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if needed:
            raise LoadFailed(f"There is no {path.name} in {path.parent}.") from error
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise LoadFailed(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise LoadFailed(f"{path} holds no JSON object.")
    return content


def _template(folder: Path, words: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoadFailed(f"{file} cannot be read: {error}") from error
    given = words.get("chat_template")
    if isinstance(given, list):  # several by name
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get("default") or next(iter(named.values()), None)
    return given if isinstance(given, str) and given else None


def _ids(*values: Any) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                found[item] = None
    return tuple(found)


def _word(value: Any) -> str:
    if isinstance(value, dict):  # an added token, spelled out
        value = value.get("content")
    return value if isinstance(value, str) else ""
