"""Every view in five languages, light and dark, on a desktop and a phone: whole, and accessible.

Pictures of all of them go to PAGE_SHOTS, where that names a folder; without it every language is
seen, and each view in two of them.
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
TOURS = [("en", "desktop", "light"), ("ar", "phone", "dark")]

TALKS = {
    "en": ("How deep is the sea?", "On average **3,688 m**; the Mariana Trench is $10\\,935$ m."),
    "fr": ("Quelle est la profondeur de la mer ?", "En moyenne **3 688 m**, soit $p = \\rho g d$."),
    "it": ("Quanto è profondo il mare?", "In media **3688 m**, quindi $p = \\rho g d$."),
    "ar": ("ما عمق البحر؟ (Mariana Trench)", "المتوسط **3688 م**، والضغط $p = \\rho g d$ بالطبع."),
    "zh": ("大海有多深？", "平均 **3688 米**，压强为 $p = \\rho g d$，见 Mariana 海沟。"),
}
DEPTHS = """

| sea | m |
| --- | ---: |
| المتوسط | 1,500 |
| 南海 | 1,212 |

```python
def depth(pressure: float) -> float:
    return pressure / (1025 * 9.81)  # meters
```

1. [a link](https://example.com)
2. > a quotation
"""
THOUGHT = "Pressure grows with depth: $x^2$."


def keep(address, title, question, answer, folder=None):
    """A chat of one answer; its id."""
    chat, first, second = (uuid.uuid4().hex for _ in range(3))
    data = {"thought_ms": 4200, "elapsed_ms": 9000, "finish_reason": "stop"}
    turns = (
        (first, None, "user", question, None, {"attachments": [{"name": "sea.txt", "text": "a"}]}),
        (second, first, "assistant", answer, THOUGHT, data),
    )
    with httpx.Client(base_url=f"{address}/history/chats/") as http:
        http.put(chat, json={"title": title, "folder": folder}).raise_for_status()
        for id, parent, role, content, reasoning, held in turns:
            body = {"parent": parent, "role": role, "content": content, "data": held}
            body["reasoning"] = reasoning
            http.put(f"{chat}/messages/{id}", json=body).raise_for_status()
    return chat


class Viewer:
    """Looks at a page in one language, size and scheme."""

    def __init__(self, page, name):
        self.page, self.name = page, name

    def look(self, view):
        """A picture, no violation, nothing wider than the window."""
        name = f"{self.name}-{view}"
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png")
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{name} is {wide} px too wide"
        found = Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_views(opened, address, language, size, scheme):
    question, answer = TALKS[language]
    chat = keep(address, question, question, answer + DEPTHS)
    page = opened(
        f"#/chat/{chat}", locale=LANGUAGES[language], color_scheme=scheme,
        reduced_motion="reduce", viewport=DESKTOP if size == "desktop" else PHONE,
    )  # fmt: skip
    viewer = Viewer(page, f"{language}-{size}-{scheme}")
    page.locator("article.assistant > .prose .katex").first.wait_for()
    page.locator("pre code span").first.wait_for()
    assert page.evaluate("document.documentElement.lang").startswith(language)
    assert page.evaluate("document.documentElement.dir || 'ltr'") == (
        "rtl" if language == "ar" else "ltr"
    )
    viewer.look("chat")
    if SHOTS or (language, size, scheme) in TOURS:
        tour(page, viewer, size)
    page.evaluate("location.hash = '#/model'")
    page.locator("main h1").wait_for()
    page.locator("svg .line").first.wait_for(state="attached")
    viewer.look("model")
    page.evaluate("location.hash = '#/'")
    page.locator(".welcome").wait_for()
    viewer.look("new")


def tour(page, viewer, size):
    """What opens over or beside a chat."""
    page.locator("article.assistant summary").click()
    viewer.look("thought")
    page.locator("article.user").hover()
    page.locator("article.user .actions button").nth(1).click()
    viewer.look("edit")
    page.keyboard.press("Escape")
    ask(page, "the fish")
    page.locator("article.last button[aria-pressed]").click()
    page.locator("aside canvas").wait_for()
    viewer.look("inside")
    page.locator("aside header button").click()
    page.locator("article.last .actions button").last.click()
    page.locator("dialog pre").wait_for()
    viewer.look("json")
    page.keyboard.press("Escape")
    page.locator("main header .icon-button").last.click()
    page.locator("dialog textarea").first.wait_for()
    viewer.look("options")
    page.keyboard.press("Escape")
    if size == "phone":
        page.locator("main header .icon-button").first.click()
        page.locator("nav").wait_for()
        viewer.look("sidebar")
    page.locator("nav .bottom .icon-button").last.click()
    page.locator("[role=menu]").wait_for()
    viewer.look("menu")
    page.keyboard.press("Escape")
    page.locator("nav .bottom .icon-button").first.click()
    page.locator("dialog select").first.wait_for()
    viewer.look("settings")
    page.keyboard.press("Escape")
    if size == "phone":
        page.locator("nav").wait_for()  # Escape closed the dialog alone
        page.keyboard.press("Escape")
        page.locator("nav").wait_for(state="hidden")


def test_an_answer_is_set(opened, address):
    """Formulas, tables, code and thoughts, by their parts."""
    answer = "$$\\int_0^d \\rho g\\,dz = p$$" + DEPTHS
    page = opened(f"#/chat/{keep(address, 'Depth', 'How deep?', answer)}")
    said = page.locator("article.assistant")
    said.locator(".katex-display").wait_for()
    said.locator("pre code span").first.wait_for()  # colored
    assert said.locator("table td").all_text_contents() == ["المتوسط", "1,500", "南海", "1,212"]
    assert said.locator("blockquote").text_content().strip() == "a quotation"
    link = said.get_by_role("link", name="a link")
    assert "noopener" in (link.get_attribute("rel") or "")
    assert "4.2" in said.locator("summary").text_content()
    said.locator("summary").click()
    said.locator("details .katex").wait_for()
    said.locator("pre").hover()
    said.get_by_role("button", name="Copy").first.click()
    assert "return pressure / " in page.evaluate("navigator.clipboard.readText()")


def test_twice_as_large_it_still_fits(opened):
    page = opened(viewport={"width": 640, "height": 400}, device_scale_factor=2)
    ask(page, "fish")
    Viewer(page, "en-zoomed").look("chat")
