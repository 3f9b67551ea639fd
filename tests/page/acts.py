"""What people do on the page, and the windows they do it in."""

from playwright.sync_api import Page

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


# The last message, by the button that only finished ones have.
_LAST = "document.querySelector('article.last [id^=edit-]')?.id ?? ''"


def ask(page: Page, text: str) -> None:
    """Send a message, in whatever language the page speaks, and wait for the end of its answer."""
    before = page.evaluate(_LAST)
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")
    page.wait_for_function(f"before => !['', before].includes({_LAST})", arg=before)


def answered(page: Page) -> None:
    """Wait until nothing is being written."""
    page.locator("article.assistant.last, article.assistant").last.wait_for()
    page.wait_for_function("() => !document.querySelector('article[aria-busy=true]')")


# What new chats begin with, as the options' "Use for new chats" keeps it.
OPTIONS = "wishes => localStorage.setItem('abyssal.options', JSON.stringify(wishes))"
