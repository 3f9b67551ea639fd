"""The list of chats: found, named, sorted, thrown away and taken back, carried elsewhere.

All of it where the server keeps chats, and where it keeps none and the browser does.
"""

import json

import pytest

from abyssal.serve.store import Store
from tests.page.acts import ask
from tests.serve.wire import listening


@pytest.fixture(scope="module", params=["server", "browser"])
def address(request, llm, tmp_path_factory):
    changes = {"api_keys": (), "layout": "v3.1"}
    if request.param == "browser":
        with listening(llm, **changes) as address:
            yield address
        return
    with (
        Store(tmp_path_factory.mktemp("history") / "history.sqlite3") as store,
        listening(llm, history=store, **changes) as address,
    ):
        yield address


@pytest.fixture
def page(opened, request):
    page = opened()
    ask(page, f"whale {request.node.name[5:17]}")
    page.locator("nav li.current").wait_for()
    return page


def act(row, action):
    """Choose what the row's menu offers."""
    row.hover()
    row.get_by_role("button").click()
    row.page.get_by_role("menuitem", name=action, exact=True).click()


def choose(page, action):
    """Choose what the menu of all chats offers."""
    page.locator("nav .bottom").get_by_role("button", name="Show more").click()
    page.get_by_role("menuitem", name=action).click()


def named(page, title):
    return page.get_by_role("listitem").filter(has_text=title)


def load(page, name, data):
    with page.expect_file_chooser() as chooser:
        choose(page, "Import chats")
    chooser.value.set_files({"name": name, "mimeType": "application/json", "buffer": data})


def answer(page, text):
    page.get_by_role("dialog").locator("input").fill(text)
    page.get_by_role("button", name="Save").click()


def test_a_chat_is_renamed_pinned_and_put_in_a_folder(page):
    act(page.locator("nav li.current"), "Rename")
    answer(page, "krill")
    page.get_by_role("link", name="krill").wait_for()
    act(named(page, "krill"), "Pin")
    page.get_by_role("heading", name="Pinned").wait_for()
    act(named(page, "krill"), "Unpin")
    act(named(page, "krill"), "Move to a folder")
    answer(page, "deep")
    page.get_by_role("heading", name="deep").wait_for()
    page.reload()
    page.get_by_role("heading", name="deep").wait_for()
    page.get_by_role("link", name="krill").wait_for()


def test_what_was_thrown_away_comes_back_until_it_is_deleted_for_good(page):
    title = page.locator("nav li.current .title").inner_text()
    act(page.locator("nav li.current"), "Delete")
    page.get_by_role("button", name="Undo").click()
    act(named(page, title), "Delete")
    named(page, title).wait_for(state="detached")
    choose(page, "Trash")
    act(named(page, title), "Restore")
    page.get_by_text("The trash is empty.").wait_for()
    page.get_by_role("button", name="Back to the chats").click()
    act(named(page, title), "Delete")
    choose(page, "Trash")
    act(named(page, title), "Delete for good")
    page.get_by_role("dialog").get_by_role("button", name="Delete for good").click()
    page.get_by_text("The trash is empty.").wait_for()


def test_a_search_finds_words_of_messages(page):
    ask(page, "a nautilus 深海 of its own")
    for words, count in (("nautil", 1), ("深海", 1), ("nobody wrote this", 0)):
        page.get_by_role("searchbox").fill(words)
        rows = f"document.querySelectorAll('nav li').length === {count}"
        page.wait_for_function(f"() => {rows} && !document.querySelector('[aria-busy=true]')")
    page.get_by_text("Nothing found.").wait_for()


def test_chats_are_exported_deleted_and_imported_as_they_were(page):
    title = page.locator("nav li.current .title").inner_text()
    said = page.locator("article").all_text_contents()
    with page.expect_download() as waiting:
        choose(page, "Export all chats (JSON)")
    data = waiting.value.path().read_bytes()
    assert any(chat["title"] == title for chat in json.loads(data)["chats"])
    with page.expect_download() as waiting:
        act(named(page, title), "Export as Markdown")
    assert waiting.value.path().read_text().startswith(f"# {title}\n")
    load(page, "a.json", data)
    page.get_by_text("Imported chats: 0").wait_for()
    act(named(page, title), "Delete")
    choose(page, "Trash")
    act(named(page, title), "Delete for good")
    page.get_by_role("dialog").get_by_role("button", name="Delete for good").click()
    page.get_by_role("button", name="Back to the chats").click()
    load(page, "a.json", data)
    named(page, title).get_by_role("link").click()
    page.locator("article.assistant").wait_for()
    assert page.locator("article").all_text_contents() == said
    load(page, "b.json", b"[1")
    page.get_by_text("could not be imported").wait_for()
