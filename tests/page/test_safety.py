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


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_runs(opened, address, text):
    chat, root, answer, result = (uuid.uuid4().hex for _ in range(4))
    call = {"id": "c1", "type": "function", "function": {"name": text, "arguments": text}}
    with httpx.Client(base_url=address) as http:
        body = {"title": text[:180], "folder": text[:180]}
        assert http.put(f"/history/chats/{chat}", json=body).status_code == 200
        files = [{"name": text[:100], "text": text}]
        for id, parent, role, data in (
            (root, None, "user", {"attachments": files}),
            (answer, root, "assistant", {"tool_calls": [call], "finish_reason": "stop"}),
            (result, answer, "tool", {"tool_call_id": "c1"}),
        ):
            body = {
                "parent": parent,
                "role": role,
                "content": text,
                "reasoning": text,
                "data": data,
            }
            if role != "assistant":
                del body["reasoning"]
            made = http.put(f"/history/chats/{chat}/messages/{id}", json=body)
            assert made.status_code == 200, made.text
    page = opened(f"#/chat/{chat}")
    page.locator("article.tool").wait_for()
    for fold in page.locator("summary").all():
        fold.click()
    for link in page.locator("article a").all():
        assert (link.get_attribute("href") or "").startswith(("http:", "https:", "mailto:", "#"))
    page.mouse.move(300, 300)
    page.wait_for_timeout(50)
    assert page.evaluate("window.__ran") is None
    assert (
        page.locator("main script, main iframe, main object, main style, main form[action]").count()
        == 0
    )
    foreign = page.locator("main img").evaluate_all("all => all.map(one => one.src)")
    assert not [src for src in foreign if not src.startswith(("data:", "blob:", address))]
