"""The admin in a real browser: log in, open every list and a page of each, and find nothing broken."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.urls import reverse
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response, async_playwright, expect
from pytest_django.live_server_helper import LiveServer

from jobs.models import Session, SessionState
from tests import factories

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PASSWORD = "a long enough password"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        await started.close()


class Watched:
    """A page that remembers whatever a careful operator would call broken."""

    def __init__(self, page: Page, *, screenshots: Path) -> None:
        self.page = page
        self.screenshots = screenshots
        self.problems: list[str] = []
        page.on("console", self._console)
        page.on("response", self._response)
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("requestfailed", self._not_loaded)

    def _not_loaded(self, request: Request) -> None:
        # The browser itself gives up what it was still loading when a page is left.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"not loaded: {request.url} ({request.failure})")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text} at {self.page.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")

    async def open(self, address: str, *, name: str) -> None:
        await self.page.goto(address, wait_until="networkidle")
        await self.page.screenshot(path=self.screenshots / f"{name}.png", full_page=True)
        # What does not fit is cut off or hides behind a scroll bar of the whole page.
        wide = await self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        if wide:
            self.problems.append(f"wider than the window: {address}")


@pytest.fixture
async def watched(browser: Browser, live_server: LiveServer, tmp_path: Path) -> Watched:
    await sync_to_async(factories.make_world)()
    await sync_to_async(get_user_model().objects.create_superuser)("operator", password=PASSWORD)
    page = await browser.new_page(base_url=live_server.url, viewport={"width": 1440, "height": 900})
    directory = Path(os.environ.get("SCREENSHOTS_DIR", tmp_path))
    directory.mkdir(parents=True, exist_ok=True)
    watched = Watched(page, screenshots=directory)
    await watched.open("/admin/", name="login")
    await page.fill("input[name=username]", "operator")
    await page.fill("input[name=password]", PASSWORD)
    await page.press("input[name=password]", "Enter")
    await page.wait_for_url("**/admin/")
    return watched


async def test_every_page_opens_without_a_problem(watched: Watched) -> None:
    await watched.open("/admin/", name="overview")
    for model in admin.site._registry:
        label = f"{model._meta.app_label}_{model._meta.model_name}"
        await watched.open(reverse(f"admin:{label}_changelist"), name=f"{label}-list")
        first = await sync_to_async(model._default_manager.first)()
        if first is not None:
            await watched.open(reverse(f"admin:{label}_change", args=[first.pk]), name=f"{label}-page")
    assert watched.problems == []


async def test_operator_closes_a_session_from_its_page(watched: Watched) -> None:
    session = await sync_to_async(Session.objects.latest)("pk")
    page = watched.page
    await page.goto(reverse("admin:jobs_session_change", args=[session.pk]))
    await page.get_by_text("Close session now").first.click()
    await page.get_by_role("button", name="Close session", exact=True).click()
    await expect(page.get_by_text("Closed; what is still owed is being claimed.")).to_be_visible()
    await sync_to_async(session.refresh_from_db)()
    assert session.state == SessionState.CLOSING
    assert watched.problems == []


async def test_failed_checkpoints_are_one_click_from_the_front_page(watched: Watched) -> None:
    await watched.page.goto("/admin/")
    await watched.page.get_by_role("link", name="An operator should look at these.").first.click()
    await expect(watched.page.locator("#result_list tbody tr")).to_have_count(1)
    await expect(watched.page.get_by_text("failed", exact=True).first).to_be_visible()
    assert watched.problems == []
