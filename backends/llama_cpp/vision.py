"""Images as llama.cpp's mtmd library makes them: an encoder beside the model, and pictures in the midst of a prompt.

A prompt is a list of token ids, one for each position. The positions of an image hold a negative number that stands for
the image, so that two prompts have their beginning in common only as far as their images are the same. mtmd.h and
mtmd-helper.h of llama.cpp's tools/mtmd have the semantics. Imported only for a model that has an encoder: the library
may not be there.
"""

from __future__ import annotations

import ctypes
import hashlib
import secrets
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import llama_cpp as native
import msgspec
from llama_cpp import mtmd_cpp as mtmd

from backends.llama_cpp.native import Context, Model, errors, on_log
from backends.types import CallerError, EngineFault, ImagePart, LoadFailed, Message, TextPart, Unsupported

mtmd.mtmd_helper_log_set(on_log, ctypes.c_void_p(0))


@dataclass(frozen=True, slots=True)
class Picture:
    """A part of an image (all of it, or a tile), and the positions that it takes."""

    start: int
    end: int
    cells: int  # of the KV cache; some models give several cells one position
    chunk: int  # mtmd's own; it lives as long as the `Pictures` that this is one of


class Pictures:
    """Those of one prompt, in order."""

    def __init__(self, chunks: int, pictures: Sequence[Picture]) -> None:
        """`chunks`: mtmd's list of all parts of the prompt, freed with this object."""
        self._pictures = pictures
        weakref.finalize(self, mtmd.mtmd_input_chunks_free, chunks)

    @property
    def spare_cells(self) -> int:
        """Cells that they take beyond one a position."""
        return sum(picture.cells - (picture.end - picture.start) for picture in self._pictures)

    def next(self, position: int) -> Picture | None:
        """The first that begins at `position` or later."""
        return next((picture for picture in self._pictures if picture.start >= position), None)

    def whole(self, position: int) -> int:
        """The last place up to `position` that is not in the midst of one."""
        return next((picture.start for picture in self._pictures if picture.start < position < picture.end), position)


class Sight:
    """An opened encoder. `mark` and `prompt` may be called from any thread, `look` from the engine's alone."""

    def __init__(self, model: Model, path: str, *, threads: int, batch_tokens: int, on_cpu: bool) -> None:
        """Open the encoder at `path` for `model`. Raises LoadFailed."""
        # Nobody who writes a prompt may guess it: a text with the mark in it would have an image too many.
        self._mark = f"<__media_{secrets.token_hex(16)}__>"
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = not on_cpu
        params.print_timings = False
        params.warmup = False
        params.n_threads = threads
        params.media_marker = self._mark.encode()
        self._batch_tokens = batch_tokens
        errors.clear()
        self._handle = mtmd.mtmd_init_from_file(path.encode(), model.handle, params)
        if not self._handle:
            reason = errors[0] if errors else "no reason given"
            raise LoadFailed(f"llama.cpp cannot open {path} (mmproj): {reason}")
        if not mtmd.mtmd_support_vision(self._handle):
            self.close()
            raise LoadFailed(f"{path} (mmproj) has no encoder of images.")

    def close(self) -> None:
        mtmd.mtmd_free(self._handle)

    def mark(self, messages: Iterable[Message]) -> tuple[list[Message], list[bytes]]:
        """The messages with a mark in place of each image, and the images."""
        marked, images = [], []
        for message in messages:
            if not isinstance(message.content, str):
                images += [part.data for part in message.content if isinstance(part, ImagePart)]
                parts = tuple(TextPart(self._mark) if isinstance(part, ImagePart) else part for part in message.content)
                message = msgspec.structs.replace(message, content=parts)
            marked.append(message)
        return marked, images

    def prompt(self, text: str, images: Sequence[bytes], *, add_special: bool) -> tuple[list[int], Pictures]:
        """The token ids of a text with marks, and its pictures. Raises CallerError."""
        if text.count(self._mark) != len(images):
            raise Unsupported("This model's chat template leaves out images.", param="messages")
        with ExitStack() as bitmaps:
            handles = (mtmd.mtmd_bitmap_p_ctypes * len(images))()
            for number, image in enumerate(images):
                handles[number] = self._bitmap(image)
                bitmaps.callback(mtmd.mtmd_bitmap_free, handles[number])
            data = text.encode("utf-8", errors="replace")
            given = mtmd.mtmd_input_text()
            given.text, given.text_len = data, len(data)
            given.add_special, given.parse_special = add_special, True
            chunks = mtmd.mtmd_input_chunks_init()
            code = mtmd.mtmd_tokenize(self._handle, chunks, ctypes.byref(given), handles, len(images))
        if code != 0:
            mtmd.mtmd_input_chunks_free(chunks)
            raise CallerError("The images cannot be made what this model takes.", param="messages")
        tokens, pictures = self._laid_out(chunks)
        found = Pictures(chunks, pictures)
        for picture in pictures:
            self._check(picture)
        if tokens and tokens[-1] < 0:  # what follows an image is drawn from a text's logits, so there must be one
            raise CallerError("The prompt ends with an image; say something about it.", param="messages")
        return tokens, found

    def look(self, picture: Picture, context: Context, sequence: int) -> None:
        """Encode a picture and put it into the KV cache. Raises EngineFault."""
        reached = native.llama_pos(picture.start)
        code = mtmd.mtmd_helper_eval_chunk_single(
            self._handle,
            context.handle,
            picture.chunk,
            picture.start,
            sequence,
            self._batch_tokens,
            False,
            ctypes.byref(reached),
        )
        if code != 0:
            raise EngineFault(f"llama.cpp could not look at an image (code {code}).")

    def _bitmap(self, image: bytes) -> int:
        data = (ctypes.c_uint8 * len(image)).from_buffer_copy(image)
        bitmap: int | None = mtmd.mtmd_helper_bitmap_init_from_buf(self._handle, data, len(image), False)
        if not bitmap:
            raise CallerError("An image cannot be decoded: PNG, JPEG, GIF and BMP are known here.", param="messages")
        return bitmap

    @staticmethod
    def _laid_out(chunks: int) -> tuple[list[int], list[Picture]]:
        tokens: list[int] = []
        pictures: list[Picture] = []
        seen = Counter[str]()
        for number in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, number)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t()
                ids = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                tokens += ids[: count.value]
                continue
            name = mtmd.mtmd_input_chunk_get_id(chunk).decode()  # the image's SHA-256
            start, size = len(tokens), int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
            tokens += [_stand_in(name, seen[name])] * size
            seen[name] += 1
            pictures.append(Picture(start, start + size, int(mtmd.mtmd_input_chunk_get_n_tokens(chunk)), chunk))
        return tokens, pictures

    def _check(self, picture: Picture) -> None:
        """Raises Unsupported for what llama.cpp would end the process for: some models see all of an image at once, and
        then it must be in one batch."""
        if picture.cells > self._batch_tokens and mtmd.mtmd_decode_use_non_causal(self._handle, picture.chunk):
            message = f"An image has {picture.cells} tokens; {self._batch_tokens} are the most."
            raise Unsupported(message, param="messages")


def _stand_in(name: str, number: int) -> int:
    """What stands for part `number` of an image in a prompt: below all token ids."""
    return -1 - int.from_bytes(hashlib.sha256(f"{name}/{number}".encode()).digest()[:7], "big")
