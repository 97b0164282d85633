"""The parts of the mlx backend that need none of MLX's libraries; what does is in tests/conformance."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.chat.jobs import AnswerJob
from backends.chat.template import ChatTemplate
from backends.mlx import backend
from backends.mlx.folder import read_folder, read_tokenizer
from backends.mlx.jobs import GenerationJob, Preparer
from backends.mlx.orders import Fill, Forget, Insert, Order, Remove, Step, decode_order, encode_order
from backends.mlx.pieces import Pieces
from backends.mlx.prefixes import Found, Prefixes
from backends.mlx.recipe import recipe
from backends.mlx.settings import read_settings
from backends.process import LogRing, open_worker
from backends.types import (
    CallerError,
    Capability,
    ChatRequest,
    CompletionRequest,
    ContextOverflow,
    EmbeddingRequest,
    ImagePart,
    LoadFailed,
    LoadSpec,
    Message,
    OutOfMemory,
    Sampling,
    TokenIds,
    TokenizeRequest,
    Tool,
    ToolChoice,
    Unsupported,
)
from tests.conformance.engines import ask, ask_all
from tests.support.mlxmodels import write_tiny_llama


def test_mlx_is_there() -> None:
    """Its engine is tried in tests/conformance, where it is installed."""
    if reason := backend.unavailable():
        pytest.skip(f"NOTHING OF MLX IS TESTED: {reason}")


# -- the folder --


def change(folder: Path, name: str, **values: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_a_folder(tmp_path: Path) -> None:
    folder = read_folder(str(write_tiny_llama(tmp_path)))
    assert (folder.family, folder.dtype, folder.embeds) == ("llama", "float32", True)
    assert folder.end_tokens == (258,)
    assert (folder.bos, folder.eos) == ("", "<|im_end|>")
    assert folder.template
    assert "<|im_start|>" in folder.template
    assert folder.weights_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_template_in_a_file_of_its_own_or_among_several(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    change(folder, "tokenizer_config.json", chat_template=several)
    assert read_folder(str(folder)).template == "d"
    (folder / "chat_template.jinja").write_text("j")
    assert read_folder(str(folder)).template == "j"


def test_end_tokens_of_both_files(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 258, true, "x"]}')
    assert read_folder(str(folder)).end_tokens == (258, 256)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    write_tiny_llama(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LoadFailed, match=name.replace("model.", "model.*")):
        backend.needs(LoadSpec(name="m", path=str(tmp_path)))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\x00", '{"model_type": "llama"', "[" * 100_000])
def test_a_broken_configuration(tmp_path: Path, content: str) -> None:
    write_tiny_llama(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(LoadFailed, match=r"config\.json"):
        backend.needs(LoadSpec(name="m", path=str(tmp_path)))


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    change(write_tiny_llama(tmp_path), "config.json", model_file="model.py")
    with pytest.raises(LoadFailed, match="Python code"):
        read_folder(str(tmp_path))


def test_no_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "nothing", tmp_path / "m.gguf"):
        with pytest.raises(LoadFailed, match="is no folder"):
            backend.needs(LoadSpec(name="m", path=str(path)))
    with pytest.raises(LoadFailed, match="names no folder"):
        backend.needs(LoadSpec(name="m"))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [({"dtype": "f8"}, "dtype"), ({"prompt_tokens": 1}, "prompt_tokens"), ({"cache_type": "f16"}, "cache_type")],
)
def test_a_mistake_in_the_engine_table(tmp_path: Path, table: dict[str, Any], complaint: str) -> None:
    load = LoadSpec(name="m", path=str(write_tiny_llama(tmp_path)), engine=table)
    with pytest.raises(LoadFailed, match=rf"`engine:` table of an mlx model is wrong: .*{complaint}"):
        backend.needs(load)


# -- what it will need --


def test_needs(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    needs = backend.needs(LoadSpec(name="m", path=str(tmp_path)))
    assert (needs.context_tokens, needs.slots) == (2048, 8)
    assert needs.capabilities == (
        Capability.CHAT,
        Capability.COMPLETION,
        Capability.EMBEDDING,
        Capability.TOKENIZE,
    )
    more = backend.needs(LoadSpec(name="m", path=str(tmp_path), slots=16))
    half = backend.needs(LoadSpec(name="m", path=str(tmp_path), engine={"dtype": "float16"}))
    assert half.memory_bytes < needs.memory_bytes < more.memory_bytes
    with pytest.raises(OutOfMemory, match="memory budget"):
        backend.needs(LoadSpec(name="m", path=str(tmp_path), memory_bytes=1 << 20))


def test_a_family_whose_hidden_states_are_not_to_be_had_does_not_embed(tmp_path: Path) -> None:
    change(write_tiny_llama(tmp_path), "config.json", model_type="mamba")
    assert Capability.EMBEDDING not in backend.needs(LoadSpec(name="m", path=str(tmp_path))).capabilities


# -- tokens and their bytes --


def test_pieces_of_bytes_as_letters(tmp_path: Path) -> None:
    pieces = Pieces(read_tokenizer(write_tiny_llama(tmp_path)))
    assert [pieces[byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert (pieces[257], pieces[9999], pieces.size) == (b"", b"", 259)


def test_pieces_of_sentences() -> None:
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    words = {"\u2581the": 0, "<0xE4>": 1, "ä": 2, "a\u2581b": 3}
    added = [{"id": 4, "content": "<tool_call>", "special": False}, {"id": 5, "content": "</s>", "special": True}]
    pieces = Pieces({"model": {"vocab": words}, "decoder": decoder, "added_tokens": added})
    assert [pieces[token] for token in range(6)] == [b" the", b"\xe4", "ä".encode(), b"a b", b"<tool_call>", b""]
    scored = Pieces({"model": {"vocab": [["\u2581x", -1.0], ["y", -2.0]]}, "decoder": None})
    assert (scored[0], scored[1], scored.size) == (b" x", b"y", 2)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": {"vocab": 7}}, {"model": {"vocab": {"a": "x"}}}])
def test_a_tokenizer_that_is_none(content: dict[str, Any]) -> None:
    with pytest.raises(LoadFailed, match="not understood"):
        Pieces(content)


# -- kept caches --


def test_the_longest_common_beginning_wins_and_the_last_token_is_left_over() -> None:
    prefixes = Prefixes(100)
    assert prefixes.find([1, 2, 3], lambda entry: True) is None
    assert prefixes.keep(1, [1, 2, 3], can_cut=True) == []
    assert prefixes.keep(2, [1, 9], can_cut=True) == []
    assert prefixes.find([1, 2, 3, 4], lambda entry: True) == Found(1, 3)
    assert prefixes.find([1, 2, 3], lambda entry: True) == Found(1, 2)
    assert prefixes.find([1, 9, 9], lambda entry: False) == Found(2, 2)
    assert prefixes.find([1, 2, 5], lambda entry: False) is None
    assert prefixes.find([7], lambda entry: True) is None


def test_what_is_a_prefix_of_the_new_one_goes_unless_the_new_one_cannot_be_cut() -> None:
    prefixes = Prefixes(100)
    prefixes.keep(1, [1, 2], can_cut=True)
    assert prefixes.keep(2, [1, 2, 3], can_cut=False) == []
    assert sorted(prefixes.keep(3, [1, 2, 3, 4], can_cut=True)) == [1, 2]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), max_size=20))
def test_the_limit_holds_and_the_newest_stays(sequences: list[list[int]]) -> None:
    prefixes = Prefixes(25)
    alive: dict[int, list[int]] = {}
    for tokens in sequences:
        entry = prefixes.new()
        gone = prefixes.keep(entry, tokens, can_cut=True)
        alive[entry] = tokens
        for other in gone:
            del alive[other]
        assert entry in alive
        assert len(alive) == 1 or sum(map(len, alive.values())) <= 25
        found = prefixes.find([*tokens, 9], lambda entry: True)  # in another cache, perhaps
        assert found is not None
        assert found.tokens == len(tokens)


# -- requests --


class Letters:
    """A vocabulary of one token a character."""

    size = 1000

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [*([1] if add_special else []), *map(ord, text)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        for token in tokens:
            if not 0 <= token < self.size:
                raise CallerError("no token", param=param)


def preparer(*, template: bool = True, embeds: bool = True) -> Preparer:
    source = "{{ messages[0]['content'] }}"
    return Preparer(
        Letters(),
        ChatTemplate(source, bos="", eos="") if template else None,
        bos="",
        end_tokens=(2, 3),
        embeds=embeds,
        context_tokens=50,
    )


def turn(text: str, **fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=(Message(role="user", content=text),), **fields)


def test_a_chat_becomes_a_job() -> None:
    job = preparer().prepare(7, turn("abc", n=2, first_choice=1, max_tokens=5, stop=("x",), ignore_eos=True))
    assert isinstance(job, GenerationJob)
    assert (job.call, job.prompt, job.limit, job.stop) == (7, [1, 97, 98, 99], 5, ("x",))
    assert len(job.recipes) == 2
    assert job.recipes[0].seed != job.recipes[1].seed
    assert job.recipes[0].bias == {2: -float("inf"), 3: -float("inf")}


def test_an_answer_may_fill_the_context_and_no_more() -> None:
    for asked in (None, 1000):
        job = preparer().prepare(1, turn("abc", max_tokens=asked))
        assert isinstance(job, GenerationJob)
        assert job.limit == 46
    with pytest.raises(ContextOverflow):
        preparer().prepare(1, turn("a" * 49))


def test_tokenizing() -> None:
    job = preparer().prepare(1, TokenizeRequest(model="m", content="ab", add_special=True))
    assert job == AnswerJob(1, TokenIds((1, 97, 98)))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (turn("a", grammar="root ::= x"), "grammar"),
        (turn("a", json_schema={}), "response_format"),
        (turn("a", tools=(Tool(name="f"),), tool_choice=ToolChoice(mode="required")), "tools"),
        (turn("a", sampling=Sampling(mirostat=2)), "mirostat"),
        (CompletionRequest(model="m", prompt="a", suffix="b"), "suffix"),
        (
            ChatRequest(
                model="m", messages=(Message(role="user", content=(ImagePart(data=b"", media_type="image/png"),)),)
            ),
            "messages[0].content[0]",
        ),
    ],
)
def test_what_it_cannot_do(request_: ChatRequest | CompletionRequest, param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        preparer().prepare(1, request_)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "request_",
    [
        turn("a", resume=(5,), n=2),
        turn("a", resume=(-1,)),
        turn("a", sampling=Sampling(logit_bias={5000: 1.0})),
        CompletionRequest(model="m", prompt=()),
        CompletionRequest(model="m", prompt=(5000,)),
        EmbeddingRequest(model="m", inputs=((),)),
        EmbeddingRequest(model="m", inputs=("a" * 60,)),
    ],
)
def test_what_is_the_callers_fault(request_: Any) -> None:
    with pytest.raises(CallerError):
        preparer().prepare(1, request_)


def test_a_model_without_a_template_or_vectors() -> None:
    with pytest.raises(Unsupported, match="chat template"):
        preparer(template=False).prepare(1, turn("a"))
    with pytest.raises(Unsupported, match="embed"):
        preparer(embeds=False).prepare(1, EmbeddingRequest(model="m", inputs=("a",)))


# -- how tokens are drawn --


def test_defaults_are_llama_cpps() -> None:
    told = recipe(Sampling(), seed=1, choice=0, banned=())
    assert (told.temperature, told.top_k, told.top_p, told.min_p, told.window) == (0.8, 40, 0.95, 0.05, 0)
    assert recipe(Sampling(repeat_penalty=1.1), seed=1, choice=0, banned=()).window == 64
    assert recipe(Sampling(repeat_penalty=1.1, repeat_last_n=0), seed=1, choice=0, banned=()).window == 0
    assert recipe(Sampling(presence_penalty=1.0, repeat_last_n=-1), seed=1, choice=0, banned=()).window > 1 << 20


def test_a_draw_depends_on_seed_choice_and_position() -> None:
    seeds = {
        recipe(Sampling(), seed=seed, choice=choice, banned=()).draw_seed(position)
        for seed in (1, 2)
        for choice in (0, 1)
        for position in (0, 1)
    }
    assert len(seeds) == 8


def test_orders_come_through_as_they_are() -> None:
    told = recipe(Sampling(logit_bias={5: -100.0}), seed=1, choice=0, banned=(2,))
    orders: list[Order] = [
        Insert(
            number=3,
            tokens=[1, 2],
            prompt=2,
            entry=0,
            kept=0,
            limit=5,
            recipe=told,
            position=0,
            wants_rows=True,
            exact=False,
        ),
        Remove(3, 4, 1),
        Step(),
        Fill(4, [1, 2], hidden=True),
        Forget([4]),
    ]
    assert [decode_order(encode_order(order)) for order in orders] == orders


def test_settings() -> None:
    assert read_settings({}).dtype is None


# -- with the libraries --


def on_mlx(script: str) -> str:
    """What a script prints on the interpreter of the workers."""
    if reason := backend.unavailable():
        pytest.skip(f"NOTHING OF MLX IS TESTED: {reason}")
    command = [backend.command()[0], "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_truncation() -> None:
    """What is left of the chances 0.5, 0.3, 0.15, 0.05, mixed up."""
    cases = {
        "top_k=2": [1, 3],
        "top_k=9": [0, 1, 2, 3],
        "top_p=0.79": [1, 3],
        "top_p=0.81": [0, 1, 3],
        "top_p=0.0001": [1],
        "min_p=0.25": [0, 1, 3],
        "min_p=1.0": [1],
        "typical_p=0.2": [3],
        "typical_p=0.5": [1, 3],
        "top_k=3, top_p=0.6": [1, 3],
    }
    calls = ", ".join(f"Recipe(temperature=1.0, {case})" for case in cases)
    printed = on_mlx(
        "import math, mlx.core as mx\n"
        "from backends.mlx.drawing import truncated\nfrom backends.mlx.recipe import Recipe\n"
        "chances = mx.log(mx.array([[0.15, 0.5, 0.05, 0.3]]))\n"
        f"for told in [{calls}]:\n"
        "    left = truncated(chances, told).tolist()[0]\n"
        "    print([token for token, value in enumerate(left) if value > -math.inf])\n"
    )
    assert printed.splitlines() == [str(left) for left in cases.values()]


def test_penalties_and_bias_and_the_rows_that_know_nothing_of_them() -> None:
    printed = on_mlx(
        "import mlx.core as mx\n"
        "from backends.mlx.drawing import Drawer\nfrom backends.mlx.recipe import Recipe\n"
        "told = Recipe(temperature=0.0, repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, window=3,\n"
        "              bias={3: 1.5})\n"
        "drawer = Drawer(told, position=0, wants_rows=True)\n"
        "logits = mx.array([[4.0, -4.0, 1.0, 1.0]])\n"
        "[process] = drawer.processors\n"
        "print(process(mx.array([2, 0, 0, 1]), logits).tolist()[0])\n"
        "print([round(value, 3) for value in drawer.rows[0].tolist()])\n"
    )
    # 0 twice in the window: 4 / 2 - 2 * 0.5 - 0.25; 1 once: -4 * 2 - 0.5 - 0.25; 2 is out of it.
    assert printed.splitlines() == ["[0.75, -8.75, 1.0, 2.5]", "[-0.095, -8.095, -3.095, -3.095]"]


async def test_the_deterministic_mode_is_the_same_alone_together_and_resumed(tmp_path: Path) -> None:
    if reason := backend.unavailable():
        pytest.skip(f"NOTHING OF MLX IS TESTED: {reason}")
    load = LoadSpec(name="m", path=str(write_tiny_llama(tmp_path)), slots=3, context_tokens=256, deterministic=True)
    requests = [turn(f"{number} " * 9, max_tokens=9, sampling=Sampling(temperature=0.0)) for number in range(5)]
    async with open_worker(backend, load, log=LogRing()) as worker:
        alone = [await ask(worker, request) for request in requests]
        together = await ask_all(worker, list(requests))
        assert [answer.tokens() for answer in together] == [answer.tokens() for answer in alone]
        whole = alone[1].tokens()
        for cut in (1, 5, 9):
            resumed = msgspec.structs.replace(requests[1], resume=tuple(whole[:cut]))
            assert (await ask(worker, resumed)).tokens() == whole[cut:]
        scored = CompletionRequest(model="m", prompt="abc", echo=True, logprobs=1, n=2, max_tokens=2)
        assert (await ask(worker, scored)).text(1).startswith("abc")


async def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    if reason := backend.unavailable():
        pytest.skip(f"NOTHING OF MLX IS TESTED: {reason}")
    change(write_tiny_llama(tmp_path), "config.json", num_hidden_layers=3)
    with pytest.raises(LoadFailed, match="MLX cannot open the model"):
        async with open_worker(backend, LoadSpec(name="m", path=str(tmp_path)), log=LogRing()):
            pass


# -- ranks --


def test_ranks_share_what_a_model_needs(tmp_path: Path) -> None:
    load = LoadSpec(name="m", path=str(write_tiny_llama(tmp_path)), slots=2, context_tokens=2048)
    whole, half = backend.needs(load), backend.rank_needs(load, 2)
    third = backend.rank_needs(load, 3)
    assert whole.memory_bytes > half.memory_bytes > third.memory_bytes
    assert (third.slots, third.context_tokens) == (2, 2048)
    folder = read_folder(load.path)
    spared = 2 * (folder.weights_bytes - folder.replicated_bytes) // 3
    assert spared <= whole.memory_bytes - third.memory_bytes
    with pytest.raises(LoadFailed, match="do not divide by 4"):
        backend.rank_needs(load, 4)


def test_a_quantised_model_has_less_that_every_rank_must_hold(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    plain = read_folder(str(tmp_path)).replicated_bytes
    change(tmp_path, "config.json", quantization={"bits": 4, "group_size": 64})
    assert 0 < read_folder(str(tmp_path)).replicated_bytes < plain / 4
