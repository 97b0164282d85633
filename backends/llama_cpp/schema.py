"""A JSON schema as GBNF: llama-cpp-python's converter, with bounded repetitions.

The converter writes `x{0,3}` out as `(x (x (x)?)?)?`. That takes as much memory and time as a client asks for
(`"maxLength": 1000000000` never ends), and nests so deeply that a `maxLength` of some hundreds is refused later on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llama_cpp import llama_grammar

from backends.types import CallerError

MAX_REPETITIONS = 2000
"""llama.cpp's own limit (llama-grammar.cpp, MAX_REPETITION_THRESHOLD); beyond it an upper bound is silently lost."""


@lru_cache(maxsize=64)
def schema_grammar(schema: str) -> str:
    """The GBNF for a JSON schema; cached, since clients repeat theirs with every request.

    Raises CallerError, naming `response_format`.
    """
    try:
        converted: Any = llama_grammar.json_schema_to_gbnf(schema)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError) as error:
        reason = str(error) if isinstance(error, (ValueError, AssertionError)) else "it is malformed or unsupported"
        raise CallerError(f"This JSON schema cannot be used: {reason}.", param="response_format") from error
    return str(converted)


def _repetition(
    item_rule: str,
    min_items: int,
    max_items: int | None,
    separator_rule: str | None = None,
    item_rule_is_literal: bool = False,
) -> str:
    """Stands in for the converter's function of the same arguments; a literal is a single item to `{m,n}` too."""
    for bound in (min_items, max_items):
        if bound is not None and (type(bound) is not int or not 0 <= bound <= MAX_REPETITIONS):
            raise ValueError(f"a length or count must be an integer from 0 to {MAX_REPETITIONS}, not {bound!r:.50}")
    if max_items is not None and max_items < min_items:
        raise ValueError(f"at least {min_items} and at most {max_items} exclude each other")
    if max_items == 0:
        return '""'
    if not separator_rule:
        return f"{item_rule}{_bounds(min_items, max_items)}"
    more = f"({separator_rule} {item_rule}){_bounds(max(min_items - 1, 0), max_items and max_items - 1)}"
    return f"{item_rule} {more}" if min_items else f"({item_rule} {more})?"


def _bounds(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


# In the module of a version that is pinned (see LlamaCppBackend.requirements).
llama_grammar._build_repetition = _repetition
