"""Talking: what is sent comes, is stopped, changed, branched, copied, and is there afterwards."""

import json

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


def test_an_answer_can_be_stopped_and_what_was_written_stays(opened):
    """Stopped by the page itself, as nobody is faster than this model."""
    page = opened()
    endless = {"ignore_eos": True, "max_tokens": 3000}
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


def test_everything_works_by_keyboard_alone(opened):
    page = opened()
    page.keyboard.press("Tab")
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.type("dark")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("sea")
    page.keyboard.press("Enter")
    answered(page)
    assert "dark\nsea" in page.locator("article.user").text_content()
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.press("ArrowUp")
    page.locator("article.user textarea").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.wait_for_function("() => document.activeElement.id === 'search'")
    page.keyboard.press("Control+Shift+O")
    page.wait_for_function("() => !document.querySelector('article')")


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


def test_a_service_that_fails_is_told_and_asked_again(opened):
    page = opened()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("textbox", name="Message").fill("fish")
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("alert").wait_for()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    answered(page)
    assert page.get_by_role("alert").count() == 0


def test_an_answer_is_copied_as_it_was_written(opened):
    page = opened()
    ask(page, "fish")
    page.locator("article.assistant").get_by_role("button", name="Copy", exact=True).click()
    copied = page.evaluate("navigator.clipboard.readText()")
    page.locator("article.assistant").get_by_role("button", name="Show as JSON").click()
    stored = json.loads(page.locator("dialog pre").text_content())
    assert stored["content"] == copied
