"""What goes wrong is told, nothing written is lost, and there is a way on."""

import json
import threading
from contextlib import contextmanager

import httpx
import pytest

from abyssal.serve.store import Store
from tests.page.acts import answered, ask
from tests.serve.wire import listening

CONTEXT = 4096  # of the model


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "history.sqlite3") as store:
        yield store


@pytest.fixture
def serve(llm, store):
    """serve(...): the service on this history; without keys."""

    def serve(**changes):
        return listening(llm, history=store, **{"api_keys": (), "layout": "v3.1", **changes})

    return serve


def say(page, text):
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")


def problem(page, text):
    return page.get_by_role("alert").filter(has_text=text)


def stored(address):
    """The messages of the newest chat."""
    with httpx.Client(base_url=f"{address}/history", timeout=30) as http:
        newest = http.get("/chats").json()["data"][0]["id"]
        return http.get(f"/chats/{newest}").json()["messages"]


def test_a_server_that_is_gone_takes_nothing_along(visit, serve):
    with serve() as address:
        page = visit(address)
        ask(page, "the first whale")
        port = int(address.rpartition(":")[2])
    say(page, "the second whale")
    problem(page, "No answer: The server cannot be reached").wait_for()
    problem(page, "Not saved yet: The server cannot be reached").wait_for()
    page.locator("#message").fill("a third")
    with serve(port=port):
        problem(page, "Not saved yet").get_by_role("button", name="Try again").click()
        problem(page, "Not saved yet").wait_for(state="detached")
        problem(page, "No answer").get_by_role("button", name="Try again").click()
        answered(page)
        assert [m["content"] for m in stored(address) if m["role"] == "user"] == [
            "the first whale", "the second whale",
        ]  # fmt: skip
        page.reload()
        page.locator("article.user").nth(1).wait_for()
        assert page.locator("#message").input_value() == "a third"
        assert problem(page, "").count() == 0
        branches = page.locator("article.last .branches").text_content()
        assert "2 / 2" in branches  # the answer that failed stays beside the one that came


@contextmanager
def crowd(address, tokenizer):
    """Somebody else takes every place, until this is left."""
    is_over, has_begun = threading.Event(), threading.Event()
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "a"}], "n": 8, "stream": True,
        "ignore_eos": True, "logit_bias": {str(token): -100 for token in tokenizer.control_ids},
    }  # fmt: skip

    def take():
        while not is_over.is_set():
            with (
                httpx.Client(timeout=30) as http,
                http.stream("POST", f"{address}/v1/chat/completions", json=body) as reply,
            ):
                for _ in reply.iter_lines():
                    has_begun.set()
                    if is_over.is_set():
                        return

    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert has_begun.wait(20)
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_server_that_is_full_is_asked_again(visit, serve, llm):
    with serve(max_waiting=0) as address:
        page = visit(address)
        with crowd(address, llm.tokenizer):
            say(page, "fish")
            problem(page, "answers are under way").wait_for()
        again = problem(page, "No answer").get_by_role("button", name="Try again")
        again.click()
        page.locator("article.last .branches").filter(has_text="2 / 2").wait_for()
        answered(page)


def test_a_context_that_is_full_loses_its_oldest_turns_and_says_so(visit, serve):
    with serve() as address:
        page = visit(address)
        ask(page, "dark " * (CONTEXT // 4))
        ask(page, "deep " * (CONTEXT // 2))
        page.get_by_text("Left out because the context is full: 2").wait_for()
        say(page, "sea! " * CONTEXT)
        problem(page, str(CONTEXT)).wait_for()  # one message alone is too long: the server says it
        page.locator("article.user").last.hover()
        page.locator("article.user").last.get_by_role("button", name="Edit").click()
        page.locator("article.user textarea").fill("sea")
        page.locator("article.user textarea").press("Enter")
        answered(page)
        assert problem(page, "").count() == 0


def test_a_message_that_is_refused_does_not_hold_back_others(visit, serve):
    """Half of a letter, which no JSON may hold, stands for whatever a server takes never."""
    with serve() as address:
        page = visit(address)
        ask(page, "before")
        half = "field => { field.value = 'half \\ud800'; field.dispatchEvent(new Event('input')) }"
        page.locator("#message").evaluate(half)
        page.locator("#message").press("Enter")
        problem(page, "No answer").wait_for()
        problem(page, "Not saved yet").wait_for()
        page.get_by_role("button", name="Options").click()
        page.get_by_label("System prompt").fill("be dark")
        page.keyboard.press("Escape")
        page.locator("article.user").last.hover()
        page.locator("article.user").last.get_by_role("button", name="Edit").click()
        page.locator("article.user textarea").fill("after")
        page.locator("article.user textarea").press("Enter")
        answered(page)
        found = stored(address)
        assert [m["content"] for m in found if m["role"] == "user"] == ["before", "after"]
        assert found[-1]["role"] == "assistant"
        ids = {message["id"] for message in found}
        assert all(message["parent"] in {None, *ids} for message in found)
        assert problem(page, "Not saved yet").count() == 1  # that one is still not


def test_a_key_that_is_no_longer_known_is_asked_for_again(visit, serve):
    first, second = "sk-of-the-deep-sea-1", "sk-of-the-deep-sea-2"
    with serve(api_keys=(first,)) as address:
        page = visit(address)
        page.get_by_label("API key").fill(first)
        page.get_by_role("button", name="Sign in").click()
        ask(page, "whale")
        port = int(address.rpartition(":")[2])
    with serve(api_keys=(second,), port=port):
        say(page, "who is there?")
        page.get_by_label("API key").fill(second)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("navigation").get_by_text("No chats yet.").wait_for()  # those are others'
        page.get_by_role("button", name="New chat").click()
        ask(page, "krill")


def test_files_that_are_none_of_ours_are_told(visit, serve):
    with serve() as address:
        page = visit(address)
        page.goto(f"{address}/#/chat/{'0' * 32}")
        page.get_by_text("This chat does not exist, or it is not yours.").wait_for()
        for text in ("[1", "{}", json.dumps({"chats": [{"id": "x"}]})):
            file = {"name": "a.json", "mimeType": "application/json", "buffer": text.encode()}
            page.locator("nav input[type=file]").set_input_files(file)
            page.get_by_text("could not be imported").first.wait_for()
            page.get_by_role("status").get_by_role("button", name="Close").first.click()
