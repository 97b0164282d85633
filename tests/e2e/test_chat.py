"""The page Chat: an answer streams and names its node, is stopped, survives what happens, and stays text."""

from __future__ import annotations

import base64

from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect

from tests.e2e.browser import open_page
from tests.support.nodes import Swarm

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def say(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Message")
    box.fill(text)
    box.press("Enter")


def answer(page: Page) -> Locator:
    """The last one."""
    return page.get_by_role("article", name="Answer").last


def choose(page: Page, *, model: str = "", node: str = "") -> None:
    if model:
        page.get_by_role("combobox", name="Model").select_option(model)
    if node:
        page.get_by_role("combobox", name="Node").select_option(node)


def test_a_chat_streams_and_names_its_node(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/chat?model=far") as page:
        say(page, "Hello <b>there</b>")
        expect(page.get_by_role("article", name="You")).to_have_text("Hello <b>there</b>")
        expect(answer(page).locator(".markdown")).not_to_be_empty()
        expect(page.get_by_role("button", name="Stop")).to_be_visible()  # there is text, and it is not the end
        expect(answer(page).locator("footer")).to_contain_text("bravo")
        expect(answer(page).locator("footer")).to_contain_text("60 tokens")
        expect(answer(page).locator("footer")).to_contain_text("tok/s")
        expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
        text = answer(page).locator(".markdown").inner_text()
        page.reload()  # kept, by this browser alone
        expect(answer(page).locator(".markdown")).to_have_text(text)
        page.get_by_role("button", name="Delete the conversation").click()
        expect(page.get_by_role("article")).to_have_count(0)
        assert page.evaluate("localStorage.length") == 0


def test_an_answer_is_stopped_and_made_again(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/chat?model=long") as page:
        say(page, "Hello")
        expect(answer(page).locator(".markdown")).not_to_be_empty()
        page.get_by_role("button", name="Stop").click()
        expect(answer(page).locator("footer")).to_contain_text("stopped")
        page.get_by_role("spinbutton", name="Most tokens").fill("3")
        page.get_by_role("button", name="Answer again").click()
        expect(answer(page).locator("footer")).to_contain_text("cut at the limit")
        expect(page.get_by_role("article")).to_have_count(2)


def test_the_chosen_node_answers_with_the_settings(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/chat?model=fake") as page:
        choose(page, node="charlie")
        page.get_by_role("textbox", name="System prompt").fill("Be brief.")
        page.get_by_role("spinbutton", name="Temperature").fill("0")
        with page.expect_request("**/v1/chat/completions") as sent:
            say(page, "Hello")
        assert sent.value.headers["x-mesh-node"] == "charlie"
        body = sent.value.post_data_json
        assert body is not None
        assert (body["temperature"], body["messages"][0]) == (0, {"role": "system", "content": "Be brief."})
        expect(answer(page).locator("footer")).to_contain_text("charlie")


def test_a_node_that_vanishes_in_an_answer_is_told(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/chat?model=long") as page:
        choose(page, node="charlie")
        say(page, "Hello")
        expect(answer(page).locator(".markdown")).not_to_be_empty()
        three.kill("charlie")  # nobody else may answer
        expect(answer(page).get_by_role("alert")).to_be_visible()
        expect(page.get_by_role("combobox", name="Node")).to_contain_text("charlie (not there now)")
        choose(page, node="bravo")
        page.get_by_role("spinbutton", name="Most tokens").fill("9")
        page.get_by_role("button", name="Try again").click()
        expect(answer(page).locator("footer")).to_contain_text("bravo")
        expect(answer(page).get_by_role("alert")).to_have_count(0)


def test_what_a_model_says_is_never_markup(browser: Browser, three: Swarm) -> None:
    says = (
        "<img src=x onerror=pwned=1><script>pwned=1</script>\n\n[x](javascript:pwned=1) ![p](/api/mesh) "
        "**bold** [home](https://example.org/)"
    )

    def model(route: Route) -> None:
        chunk = {"choices": [{"index": 0, "delta": {"content": says}, "finish_reason": "stop"}]}
        events = f"data: {page.evaluate('JSON.stringify', chunk)}\n\ndata: [DONE]\n\n"
        headers = {"Content-Type": "text/event-stream", "X-Mesh-Node": "<b>evil</b>"}
        route.fulfill(headers=headers, body=events)

    with open_page(browser, three["alpha"], "#/chat") as page:
        page.route("**/v1/chat/completions", model)
        say(page, "Hello")
        expect(answer(page).locator("strong").first).to_have_text("bold")
        expect(answer(page)).to_contain_text("<script>pwned=1</script>")
        expect(answer(page).locator("footer")).to_contain_text("<b>evil</b>")
        assert page.evaluate("typeof pwned") == "undefined"
        assert answer(page).locator("img, script, iframe").count() == 0
        [link] = answer(page).get_by_role("link").all()
        assert link.get_attribute("href") == "https://example.org/"
        assert "noopener" in (link.get_attribute("rel") or "")


def test_an_error_in_the_stream_and_before_it(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/chat?model=far") as page:
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                headers={"Content-Type": "text/event-stream"},
                body='data: {"error": {"message": "The engine of model far died."}}\n\ndata: [DONE]\n\n',
            ),
        )
        say(page, "Hello")
        expect(answer(page).get_by_role("alert")).to_have_text("The engine of model far died.")
        page.unroute("**/v1/chat/completions")
        page.get_by_role("spinbutton", name="Most tokens").fill("4")
        choose(page, model="fake")
        page.get_by_role("button", name="Try again").click()
        expect(answer(page).locator(".markdown")).not_to_be_empty()
        expect(page.get_by_role("button", name="Image")).to_have_count(0)  # that model does not see


def test_an_image_goes_to_a_model_that_sees(browser: Browser, three: Swarm) -> None:
    def seeing(route: Route) -> None:
        answer = route.fetch()
        told = answer.json()
        for node in told["nodes"]:
            for model in node["models"]:
                model["capabilities"].append("vision")
        route.fulfill(response=answer, json=told)

    with open_page(browser, three["alpha"], "#/swarm") as page:
        page.route("**/api/mesh", seeing)
        page.reload()
        page.goto("/#/chat?model=far")
        picture = base64.b64decode(PIXEL)
        page.locator("input[type=file]").set_input_files(
            [
                FilePayload(name="dot.png", mimeType="image/png", buffer=picture),
                FilePayload(name="page.html", mimeType="text/html", buffer=b"<script>pwned=1</script>"),
            ]
        )
        expect(page.get_by_text("page.html is no image")).to_be_visible()
        expect(page.get_by_role("img", name="Image 1")).to_be_visible()
        with page.expect_request("**/v1/chat/completions") as sent:
            say(page, "What is it?")
        body = sent.value.post_data_json
        assert body is not None
        url = {"url": f"data:image/png;base64,{PIXEL}"}
        parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": url}]
        assert body["messages"][-1]["content"] == parts
        expect(answer(page).get_by_role("alert")).to_be_visible()  # the fake engine sees nothing, and says so
        assert PIXEL not in page.evaluate("JSON.stringify(localStorage)")
