"""Where the service has keys, the page asks for one, once."""

from abyssal.serve.store import Store
from tests.page.acts import ask
from tests.serve.wire import KEY, listening


def sign_in(page, key, *, remember=False):
    page.get_by_label("API key").fill(key)
    if remember:
        page.get_by_label("Remember in this browser").check()
    page.get_by_role("button", name="Sign in").click()


def test_a_key_is_asked_for_and_kept_as_long_as_told(llm, browser, tmp_path):
    with (
        Store(tmp_path / "kept" / "history.sqlite3") as store,
        listening(llm, layout="v3.1", history=store) as address,
    ):
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(address)
        sign_in(page, "sk-nobody-knows-this-one")
        page.get_by_text("The server does not know this key.").wait_for()
        sign_in(page, KEY)
        ask(page, "the deep sea")
        page.reload()
        page.locator("article.assistant").wait_for()
        other = context.new_page()  # another window: the key was not to be remembered
        other.goto(address)
        sign_in(other, KEY, remember=True)
        other.get_by_role("listitem").filter(has_text="the deep sea").wait_for()
        third = context.new_page()
        third.goto(address)
        third.get_by_role("listitem").filter(has_text="the deep sea").wait_for()
        context.close()
