"""A model's tokenizer: text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from backends.mlx.folder import read_tokenizer
from backends.mlx.pieces import Pieces
from backends.types import CallerError, LoadFailed


class Words:
    """Used from the prepare thread and from the engine's; its methods change nothing."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        """`vocabulary`: how many tokens the model has rows for, 0 if its configuration does not say. Raises
        LoadFailed."""
        self.pieces = Pieces(read_tokenizer(folder))
        self.size = max(vocabulary, self.pieces.size)
        try:
            self._parsing = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise LoadFailed(f"tokenizer.json cannot be read: {error}") from error
        self._plain.encode_special_tokens = True

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `parse_special`: the text of a special token stands for it."""
        tokenizer = self._parsing if parse_special else self._plain
        # Half a surrogate pair, which JSON can carry, is no text.
        safe = text.encode("utf-8", "replace").decode()
        return list(tokenizer.encode(safe, add_special_tokens=add_special).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`. Raises CallerError for an id that is none."""
        self.check_tokens(tokens, "tokens")
        return str(self._parsing.decode(list(tokens)))

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises CallerError, naming `param`, for an id that is none."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise CallerError(f"{token} is no token of this model; it has {self.size}.", param=param)
