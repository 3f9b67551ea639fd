"""The list of chats: found, named, sorted, thrown away and taken back, carried elsewhere."""

import json

import pytest

from tests.page.acts import ask


def act(page, title, action):
    row = page.get_by_role("listitem").filter(has_text=title)
    row.hover()
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name=action, exact=True).click()


@pytest.fixture
def page(opened, request):
    page = opened()
    ask(page, f"whale {request.node.name[-12:]}")
    page.get_by_role("listitem").filter(has_text="whale").first.wait_for()
    return page


def test_a_chat_is_renamed_pinned_and_put_in_a_folder(page):
    row = page.locator("nav li.current")
    row.hover()
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("dialog").locator("input").fill("krill")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="krill").wait_for()
    act(page, "krill", "Pin")
    page.get_by_role("heading", name="Pinned").wait_for()
    act(page, "krill", "Unpin")
    act(page, "krill", "Move to a folder")
    page.get_by_role("dialog").locator("input").fill("deep")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name="deep").wait_for()
    page.reload()
    page.get_by_role("heading", name="deep").wait_for()
    page.get_by_role("link", name="krill").wait_for()


def test_what_was_thrown_away_comes_back(page):
    row = page.locator("nav li.current")
    title = row.locator(".title").inner_text()
    row.hover()
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("listitem").filter(has_text=title).first.wait_for()


def test_a_search_finds_words_of_messages(page, opened):
    ask(page, "a nautilus of its own")
    page.get_by_role("searchbox").fill("nautil")
    page.wait_for_function("() => document.querySelectorAll('nav li').length === 1")
    page.get_by_role("searchbox").fill("nobody wrote this")
    page.get_by_text("Nothing found.").wait_for()


def test_all_chats_are_exported_and_imported_once(page):
    def choose(action):
        page.locator("nav .bottom").get_by_role("button", name="Show more").click()
        page.get_by_role("menuitem", name=action).click()

    with page.expect_download() as waiting:
        choose("Export all chats (JSON)")
    file = waiting.value.path()
    data = file.read_bytes()
    assert b"whale" in data
    changed = json.loads(data)
    with page.expect_file_chooser() as chooser:
        choose("Import chats")
    chooser.value.set_files({"name": "a.json", "mimeType": "application/json", "buffer": data})
    page.get_by_text("Imported chats: 0").wait_for()
    assert changed
    with page.expect_file_chooser() as chooser:
        choose("Import chats")
    chooser.value.set_files({"name": "b.json", "mimeType": "application/json", "buffer": b"[1"})
    page.get_by_text("could not be imported").wait_for()
