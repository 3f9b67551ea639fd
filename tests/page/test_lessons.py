"""Answers that are known beforehand: thoughts, Markdown, calls of tools, JSON; and their model."""

import json
import re

import httpx
import pytest

from tests.page.acts import OPTIONS, answered, ask
from tests.page.pupil import DEEP, FORM, SUM
from tests.serve.wire import KEY, listening

# Notes each block that is rendered again after another has come to stand behind it.
RENDERED_AGAIN = """
  window.__again = [];
  window.__renders = 0;
  const finished = new WeakSet();
  new MutationObserver((records) => {
    for (const { target } of records) {
      if (!target.matches?.('article .block')) continue;
      window.__renders += 1;
      if (finished.has(target)) window.__again.push(target.textContent);
    }
    for (const block of document.querySelectorAll('article .block:not(:last-child)')) {
      finished.add(block);
    }
  }).observe(document, { subtree: true, childList: true });
"""


@pytest.fixture(scope="module")
def llm(pupil):
    return pupil


def test_a_token_renders_one_block_and_no_finished_one_again(opened):
    page = opened(first=RENDERED_AGAIN)
    page.evaluate(OPTIONS, {"temperature": 0, "thinking": True})
    page.reload()
    page.evaluate(RENDERED_AGAIN)
    ask(page, DEEP.asked)
    said = page.locator("article.assistant")
    said.locator("> .prose .katex-display").wait_for()
    said.locator("pre code span").first.wait_for()
    assert page.evaluate("window.__renders") > 12, "it did not come in pieces"
    assert page.evaluate("window.__again") == []
    assert said.locator("table td").all_text_contents() == ["المتوسط", "1,500"]
    fold = said.locator("summary")
    assert fold.text_content().strip().startswith("Thought for")
    assert said.locator("details .katex").count() == 0  # the fold is closed behind the thought
    fold.click()
    said.locator("details .katex").wait_for()
    said.get_by_role("button", name="Copy", exact=True).last.click()
    assert page.evaluate("navigator.clipboard.readText()") == DEEP.answer


def test_a_tool_is_declared_called_answered_and_used(opened):
    page = opened()
    page.get_by_role("button", name="Options").click()
    tools = page.get_by_label("Tools")
    page.get_by_label("Temperature").fill("0")
    tools.fill('[{"nome": "say"}]')
    tools.blur()
    page.get_by_text("This is not a list of functions").wait_for()
    tools.fill('[{"name": "say"}]')
    tools.blur()
    page.keyboard.press("Escape")
    ask(page, SUM.asked)
    page.get_by_text("Calls say").wait_for()
    shown = json.loads(page.locator("article.assistant pre").text_content())
    assert shown == json.loads(SUM.call.arguments)
    page.get_by_label("Result to give back").fill(SUM.result[0])
    page.get_by_role("button", name="Give results and go on").click()
    page.get_by_text("Result of say").wait_for()
    answered(page)
    assert page.locator("article.last .prose").text_content().strip() == SUM.result[1]
    page.get_by_role("button", name="Show as JSON").first.click()
    assert '"role": "user"' in page.locator("dialog pre").text_content()


def test_an_answer_in_json_is_asked_for_and_shown_as_such(opened):
    page = opened()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Answer in JSON").check()
    page.keyboard.press("Escape")
    ask(page, FORM.asked)
    block = page.locator("article.assistant pre")
    assert block.text_content() == json.dumps(json.loads(FORM.answer), indent=2) + "\n"
    page.locator("article.assistant .code-head button").click()
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == json.loads(FORM.answer)


def test_the_model_page_shows_its_training_and_what_it_does_now(opened, address):
    page = opened("#/model")
    card = httpx.get(f"{address}/model").json()
    curve = page.get_by_role("img", name="loss")
    assert curve.locator(".line").get_attribute("d").count("L") == len(card["curves"]["loss"]) - 1
    assert page.locator(".bars li").count() == len(card["parameters"]["parts"])
    page.get_by_role("rowheader", name="kv_lora_rank").wait_for()
    with page.expect_response("**/metrics"):  # read again and again
        pass
    body = {"model": "tiny", "messages": [{"role": "user", "content": DEEP.asked}]}
    httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).raise_for_status()
    speed = page.get_by_role("img", name=re.compile("^Tokens per second"))
    page.wait_for_function(
        "one => !/(: –|: last 0)$/.test(one.ariaLabel)", arg=speed.element_handle()
    )
    with page.expect_popup() as waiting:
        page.get_by_role("link", name="Report of the run").click()
    waiting.value.get_by_text("steps").wait_for()


def test_the_report_opens_in_its_own_tab_where_keys_are_set_too(visit, llm):
    with listening(llm) as address:
        page = visit(address)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Model").click()
        with page.expect_popup() as waiting:
            page.get_by_role("button", name="Report of the run").click()
        waiting.value.get_by_text("steps").wait_for()
        color = "getComputedStyle(document.querySelector('p')).color"
        assert waiting.value.evaluate(color) == "rgb(0, 128, 0)"  # its styles are its own
