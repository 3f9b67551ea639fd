"""No text becomes a script: not in titles, turns, thoughts, tool results, files or folders."""

import uuid

import httpx
import pytest

HOSTILE = [
    "<script>window.__ran = 1</script>",
    "<img src=x onerror='window.__ran = 1'>",
    "<svg/onload=window.__ran=1>",
    "<svg><script>window.__ran=1</script></svg>",
    "<iframe srcdoc='<script>parent.__ran=1</script>'></iframe>",
    "<a href='javascript:window.__ran=1'>x</a>",
    "[x](javascript:window.__ran=1)",
    "[x](JaVaScRiPt:window.__ran=1)",
    "[x](java\tscript:window.__ran=1)",
    "[x](data:text/html,<script>opener.__ran=1</script>)",
    "[x](vbscript:window.__ran=1)",
    "![x](javascript:window.__ran=1)",
    "![x](https://evil.example/beacon.png)",
    "<math><mtext></p><style><img src=x onerror=window.__ran=1>",
    "<details open ontoggle=window.__ran=1>",
    "<form action=javascript:window.__ran=1><button>x</button></form>",
    "<body onload=window.__ran=1>",
    "<input autofocus onfocus=window.__ran=1>",
    "<object data=javascript:window.__ran=1></object>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "```html\n<script>window.__ran=1</script>\n```",
    '```"><img src=x onerror=window.__ran=1>\nx\n```',
    "`<img src=x onerror=window.__ran=1>`",
    r"$\href{javascript:window.__ran=1}{x}$",
    r"$$\htmlData{x=1}{\includegraphics{https://evil.example/a.png}}$$",
    r"\(\url{javascript:window.__ran=1}\)",
    "<p style='background:url(https://evil.example/x)'>x</p>",
    "| a |\n| --- |\n| <img src=x onerror=window.__ran=1> |",
    "&lt;script&gt;window.__ran=1&lt;/script&gt;",
    "\u202e<script>window.__ran=1</script>",
    '<noscript><p title="</noscript><img src=x onerror=window.__ran=1>">',
    "<template><script>window.__ran=1</script></template>",
    "{{constructor.constructor('window.__ran=1')()}}",
    "<x contenteditable onblur=window.__ran=1 tabindex=1>",
]

ACTIVE = "script, iframe, object, style, link, base, meta, form[action], [onerror], [onload]"


def keep(address, text):
    """A chat whose title, folder, turns, thought, file, call and result are all this text."""
    chat, question, answer, result = (uuid.uuid4().hex for _ in range(4))
    call = {"id": "c1", "type": "function", "function": {"name": text, "arguments": text}}
    turns = (
        (question, None, "user", {"attachments": [{"name": text[:100], "text": text}]}),
        (answer, question, "assistant", {"tool_calls": [call], "finish_reason": "stop"}),
        (result, answer, "tool", {"tool_call_id": "c1"}),
    )
    with httpx.Client(base_url=address) as http:
        named = http.put(f"/history/chats/{chat}", json={"title": text[:180], "folder": text[:180]})
        assert named.status_code == 200, named.text
        for id, parent, role, data in turns:
            thought = text if role == "assistant" else None
            body = {"parent": parent, "role": role, "content": text, "reasoning": thought}
            made = http.put(f"/history/chats/{chat}/messages/{id}", json=body | {"data": data})
            assert made.status_code == 200, made.text
    return chat


@pytest.mark.parametrize("first", range(0, len(HOSTILE), 10))
def test_nothing_runs(opened, address, first):
    texts = HOSTILE[first : first + 10]
    chats = [keep(address, text) for text in texts]
    page = opened()
    for chat, text in zip(chats, texts, strict=True):
        page.goto(f"{address}/#/chat/{chat}")
        page.locator("article.tool").wait_for()
        for fold in page.locator("main summary").all():
            fold.click()
        page.mouse.move(300, 300)
        for link in page.locator("main article a").all():
            target = link.get_attribute("href") or ""
            assert target.startswith(("http:", "https:", "mailto:", "#")), (text, target)
        active = (
            "main :is(script, iframe, object, style, link, base, meta, form[action], [onerror])"
        )
        assert page.locator(active).count() == 0, text
        images = page.locator("main img").evaluate_all("all => all.map(one => one.src)")
        assert all(src.startswith(("data:", "blob:")) for src in images), (text, images)
        assert page.evaluate("window.__ran") is None, text


def test_what_got_in_nonetheless_would_be_seen_and_would_not_run(opened):
    """The first wall is what is shown; the policy is the second, and these tests see through it."""
    page = opened()
    hole = "document.querySelector('main').insertAdjacentHTML('beforeend', text)"
    page.evaluate(f"text => {{ {hole} }}", HOSTILE[1].replace("src=x", "src=data:,"))
    assert page.locator(f"main :is({ACTIVE})").count() == 1
    page.wait_for_function("() => document.querySelector('main > img:last-of-type').complete")
    assert page.evaluate("window.__ran") is None
