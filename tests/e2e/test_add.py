"""The page Add: the token is shown when it is asked for, copied, and drawn."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.e2e.browser import open_page
from tests.support.nodes import Swarm


def test_the_token_is_hidden_until_asked_for_and_then_copied(browser: Browser, three: Swarm) -> None:
    token = three.token
    permissions = ["clipboard-read", "clipboard-write"]
    with open_page(browser, three["alpha"], "#/add", permissions=permissions) as page:
        expect(page.get_by_role("heading", name="Join token")).to_be_visible()
        assert token not in page.content()
        page.get_by_role("button", name="Show token").click()
        card = page.locator(".card").filter(has=page.get_by_role("heading", name="Join token"))
        card.get_by_role("button", name="Copy").click()
        expect(card.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == token
        picture = page.get_by_role("img", name="QR code")
        expect(picture).to_be_visible()
        assert picture.evaluate("(image) => image.naturalWidth") > 0
        page.get_by_role("button", name="Hide token").click()
        assert token not in page.content()


def test_commands_for_each_system(browser: Browser, three: Swarm) -> None:
    token = three.token
    with open_page(browser, three["alpha"], "#/add") as page:
        expect(page.locator(".steps")).to_contain_text("apt-get install")
        page.get_by_role("button", name="macOS").click()
        expect(page.locator(".steps")).to_contain_text("xcode-select --install")
        page.get_by_role("button", name="This machine").click()
        page.get_by_role("button", name="Put the token into the commands").click()
        expect(page.locator(".steps")).to_contain_text(f"mesh join {token} --data ./second --port 8081")
