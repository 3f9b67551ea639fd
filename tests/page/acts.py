"""What people do on the page, and the windows they do it in."""

from playwright.sync_api import Page

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


def ask(page: Page, text: str) -> None:
    """Send a message and wait for the end of its answer."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    answered(page)


def answered(page: Page) -> None:
    """Wait until nothing is being written."""
    page.locator("article.assistant.last, article.assistant").last.wait_for()
    page.wait_for_function("() => !document.querySelector('article[aria-busy=true]')")


# What new chats begin with, as the options' "Use for new chats" keeps it.
OPTIONS = "wishes => localStorage.setItem('abyssal.options', JSON.stringify(wishes))"
