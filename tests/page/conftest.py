"""The real page in Debian's Chromium, before the real service and a small random model.

A browser is wanted on the machine; where none is, these tests are skipped, but never in CI.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.model.transformer import DeepSeekV3
from abyssal.serve.store import Store
from abyssal.tokenizer.bpe import Tokenizer
from tests.page.acts import DESKTOP
from tests.page.pupil import LESSONS, train
from tests.serve.wire import listening

TEXT = "the deep sea is dark and the fish see nothing. who swims there? 深海 البحر la mer il mare\n"
VOCAB_SIZE = 420


def pytest_collection_modifyitems(items):
    """Where nobody can look, nothing is looked at; CI must look."""
    if _browser() is not None or os.environ.get("CI"):
        return
    for item in items:
        if "tests/page" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="no chromium here: apt-get install chromium"))


def _browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def llm() -> LLM:
    """Two layers, one of experts, and words in several scripts."""
    tokenizer = Tokenizer.train([TEXT * 4], VOCAB_SIZE)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2,
        first_k_dense_replace=1, intermediate_size=48, num_nextn_predict_layers=0,
        num_attention_heads=2, q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, max_position_embeddings=4096,
        initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3))
    return LLM(model.eval(), tokenizer, options=EngineOptions(max_running=8))


@pytest.fixture(scope="session")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """One that knows its lessons, from a folder; a module names it llm where it wants it.

    Of several workers one trains it, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    school = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "school"
    try:
        school.mkdir()
        train(LESSONS, school / "learning").rename(school / "pupil")
    except FileExistsError:
        until_s = time.monotonic() + 300
        while not (school / "pupil").is_dir():
            assert time.monotonic() < until_s, "the worker that trains did not finish"
            time.sleep(0.1)
    return LLM(school / "pupil")


@pytest.fixture(scope="module")
def address(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service, without keys, with a history of its own."""
    file = tmp_path_factory.mktemp("history") / "history.sqlite3"
    with (
        Store(file) as store,
        listening(llm, api_keys=(), layout="v3.1", history=store) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module: a session's would keep an event loop where other tests want theirs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_browser() or "chromium", args=["--no-sandbox"]
        )
        yield browser
        browser.close()


Opened = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Opened]:
    """Opens an address like somebody new; nothing may go wrong that is not looked for."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open(address: str, path: str = "", first: str = "", **options: object) -> Page:
        context = browser.new_context(**{"locale": "en-US", "viewport": DESKTOP, **options})  # type: ignore[arg-type]
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        if first:
            page.add_init_script(first)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: _is_ours(request.url, address) or wrong.append(request.url)
        )
        page.goto(f"{address}/{path}")
        page.get_by_role("textbox", name="Message").or_(page.locator("main")).first.wait_for()
        return page

    yield open
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def opened(visit: Opened, address: str) -> Opened:
    """Opens the module's service."""
    return partial(visit, address)


def _is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))
