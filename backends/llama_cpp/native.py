"""llama.cpp as two small classes: a model with its vocabulary, and a context with its batch and KV cache.

The only file that touches the bindings' loading side. Source of the semantics: llama.cpp's include/llama.h.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import llama_cpp as native
import numpy as np
import numpy.typing as npt

from backends.types import CallerError, EngineFault, LoadFailed

Floats = npt.NDArray[np.float32]

_LOG_ERROR, _LOG_DEBUG = 4, 1  # ggml.h, ggml_log_level
_FLOOD = b"llama_graph_n_input_tensors"  # hundreds of lines a context, at level info
_PIECE_BYTES = 64
errors: deque[str] = deque(maxlen=3)
"""What llama.cpp has last complained of."""


@native.llama_log_callback  # type: ignore[untyped-decorator]
def on_log(level: int, text: bytes, _user: object) -> None:
    if level == _LOG_ERROR:
        errors.append(text.decode(errors="replace").strip())
    if level != _LOG_DEBUG and not text.startswith(_FLOOD):
        sys.stderr.write(text.decode(errors="replace"))


native.llama_log_set(on_log, ctypes.c_void_p(0))


_DEVICE_GPU, _DEVICE_INTEGRATED_GPU = 1, 2  # ggml-backend.h, ggml_backend_dev_type


def has_gpu() -> bool:
    """Whether llama.cpp was built for a GPU and finds one. (`llama_supports_gpu_offload` is true of RPC alone.)"""
    by_type = native.llama_cpp._lib.ggml_backend_dev_by_type
    by_type.argtypes, by_type.restype = (ctypes.c_int,), ctypes.c_void_p
    return any(by_type(kind) is not None for kind in (_DEVICE_GPU, _DEVICE_INTEGRATED_GPU))


@dataclass(frozen=True, slots=True)
class Layout:
    """Which devices hold a model's last layers, and how many each. The first layers stay on the CPU."""

    devices: ctypes.Array[ctypes.c_void_p]  # ended by a null
    counts: tuple[int, ...]  # the output's weights count as one more layer


class Model:
    """Weights and vocabulary. Its methods may be called from any thread."""

    def __init__(
        self,
        path: str,
        *,
        gpu_layers: int | None,
        progress: Callable[[float], None],
        layout: Layout | None = None,
    ) -> None:
        """Open the GGUF at `path`, on the devices of `layout` if there is one. Raises LoadFailed with llama.cpp's own
        reason."""
        native.llama_backend_init()
        params = native.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers

        if layout is not None:
            params.n_gpu_layers = sum(layout.counts)
            self._layout = layout  # kept alive: C reads it
            params.devices = ctypes.addressof(layout.devices)
            counts = [*layout.counts, *[0] * (native.llama_max_devices() - len(layout.counts))]
            self._split = (ctypes.c_float * len(counts))(*counts)  # kept alive: C reads it
            params.tensor_split = self._split

        def report(share: float, _user: object) -> bool:
            progress(share)
            return True

        self._progress = native.llama_progress_callback(report)  # kept alive: C calls it
        params.progress_callback = self._progress
        errors.clear()
        self.handle = native.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            reason = errors[0] if errors else "no reason given"
            raise LoadFailed(f"llama.cpp cannot open {path}: {reason}")
        self.vocab = native.llama_model_get_vocab(self.handle)
        self.vocabulary = int(native.llama_vocab_n_tokens(self.vocab))
        self.piece = lru_cache(maxsize=1 << 16)(self._piece)

    def close(self) -> None:
        """Free the weights; contexts must be closed before."""
        native.llama_model_free(self.handle)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            ids = (native.llama_token * room)()
            count = native.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def _piece(self, token: int) -> bytes:
        """The bytes a token adds to a text; nothing for a control token."""
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = native.llama_token_to_piece(self.vocab, token, buffer, room, 0, False)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens written out. Raises CallerError for a foreign id."""
        self.check_tokens(tokens, "tokens")
        ids = (native.llama_token * len(tokens))(*tokens)
        room = max(64, 8 * len(tokens))
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = native.llama_detokenize(self.vocab, ids, len(tokens), buffer, room, False, True)
            if size >= 0:
                return buffer.raw[:size].decode("utf-8", errors="replace")
            room = -size

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises CallerError, naming `param`, unless all ids are in the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise CallerError(
                    f"Token {token} is outside this model's vocabulary of {self.vocabulary}.", param=param
                )

    def pair(self, query: str, document: str) -> list[int]:
        """A query and a document as a ranking model was trained on them: by its own template, else with what its
        vocabulary puts around and between two texts. As in llama.cpp's server (format_prompt_rerank), but with the last
        separator of BERT's form."""
        template = self.meta("tokenizer.chat_template.rerank")
        if template is not None:
            # In one go: what is put in may have such a place in it.
            text = re.sub(r"\{(query|document)\}", lambda at: query if at[1] == "query" else document, template)
            return self.tokenize(text, add_special=False, parse_special=True)
        vocab = self.vocab
        between, end = native.llama_vocab_sep(vocab), native.llama_vocab_eos(vocab)
        begin = [native.llama_vocab_bos(vocab)] if native.llama_vocab_get_add_bos(vocab) else []
        ends = [end if end >= 0 else between] if native.llama_vocab_get_add_eos(vocab) else []
        separator = [between] if native.llama_vocab_get_add_sep(vocab) else []
        first, second = (self.tokenize(text, add_special=False, parse_special=False) for text in (query, document))
        return [*begin, *first, *ends, *separator, *second, *(ends or separator)]

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        return bool(native.llama_vocab_is_eog(self.vocab, token))

    def end_tokens(self) -> list[int]:
        """All tokens that end a generation."""
        return [token for token in range(self.vocabulary) if self.is_end(token)]

    def special_text(self, token: int) -> str:
        """How the vocabulary writes a special token; empty where it has none (a negative id)."""
        if token < 0:
            return ""
        text: bytes | None = native.llama_vocab_get_text(self.vocab, token)
        return (text or b"").decode("utf-8", errors="replace")

    @property
    def bos(self) -> str:
        return self.special_text(native.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> str:
        return self.special_text(native.llama_vocab_eos(self.vocab))

    def infill_tokens(self) -> tuple[int, int, int] | None:
        """What stands before a prefix, before a suffix, and before the text between them; None where it has none."""
        vocab = self.vocab
        marks = (
            int(native.llama_vocab_fim_pre(vocab)),
            int(native.llama_vocab_fim_suf(vocab)),
            int(native.llama_vocab_fim_mid(vocab)),
        )
        return marks if min(marks) >= 0 else None

    def meta(self, key: str) -> str | None:
        """A string of the GGUF's metadata."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = native.llama_model_meta_val_str(self.handle, key.encode(), buffer, room)
            if size < 0:
                return None
            if size < room:
                return buffer.raw[:size].decode("utf-8", errors="replace")
            room = size + 1

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        native.llama_model_desc(self.handle, buffer, 256)
        return buffer.value.decode(errors="replace")


class Context:
    """A KV cache and one reusable batch. Everything from one thread."""

    def __init__(self, model: Model, params: object, *, batch_tokens: int) -> None:
        """Make a context with llama_context_params. Raises LoadFailed, mostly for want of memory."""
        errors.clear()
        self.handle = native.llama_init_from_model(model.handle, params)
        if not self.handle:
            reason = errors[0] if errors else "not enough memory?"
            raise LoadFailed(f"llama.cpp cannot make a context: {reason}")
        self._vocabulary = model.vocabulary
        self._memory = native.llama_get_memory(self.handle)
        self._batch = native.llama_batch_init(batch_tokens, 0, 1)
        self._room = batch_tokens

    def close(self) -> None:
        native.llama_batch_free(self._batch)
        native.llama_free(self.handle)

    @property
    def context_tokens(self) -> int:
        """Of one sequence."""
        return int(native.llama_n_ctx_seq(self.handle))

    def begin(self) -> None:
        """Empty the batch."""
        self._batch.n_tokens = 0

    @property
    def room(self) -> int:
        """Tokens that the batch still takes."""
        return self._room - int(self._batch.n_tokens)

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, all_logits: bool, last_logits: bool) -> int:
        """Append `tokens` of `sequence` from `position` on; the index of the last one, for `logits`."""
        batch = self._batch
        start: int = batch.n_tokens
        for offset, token in enumerate(tokens):
            at = start + offset
            batch.token[at] = token
            batch.pos[at] = position + offset
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = all_logits
        batch.n_tokens = start + len(tokens)
        if last_logits:
            batch.logits[batch.n_tokens - 1] = True
        return int(batch.n_tokens) - 1

    def decode(self) -> None:
        """Run the batch, to its end: devices other than the CPU work on after llama_decode has returned, and what the
        batch took is measured around this. Raises EngineFault when the model refuses it."""
        code = native.llama_decode(self.handle, self._batch)
        native.llama_synchronize(self.handle)
        if code != 0:
            raise EngineFault(f"llama_decode failed with code {code}.")

    def logits(self, index: int) -> Floats:
        """The raw logits after batch position `index`: a view of shape (vocabulary,), valid until the next decode."""
        pointer = native.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))

    def sequence_embedding(self, sequence: int, size: int) -> Floats:
        """The pooled embedding of a sequence, shape (size,), copied."""
        pointer = native.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, shape=(size,)).copy()

    def token_embedding(self, index: int, size: int) -> Floats:
        """The embedding of batch position `index`: a view of shape (size,), valid until the next decode."""
        pointer = native.llama_get_embeddings_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, shape=(size,))

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget a sequence from position `length` on. False where the model's memory cannot (recurrent ones)."""
        if self._memory is None or length < 0:
            return True
        return bool(native.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def forget(self, sequence: int) -> None:
        """Forget a whole sequence."""
        if self._memory is not None:
            native.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def fork(self, source: int, target: int) -> None:
        """Copy all of one sequence's memory to another, which is empty after `forget`."""
        self.forget(target)
        native.llama_memory_seq_cp(self._memory, source, target, -1, -1)
