"""No text becomes a script: not what the model writes, nor what an imported chat holds."""

import json
import uuid

import httpx
import pytest

from tests.page.acts import OPTIONS, answered
from tests.page.hostile import HOSTILE, WATCH
from tests.page.pupil import PARROT, TOOL


@pytest.fixture(scope="module")
def llm(pupil):
    return pupil


@pytest.fixture
def page(opened):
    page = opened(first=WATCH)
    assert page.evaluate("window.__changes") > 0, "nobody watches"
    return page


def found(page):
    """What became active anywhere at any time."""
    return page.evaluate("window.__found"), page.evaluate("window.__ran")


def chats(address):
    with httpx.Client(base_url=f"{address}/history/", timeout=30) as http:
        listed = http.get("chats", params={"limit": 200}).json()["data"]
        whole = [http.get(f"chats/{chat['id']}").json() for chat in listed]
    return {chat["title"]: chat["messages"] for chat in whole}


def test_what_the_model_writes_never_runs_while_it_is_written(page, address):
    """Thoughts, answers, names and arguments of calls: the model itself streams the corpus."""
    wishes = {"temperature": 0, "thinking": True, "tools": [tool()]}
    page.evaluate(OPTIONS, wishes)
    page.keyboard.press("Control+Shift+O")
    page.evaluate("window.__changes = 0")
    for lesson in PARROT:
        page.locator(".welcome").wait_for()
        page.locator("#message").fill(lesson.asked)
        page.locator("#message").press("Enter")
        answered(page)
        page.locator("article.assistant .name").wait_for()
        assert found(page) == ([], None), lesson.answer
        page.keyboard.press("Control+Shift+O")
    assert page.evaluate("window.__changes") > 5 * len(PARROT), "the answers did not come in pieces"
    stored = chats(address)
    for lesson in PARROT:
        answer = stored[lesson.asked][-1]
        call = answer["data"]["tool_calls"][0]["function"]
        written = answer["reasoning"], answer["content"], call["name"], call["arguments"]
        assert written == (lesson.thought, lesson.answer, lesson.call.name, lesson.call.arguments)


def test_what_is_imported_never_runs(page, address):
    """Titles, folders, turns, thoughts, files, calls, results, tokens: each of them each text."""
    saved = {"format": "abyssal-history", "version": 1, "chats": [chat_of(t) for t in HOSTILE]}
    file = {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()}
    page.locator("nav input[type=file]").set_input_files(file)
    page.get_by_text(f"Imported chats: {len(HOSTILE)}").wait_for()
    for chat, text in zip(saved["chats"], HOSTILE, strict=True):
        page.evaluate("id => { location.hash = `#/chat/${id}` }", chat["id"])
        page.locator(f"[id='edit-{chat['messages'][0]['id']}']").wait_for(state="attached")
        page.locator("main summary").click()
        page.locator("article.assistant").get_by_role("button", name="Look inside").click()
        page.locator("aside [role=option]").wait_for()
        assert found(page) == ([], None), text
    page.get_by_role("searchbox").fill("window")  # snippets
    page.wait_for_function("() => document.querySelectorAll('nav .snippet').length > 20")
    assert found(page) == ([], None)


def chat_of(text):
    """A chat that is this text all over."""
    ids = [uuid.uuid4().hex for _ in range(3)]
    call = {"id": "c1", "type": "function", "function": {"name": text, "arguments": text}}
    token = {"text": text, "logprob": -1, "top": [[text, -1]], "experts": None, "drafted": False}
    inside = {"tokens": [token], "summary": None}
    data = [
        {"attachments": [{"name": text[:100], "text": text}]},
        {"tool_calls": [call], "finish_reason": text, "model": text, "insight": inside},
        {"tool_call_id": "c1", "error": text},
    ]
    messages = [
        {"id": id, "parent": parent, "role": role, "content": text, "data": held, "created": 1,
         "reasoning": text if role == "assistant" else None}
        for id, parent, role, held in zip(
            ids, [None, *ids], ["user", "assistant", "tool"], data, strict=False)
    ]  # fmt: skip
    return {
        "id": uuid.uuid4().hex, "title": text[:180], "folder": text[:180], "pinned": False,
        "options": {"system": text, "stop": [text]}, "current": ids[-1], "created": 1,
        "updated": 1, "deleted": None, "messages": messages,
    }  # fmt: skip


def tool():
    return {"type": "function", "function": {"name": TOOL.name}}


def test_what_got_in_nonetheless_would_be_seen_and_would_not_run(page):
    """The first wall is what is shown; the policy is the second, and these tests see through it."""
    hole = "document.querySelector('main').insertAdjacentHTML('beforeend', text)"
    page.evaluate(f"text => {{ {hole} }}", "<img src=data:, onerror='window.__ran = 1'>")
    page.wait_for_function("() => document.querySelector('main > img:last-of-type').complete")
    seen, ran = found(page)
    assert any("onerror" in one for one in seen)
    assert any("script-src" in one for one in seen)
    assert ran is None
