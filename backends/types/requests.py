"""What a node can be asked for. The class of a request is the capability it needs.

All structs are frozen, so a request can be retried or resumed elsewhere exactly as it came.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from backends.types.conversation import ImagePart, Message, Tool, ToolChoice
from backends.types.models import Capability


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. None means: the model's own default, else llama.cpp's.

    Ranges are checked at the edge (api); engines may rely on them.
    """

    temperature: float | None = None  # >= 0; 0 is greedy
    top_k: int | None = None  # <= 0: off
    top_p: float | None = None  # (0, 1]
    min_p: float | None = None  # [0, 1]
    typical_p: float | None = None  # (0, 1]
    repeat_penalty: float | None = None  # 1: off
    repeat_last_n: int | None = None  # window of the penalties in tokens; 0: off, -1: the context
    frequency_penalty: float | None = None  # [-2, 2]
    presence_penalty: float | None = None  # [-2, 2]
    mirostat: int | None = None  # 0: off, 1, 2
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    seed: int | None = None  # None: a random one
    logit_bias: dict[int, float] | None = None  # token id -> [-100, 100]

    def over(self, defaults: Sampling) -> Sampling:
        """These values, and `defaults` where this one has none."""
        return Sampling(
            **{
                field: value if (value := getattr(self, field)) is not None else getattr(defaults, field)
                for field in self.__struct_fields__
            }
        )


class Generation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every text generation shares."""

    model: str
    sampling: Sampling = Sampling()
    max_tokens: int | None = None  # None: until the context is full
    stop: tuple[str, ...] = ()
    n: int = 1  # independent choices of one prompt
    logprobs: int | None = None  # None: off; k >= 0: the chosen token's and the k best
    ignore_eos: bool = False
    grammar: str | None = None  # GBNF
    json_schema: dict[str, Any] | None = None  # {} stands for any JSON object
    resume: tuple[int, ...] = ()  # token ids already emitted; generation continues after them (n must be 1)
    first_choice: int = 0  # index that the first choice would have in the whole call: its draws depend on it
    salt: int | None = None  # the seed where neither the request nor the model names one


class ChatRequest(Generation, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """Answer a conversation, rendered through the model's chat template."""

    messages: tuple[Message, ...]
    template_kwargs: dict[str, Any] = {}
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    continues: bool = False  # the last message is an assistant's, and the answer goes on where it stops


class CompletionRequest(Generation, frozen=True, kw_only=True, omit_defaults=True, tag="completion"):
    """Continue a prompt, given as text or as token ids."""

    prompt: str | tuple[int, ...]
    echo: bool = False  # the prompt's own text (and logprobs) come first
    suffix: str | None = None  # what follows the gap; only for models with tokens for it


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embedding"):
    """One vector for each input, in order."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]


class RankRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="rank"):
    """How well each document answers a query, by a model that was trained to say so: one score for each, in order."""

    model: str
    query: str
    documents: tuple[str, ...]


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="tokenize"):
    """The token ids of a text."""

    model: str
    content: str
    add_special: bool = False
    parse_special: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="detokenize"):
    """The text of token ids."""

    model: str
    tokens: tuple[int, ...]


Request: TypeAlias = (
    ChatRequest | CompletionRequest | EmbeddingRequest | RankRequest | TokenizeRequest | DetokenizeRequest
)

_CAPABILITY: dict[type, Capability] = {
    ChatRequest: Capability.CHAT,
    CompletionRequest: Capability.COMPLETION,
    EmbeddingRequest: Capability.EMBEDDING,
    RankRequest: Capability.RERANK,
    TokenizeRequest: Capability.TOKENIZE,
    DetokenizeRequest: Capability.TOKENIZE,
}

_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_encoder = msgspec.msgpack.Encoder()


def capability_of(request: Request) -> Capability:
    """The capability that `request` asks of a model."""
    return Capability.VISION if sees(request) else _CAPABILITY[type(request)]


def sees(request: Request) -> bool:
    """Whether there are images to be understood."""
    return isinstance(request, ChatRequest) and any(
        isinstance(part, ImagePart)
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content
    )


def encode_request(request: Request) -> bytes:
    """`request` as msgpack."""
    return _encoder.encode(request)


def decode_request(data: bytes) -> Request:
    """The request in `data`. Raises msgspec.ValidationError or msgspec.DecodeError on foreign bytes."""
    return _decoder.decode(data)
