"""How fluid the chat page is: 500 turns, an answer being streamed, and a processor slowed down.

    python benchmarks/page.py FOLDER [--turns 500] [--slower 4] [--tokens-per-s 100]

Serves FOLDER, writes a long chat into a history of its own, opens it in Chromium, slows the page's
processor and its network down to that many tokens a second, scrolls through all of it, asks for an
answer, and types a message meanwhile. Prints the 50th and 95th percentile of the time between two
frames, and of the time from a key to the frame that shows it.
"""

import argparse
import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence

import httpx
import numpy as np
from playwright.sync_api import Page, sync_playwright

from abyssal.serve.process import served

TURN = """The sea is **deep**, and `fish` see nothing:

| depth | light |
| --- | --- |
| 200 m | little |

```python
def dive(depth: int) -> bool:
    return depth > 200
```

So it goes, $x^2 + y^2$, for a while, until somebody turns on a light of their own. """
WATCH = """() => {
  const seen = { frames: [], keys: [] };
  let last = performance.now();
  const frame = (now) => {
    seen.frames.push(now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  document.querySelector('#message').addEventListener('keydown', () => {
    const pressed = performance.now();
    const shown = () => seen.keys.push(performance.now() - pressed);
    requestAnimationFrame(() => setTimeout(shown));
  });
  window.seen = seen;
}"""
BYTES_PER_TOKEN = 790  # of a streamed chunk with its insight
TYPED = "how deep is the sea, and who turns on the light? "  # while 400 tokens come


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a model folder; a chat model")
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--slower", type=float, default=4.0, help="times")
    parser.add_argument("--tokens-per-s", type=float, default=100.0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        served(args.folder, "--history", f"{home}/history.sqlite3") as (address, _),
    ):
        chat = written(address, args.turns)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(locale="en-US", viewport={"width": 1280, "height": 800})
            page.goto(f"{address}/#/chat/{chat}")
            page.locator("article.last").wait_for()
            slow_down(page, args.slower, args.tokens_per_s)
            page.evaluate(WATCH)
            scroll_through(page)
            frames = {"frames, scrolling through all turns": frames_of(page)}
            ask(page)
            frames["frames, from sending to the first words"] = frames_of(page)
            found = watched(page)
            frames["frames, while an answer comes"] = found["frames"]
            report({**frames, "from a key to its frame, meanwhile": found["keys"]})
            browser.close()


def written(address: str, turns: int) -> str:
    """A chat of so many turns; its id."""
    chat, parent = uuid.uuid4().hex, None
    with httpx.Client(base_url=address, timeout=30) as http:
        http.put(f"/history/chats/{chat}", json={"title": "long"}).raise_for_status()
        for turn in range(turns):
            message = uuid.uuid4().hex
            role = "assistant" if turn % 2 else "user"
            body = {"parent": parent, "role": role, "content": f"{turn}. {TURN}", "data": {}}
            http.put(f"/history/chats/{chat}/messages/{message}", json=body).raise_for_status()
            parent = message
    return chat


def slow_down(page: Page, times: float, tokens_per_s: float) -> None:
    """The page's processor, and what streams to it; answers are as long as they can be."""
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": times})
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {
        "offline": False, "latency": 0, "uploadThroughput": -1,
        "downloadThroughput": tokens_per_s * BYTES_PER_TOKEN,
    })  # fmt: skip
    longer = {"ignore_eos": True}
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=json.dumps({**route.request.post_data_json, **longer})
    ))  # fmt: skip


def scroll_through(page: Page) -> None:
    """To the first turn, as fast as a wheel can."""
    page.mouse.move(700, 400)
    while page.locator(".earlier").count() or page.locator(".turns").evaluate(
        "one => one.scrollTop"
    ):
        page.mouse.wheel(0, -3000)
        page.wait_for_timeout(60)


def frames_of(page: Page) -> list[float]:
    """Milliseconds between frames since the last look."""
    found: list[float] = page.evaluate("window.seen.frames.splice(0)")
    return found


def ask(page: Page) -> None:
    """Send a question and wait for the first words of its answer."""
    field = page.get_by_role("textbox", name="Message")
    field.fill("Please tell me a long story.")
    field.press("Enter")
    page.locator("article[aria-busy=true] p:not(.waiting)").first.wait_for()


def watched(page: Page) -> dict[str, list[float]]:
    """Times in milliseconds while an answer comes and somebody types; and how much came."""
    page.evaluate(WATCH)
    before = len(page.locator("article").last.text_content() or "")
    page.keyboard.type(TYPED, delay=60)
    after = len(page.locator("article").last.text_content() or "")
    busy = page.locator("article[aria-busy=true]").count()
    print(f"{after - before} characters came meanwhile; the answer is {'not ' * busy}over")
    found: dict[str, list[float]] = page.evaluate("window.seen")
    return found


def report(found: dict[str, Sequence[float]]) -> None:
    """Percentiles."""
    print("| | times | p50, ms | p95, ms | longest, ms |\n| --- | --- | --- | --- | --- |")
    for name, values in found.items():
        print(f"| {name} | {len(values)} | {np.percentile(values, 50):.0f} "
              f"| {np.percentile(values, 95):.0f} | {max(values):.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
