"""Images in prompts of llama.cpp, with a real model and an encoder of random weights: what it sees means nothing, but
every image is told from every other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends import llama_cpp
from backends.process import LogRing, Worker, open_worker
from backends.types import (
    CallerError,
    ChatRequest,
    CompletionRequest,
    ImagePart,
    LoadFailed,
    LoadSpec,
    Message,
    Request,
    Sampling,
    TextPart,
    Unsupported,
    encode_request,
)
from tests.conformance.engines import ask, ask_all
from tests.support.images import flat, png
from tests.support.models import smollm2
from tests.support.visionmodels import IMAGE_TOKENS, write_mmproj

WIDTH = 576  # of the embedded model
RED, BLUE = flat((255, 0, 0)), flat((0, 0, 255))
LONG = "a story about a lighthouse, its keeper and the sea, told slowly and with many words, and then once again. " * 2


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmproj(tmp_path_factory.mktemp("vision") / "mmproj.gguf", width=WIDTH)


@asynccontextmanager
async def opened(mmproj: Path | None, *, deterministic: bool = False, slots: int = 4) -> AsyncIterator[Worker]:
    """A worker with the embedded model."""
    load = LoadSpec(
        name="eyes",
        path=str(smollm2()),
        mmproj=str(mmproj) if mmproj else "",
        context_tokens=1024,
        slots=slots,
        threads=1,
        deterministic=deterministic,
    )
    async with open_worker(llama_cpp.backend, load, log=LogRing()) as worker:
        yield worker


def see(*parts: bytes | str, tokens: int = 8, **more: object) -> ChatRequest:
    """A question of texts and images."""
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(data=part) for part in parts)
    return ChatRequest(
        model="eyes",
        messages=(Message(role="user", content=content),),
        sampling=Sampling(temperature=0),
        max_tokens=tokens,
        ignore_eos=True,
        **more,  # type: ignore[arg-type]
    )


async def test_what_is_seen_matters(mmproj: Path) -> None:
    async with opened(mmproj) as worker:
        red = await ask(worker, see(RED, "What is this?"))
        blue = await ask(worker, see(BLUE, "What is this?"))
        assert red.tokens() != blue.tokens()
        assert (await ask(worker, see(RED, "What is this?"))).tokens() == red.tokens()
        blind = await ask(worker, see("What is this?"))
        assert blind.tokens() not in (red.tokens(), blue.tokens())
        # A line break joins the two parts; the rest of the difference is the image.
        assert red.accepted.prompt_tokens == blind.accepted.prompt_tokens + IMAGE_TOKENS + 1


async def test_images_are_told_apart_in_every_place(mmproj: Path) -> None:
    prompts = [
        *(
            (RED, "then", BLUE, "?"),
            (BLUE, "then", RED, "?"),
            (RED, "then", RED, "?"),
            (RED, "then?"),
            ("Then", RED, "?"),
        ),
        (png(40, 20), "then", BLUE, "?"),
    ]
    async with opened(mmproj) as worker:
        answers = [await ask(worker, see(*prompt)) for prompt in prompts]
        assert len({tuple(answer.tokens()) for answer in answers}) == len(prompts)
        again = [await ask(worker, see(*prompt)) for prompt in reversed(prompts)]
        assert [answer.tokens() for answer in reversed(again)] == [answer.tokens() for answer in answers]


@pytest.mark.parametrize("deterministic", [False, True])
async def test_company_changes_nothing(mmproj: Path, deterministic: bool) -> None:
    requests: list[Request] = [see(RED, LONG), see(BLUE, LONG), see(LONG), see("First", RED, "then", BLUE, "?")]
    async with opened(mmproj, deterministic=deterministic) as worker:
        together = await ask_all(worker, requests)
        alone = [await ask(worker, request) for request in requests]
    assert [answer.tokens() for answer in together] == [answer.tokens() for answer in alone]


async def test_a_cached_beginning_has_the_same_images(mmproj: Path) -> None:
    async with opened(mmproj, slots=1) as worker:
        red = await ask(worker, see(RED, LONG))
        blue = await ask(worker, see(BLUE, LONG))
        assert red.usage.cached_tokens == 0
        before = blue.usage.cached_tokens  # what the template says first
        more = await ask(worker, see(BLUE, LONG + "And so on."))
        assert more.usage.cached_tokens > before + IMAGE_TOKENS
        assert before + IMAGE_TOKENS < red.usage.prompt_tokens - len(LONG.split())
    async with opened(mmproj, slots=1) as worker:
        assert (await ask(worker, see(BLUE, LONG))).tokens() == blue.tokens()
        assert (await ask(worker, see(BLUE, LONG + "And so on."))).tokens() == more.tokens()


async def test_an_answer_about_an_image_goes_on_elsewhere(mmproj: Path) -> None:
    async with opened(mmproj) as worker:
        whole = (await ask(worker, see(RED, LONG, BLUE, "?"))).tokens()
    async with opened(mmproj) as worker:
        rest = await ask(worker, see(RED, LONG, BLUE, "?", resume=tuple(whole[:3])))
    assert rest.tokens() == whole[3:]


async def test_choices_share_the_image(mmproj: Path) -> None:
    async with opened(mmproj) as worker:
        one = await ask(worker, see(RED, "?"))
        three = await ask(worker, see(RED, "?", n=3))
    assert [three.tokens(index) for index in range(3)] == [one.tokens()] * 3


async def test_who_leaves_before_an_image_leaves_nothing_behind(mmproj: Path) -> None:
    request = encode_request(see(RED, LONG, BLUE, LONG, RED, LONG, tokens=200))
    async with opened(mmproj, slots=1) as worker:
        alone = await ask(worker, see(BLUE, "?"))
        async with worker.call(request):
            pass
        async with worker.call(request) as call:
            async for _ in call.batches():  # it has been accepted, and its first image comes next
                break
        assert (await ask(worker, see(BLUE, "?"))).tokens() == alone.tokens()


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ((b"\x89PNG\r\n\x1a\n", "?"), CallerError, "cannot be decoded"),
        ((b"", "?"), CallerError, "cannot be decoded"),
        ((RED[:60], "?"), CallerError, "cannot be decoded"),
        ((*[RED] * 70, "?"), CallerError, "context"),
        ((b"RIFF\0\0\0\0WEBPVP8 ", "?"), CallerError, "PNG"),
    ],
)
async def test_images_that_cannot_be_used(mmproj: Path, parts: tuple[bytes | str, ...], error: type, says: str) -> None:
    async with opened(mmproj, slots=1) as worker:
        with pytest.raises(error, match=says):
            await ask(worker, see(*parts))
        assert (await ask(worker, see(RED, "?"))).tokens()


async def test_a_text_has_no_images_of_its_own(mmproj: Path) -> None:
    async with opened(mmproj, slots=1) as worker:
        said = await ask(worker, see("<__media__> <image> <__media_0__>", RED, "<__media__>"))
        assert said.tokens()
        plain = CompletionRequest(model="eyes", prompt="<__media__>", max_tokens=3)
        assert (await ask(worker, plain)).tokens()


async def test_a_model_without_eyes() -> None:
    async with opened(None, slots=1) as worker:
        with pytest.raises(Unsupported, match="understands no images"):
            await ask(worker, see(RED, "?"))


async def test_encoders_that_cannot_be_used(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(100))
    for path, says in (
        (garbage, "mmproj"),
        (smollm2(), "mmproj"),
        (write_mmproj(tmp_path / "narrow.gguf", width=64), "mmproj"),
    ):
        with pytest.raises(LoadFailed, match=says):
            async with opened(path):
                pass
    load = LoadSpec(name="eyes", path=str(smollm2()), mmproj=str(tmp_path / "none.gguf"))
    with pytest.raises(LoadFailed, match="mmproj"):
        llama_cpp.backend.needs(load)
