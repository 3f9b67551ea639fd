"""Every view in five languages, light and dark, on a desktop and a phone: whole, and accessible.

Pictures go to PAGE_SHOTS, where that names a folder.
"""

import os
import uuid
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.page.acts import DESKTOP, PHONE, ask

LANGUAGES = {"en": "en-US", "fr": "fr-FR", "it": "it-IT", "ar": "ar-EG", "zh": "zh-CN"}
SHOTS = os.environ.get("PAGE_SHOTS")
LOOKS = [("desktop", "light"), ("phone", "dark")]
LOOKS += [("desktop", "dark"), ("phone", "light")] if SHOTS else []  # the same rules, other colors


def look(page, name):
    """A picture, no violation, nothing wider than the window."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS) / f"{name}.png")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"{name} is {wide} px too wide"
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_views(opened, language, size, scheme):
    page = opened(
        locale=LANGUAGES[language], color_scheme=scheme, reduced_motion="reduce",
        viewport=DESKTOP if size == "desktop" else PHONE,
    )  # fmt: skip
    name = f"{language}-{size}-{scheme}"
    field = page.locator("#message")
    field.wait_for()
    assert page.evaluate("document.documentElement.lang").startswith(language)
    assert page.evaluate("document.documentElement.dir || 'ltr'") == (
        "rtl" if language == "ar" else "ltr"
    )
    look(page, f"{name}-new")
    field.fill("the fish: **dark** $x^2$\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    field.press("Enter")
    page.locator("article.assistant").wait_for()
    page.wait_for_function("() => !document.querySelector('article[aria-busy=true]')")
    look(page, f"{name}-chat")
    page.goto(page.url.split("#")[0] + "#/model")
    page.locator("main h1").wait_for()
    look(page, f"{name}-model")


ANSWER = """## Depth

It is $d = \\frac{p}{\\rho g}$ deep:

$$\\int_0^d \\rho g\\,dz = p$$

| sea | m |
| --- | --- |
| المتوسط | 1,500 |

```python
def depth(p):
    return p / 9.81
```

> **quoted** and [linked](https://example.com)
"""


def test_an_answer_is_set(opened, address):
    """Formulas, tables, code and thoughts, by their parts."""
    chat, question, answer = (uuid.uuid4().hex for _ in range(3))
    with httpx.Client(base_url=f"{address}/history/chats/") as http:
        http.put(chat, json={"title": "Depth"}).raise_for_status()
        asked = {"parent": None, "role": "user", "content": "How deep?"}
        http.put(f"{chat}/messages/{question}", json=asked).raise_for_status()
        body = {"parent": question, "role": "assistant", "content": ANSWER, "reasoning": "$x^2$"}
        http.put(f"{chat}/messages/{answer}", json=body).raise_for_status()
    page = opened(f"#/chat/{chat}")
    said = page.locator("article.assistant")
    said.locator(".katex").nth(1).wait_for()
    said.locator("pre code span").first.wait_for()  # colored
    assert said.locator("table td").all_text_contents() == ["المتوسط", "1,500"]
    assert said.locator("blockquote strong").text_content() == "quoted"
    link = said.get_by_role("link", name="linked")
    assert "noopener" in (link.get_attribute("rel") or "")
    said.locator("summary").click()
    said.locator("details .katex").wait_for()
    said.locator("pre").hover()
    said.get_by_role("button", name="Copy").first.click()
    assert "return p / 9.81" in page.evaluate("navigator.clipboard.readText()")
    look(page, "set")


def test_twice_as_large_it_still_fits(opened):
    page = opened(viewport={"width": 640, "height": 400}, device_scale_factor=2)
    ask(page, "fish")
    look(page, "zoomed")


def test_what_is_inside_an_answer(opened):
    page = opened()
    ask(page, "fish")
    page.get_by_role("button", name="Look inside").click()
    page.get_by_role("complementary").wait_for()
    look(page, "inside")
