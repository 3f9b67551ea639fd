"""Talking: what is sent comes, is stopped, changed, branched, copied, and is there afterwards."""

import json
import uuid

import httpx
import pytest

from tests.page.acts import answered, ask


def said(page):
    return page.locator("article").all_text_contents()


def test_a_question_is_answered_word_by_word_and_is_there_after_a_reload(opened):
    page = opened()
    ask(page, "who swims in the sea?")
    assert page.locator("article.user").text_content().strip().endswith("who swims in the sea?")
    answer = page.locator("article.assistant .markdown, article.assistant").first.text_content()
    assert answer.strip()
    assert "#/chat/" in page.url
    before = said(page)
    page.reload()
    page.locator("article.assistant").wait_for()
    assert said(page) == before


STOP_AT_FIRST_WORDS = """
  new MutationObserver((_, watch) => {
    const stop = document.querySelector('button[aria-label=Stop]');
    if (stop === null || !document.querySelector('article.assistant p:not(.waiting)')) return;
    watch.disconnect();
    stop.click();
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
"""


def test_an_answer_can_be_stopped_and_what_was_written_stays(opened, llm):
    """Stopped by the page itself, as nobody is faster than this model."""
    page = opened()
    never = {
        str(token): -100 for token in llm.tokenizer.control_ids
    }  # a random model ends anywhere
    endless = {"ignore_eos": True, "max_tokens": 3000, "logit_bias": never}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(post_data={**route.request.post_data_json, **endless}),
    )
    page.evaluate(STOP_AT_FIRST_WORDS)
    ask(page, "the sea is deep")
    page.locator("article.assistant").get_by_text("Stopped.").wait_for()
    before = said(page)
    page.reload()
    page.locator("article.assistant").get_by_text("Stopped.").wait_for()
    assert said(page) == before


def test_another_answer_and_another_question_are_branches(opened):
    page = opened()
    ask(page, "the fish")
    page.get_by_role("button", name="Answer again").click()
    answered(page)
    branch = page.locator("article.assistant .branches")
    assert "2 / 2" in branch.text_content()
    page.get_by_role("button", name="Previous version").click()
    assert "1 / 2" in branch.text_content()
    page.locator("article.user").hover()
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.locator("article.user textarea").fill("the dark sea")
    page.locator("article.user").get_by_role("button", name="Send").click()
    answered(page)
    assert "the dark sea" in page.locator("article.user").text_content()
    assert "2 / 2" in page.locator("article.user .branches").text_content()
    page.locator("article.user").get_by_role("button", name="Previous version").click()
    assert "the fish" in page.locator("article.user").text_content()


def test_every_turn_is_edited_into_a_branch_of_its_own(opened):
    page = opened()
    ask(page, "the fish")
    ask(page, "the sea")
    answers = page.locator("article.assistant")
    first = answers.first.locator(".prose").inner_text()
    answers.first.hover()
    answers.first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit this answer").fill("it is *dark*")
    page.get_by_role("button", name="Save as a branch").click()
    assert answers.first.locator("em").text_content() == "dark"
    assert page.locator("article").count() == 2  # nothing was asked behind it yet
    ask(page, "who swims?")
    page.reload()
    answers.nth(1).wait_for()
    assert answers.first.locator("em").text_content() == "dark"
    answers.first.hover()
    answers.first.get_by_role("button", name="Previous version").click()
    page.locator("article.user").filter(has_text="the sea").wait_for()
    assert answers.first.locator(".prose").inner_text() == first


def test_everything_works_by_keyboard_alone(opened):
    """From the first Tab on; no pointer, and no focus that a reader could not have set."""
    page = opened()

    def focused(what):
        return page.evaluate(f"document.activeElement.{what}")

    def to(name, key="Tab"):
        """Press Tab until that has the focus."""
        for _ in range(100):
            if focused("ariaLabel") == name or focused("innerText") == name:
                return
            page.keyboard.press(key)
        raise AssertionError(f"{name} is out of reach")

    to("Skip to the message field", "Shift+Tab")
    page.keyboard.press("Enter")
    assert focused("id") == "message"
    page.keyboard.type("dark")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("sea")
    page.keyboard.press("Enter")
    answered(page)
    assert "dark\nsea" in page.locator("article.user").text_content()
    page.keyboard.press("ArrowUp")
    page.locator("article.user textarea").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.wait_for_function("() => document.activeElement.id === 'search'")
    page.keyboard.press("Tab")  # the newest chat of the list
    page.keyboard.press("Tab")  # its menu
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.role === 'menuitem'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Pinned").wait_for()
    to("Look inside")
    page.keyboard.press("Enter")
    strip = page.get_by_role("listbox", name="Tokens")
    strip.wait_for()
    to("Tokens")
    last = strip.locator("[role=option]").count() - 1
    for key, place in (("ArrowRight", min(1, last)), ("End", last), ("Home", 0)):
        page.keyboard.press(key)
        strip.locator(f"[aria-selected=true][data-place='{place}']").wait_for()
    page.keyboard.press("Control+Shift+O")
    page.wait_for_function("() => !document.querySelector('article')")


def test_language_and_appearance_are_chosen_and_stay(opened):
    page = opened(color_scheme="light")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Appearance").select_option("dark")
    page.get_by_label("Language").select_option("ar")
    page.get_by_role("heading", name="الإعدادات").wait_for()
    page.reload()
    page.get_by_role("button", name="محادثة جديدة").wait_for()
    root = "getComputedStyle(document.documentElement)"
    assert page.evaluate("document.documentElement.dir") == "rtl"
    assert page.evaluate(f"{root}.colorScheme") == "dark"


@pytest.mark.parametrize(
    ("language", "inside"), [("en-US", "Look inside"), ("ar-EG", "نظرة إلى الداخل")]
)
def test_what_is_inside_an_answer_is_what_the_service_told(opened, address, language, inside):
    page = opened(locale=language)
    ask(page, "fish")
    page.get_by_role("button", name=inside).click()
    panel = page.get_by_role("complementary")
    panel.locator("canvas").wait_for()
    page.wait_for_function("() => location.hash.length > 20")
    chat = page.url.rpartition("/")[2]
    told = httpx.get(f"{address}/history/chats/{chat}").json()["messages"][-1]["data"]["insight"]
    tokens, summary = told["tokens"], told["summary"]
    assert panel.get_by_role("option").count() == len(tokens) > 0
    assert panel.locator(".details li").count() == 5  # what else it could have been
    shown = panel.text_content()
    assert str(summary["prompt_tokens"]) in shown
    ratio = summary["full_attention_bytes_per_token"] / summary["latent_bytes_per_token"]
    assert f"{ratio:.2g}" in shown
    for scope in range(3):  # this token, this answer, this chat
        panel.locator(".scopes button").nth(scope).click()
        drawn = "one => one.getContext('2d').getImageData(2, 2, 1, 1).data[3]"
        assert panel.locator("canvas").evaluate(drawn) > 0


def test_every_token_takes_room(opened, address):
    """Also those whose letters leave no mark: a reader walks through them with the arrow keys."""
    seen, controls = ["a", ""], ["\r", "\n", " ", "\t", "\x00", "\x0b", "\x7f", "\x85"]
    spaces, marks = ["\xa0", "\u2028", "\u3000"], ["\u0301", "\ufe0f"]
    nothings = ["\xad", "\u200b", "\u200d", "\u202e", "\ufeff"]
    texts = seen + controls + spaces + marks + nothings
    tokens = [
        {"text": text, "logprob": -1, "top": [[text, -1]], "experts": None, "drafted": False}
        for text in texts
    ]
    told = {"id": uuid.uuid4().hex, "parent": None, "role": "assistant", "content": "a",
            "reasoning": None, "created": 1,
            "data": {"insight": {"tokens": tokens, "summary": None}}}  # fmt: skip
    page = opened(f"#/chat/{imported(address, 'tokens', [told])}")
    page.get_by_role("button", name="Look inside").click()
    strip = page.get_by_role("listbox", name="Tokens")
    strip.focus()
    for place in range(len(texts)):
        chosen = strip.locator(f"[aria-selected=true][data-place='{place}']")
        chosen.wait_for()
        assert chosen.bounding_box()["width"] > 4, repr(texts[place])
        page.keyboard.press("ArrowRight")


def imported(address, title, messages):
    """A chat of these messages in the service's history; its id."""
    chat = {"id": uuid.uuid4().hex, "title": title, "folder": None, "pinned": False, "options": {},
            "current": messages[-1]["id"], "created": 1, "updated": 1, "deleted": None}  # fmt: skip
    saved = {"format": "abyssal-history", "version": 1, "chats": [chat | {"messages": messages}]}
    httpx.post(f"{address}/history/import", json=saved, timeout=30).raise_for_status()
    return chat["id"]


def test_a_long_chat_is_read_through_with_few_turns_on_the_page(opened, address):
    turns = [uuid.uuid4().hex for _ in range(120)]
    messages = [
        {"id": id, "parent": parent, "role": "assistant" if n % 2 else "user", "created": n,
         "content": f"turn {n}\n\n" + "deep " * 150, "reasoning": None, "data": {}}
        for n, (parent, id) in enumerate(zip([None, *turns], turns, strict=False))
    ]  # fmt: skip
    page = opened(f"#/chat/{imported(address, 'long', messages)}")
    page.get_by_text("turn 119", exact=True).wait_for()
    seen = set()

    def wheel(by, until):
        page.mouse.move(700, 400)
        for _ in range(300):
            page.mouse.wheel(0, by)
            page.wait_for_timeout(16)
            there = page.locator("article").evaluate_all(
                "all => all.map(one => +/turn (\\d+)/.exec(one.textContent)[1])"
            )
            assert there == list(range(there[0], there[-1] + 1))
            assert len(there) < 40
            seen.update(there)
            if until in there:
                return
        raise AssertionError(f"turn {until} never came")

    wheel(-2500, 0)
    assert seen == set(range(120))
    wheel(2500, 119)
    page.locator(".turns").evaluate("one => one.scrollTo(0, 0)")
    page.get_by_role("button", name="Go to the end").click()
    page.get_by_text("turn 119", exact=True).wait_for()
    ask(page, "and now?")
    assert page.locator("article.last").is_visible()


def test_what_is_begun_survives_a_reload(opened):
    page = opened()
    page.get_by_role("textbox", name="Message").fill("half a thought")
    page.reload()
    field = page.get_by_role("textbox", name="Message")
    field.wait_for()
    page.wait_for_function("() => document.querySelector('#message').value === 'half a thought'")


def test_a_text_file_goes_with_the_question_and_another_kind_does_not(opened):
    page = opened()
    page.locator("input[type=file]:not([accept])").set_input_files(
        {"name": "fish.txt", "mimeType": "text/plain", "buffer": b"the fish see"}
    )
    page.get_by_text("fish.txt").wait_for()
    bodies = []
    page.on("request", lambda r: bodies.append(r.post_data) if "completions" in r.url else None)
    ask(page, "what see?")
    sent = json.loads(bodies[0])["messages"][-1]["content"]
    assert sent.startswith("[file name]: fish.txt\n[file content begin]\nthe fish see\n")
    assert sent.endswith("[file content end]\nwhat see?")
    page.locator("input[type=file]:not([accept])").set_input_files(
        {"name": "a.bin", "mimeType": "application/octet-stream", "buffer": bytes(range(256))}
    )
    page.get_by_text("a.bin is not a text file").wait_for()


def test_options_reach_the_service(opened):
    page = opened()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("System prompt").fill("be dark")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("5")
    page.keyboard.press("Escape")
    bodies = []
    page.on("request", lambda r: bodies.append(r.post_data) if "completions" in r.url else None)
    ask(page, "fish")
    body = json.loads(bodies[0])
    assert body["messages"][0] == {"role": "system", "content": "be dark"}
    assert body["temperature"] == 0.5
    assert body["max_tokens"] == 5
    assert body["stream"] is True


def test_an_answer_is_copied_as_it_was_written(opened):
    page = opened()
    ask(page, "fish")
    page.locator("article.assistant").get_by_role("button", name="Copy", exact=True).click()
    copied = page.evaluate("navigator.clipboard.readText()")
    page.locator("article.assistant").get_by_role("button", name="Show as JSON").click()
    stored = json.loads(page.locator("dialog pre").text_content())
    assert stored["content"] == copied
