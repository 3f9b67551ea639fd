"""Chats as files for people: the branch that is shown, and what came with it."""

import pytest

from abyssal.serve.transfer import branch, file_name, markdown_of

A, B, C = (letter * 32 for letter in "abc")


def message(id, parent=None, role="user", content="hello", **more):
    return {"id": id, "parent": parent, "role": role, "content": content, "reasoning": None,
            "data": {}, **more}  # fmt: skip


def chat(*messages, current=None, **more):
    return {"title": "The sea", "folder": None, "options": {}, "current": current, "created": 0,
            "messages": list(messages), **more}  # fmt: skip


def test_a_branch_goes_from_the_first_message_to_the_current_one():
    tree = [message(A), message(B, A), message(C, A)]
    assert [one["id"] for one in branch(tree, B)] == [A, B]
    assert [one["id"] for one in branch(tree, None)] == [A, C]
    assert branch([], None) == []


def test_a_chat_reads_as_a_text():
    answer = message(B, A, "assistant", "42", reasoning="six times\nseven")
    text = markdown_of(
        chat(message(A), answer, folder="fish", options={"system": "Be brief."}), is_first=True
    )
    assert text == (
        "# The sea\n\n*1970-01-01 00:00 UTC, folder fish*\n\n## System\n\nBe brief.\n\n"
        "## User\n\nhello\n\n## Assistant\n\n> six times\n> seven\n\n42\n"
    )
    assert markdown_of(chat(), is_first=False).startswith("\n---\n\n# The sea")


def test_files_and_calls_stand_between_fences_longer_than_theirs():
    data = {"attachments": [{"name": "a.md", "text": "```\nx\n```"}], "tool_calls": [{"id": "1"}]}
    text = markdown_of(chat(message(A, data=data)), is_first=True)
    assert "Attached: a.md\n\n````\n```\nx\n```\n````\n\n```json\n[" in text


@pytest.mark.parametrize(
    "more",
    [
        {"options": {"system": {"a": 1}}},
        {"created": 2**53},
        {"title": ""},
        {"title": "two\n# lines", "folder": "a\nb"},
        {"messages": [message(A, data={"attachments": [5, {"name": 1}], "tool_calls": 7})]},
        {"messages": [message(A, data={"attachments": "x"}, content="")]},
    ],
)
def test_any_chat_can_be_written(more):
    text = markdown_of({**chat(message(A)), **more}, is_first=True)
    assert text.count("\n# ") == 0
    assert text.startswith("# ")


def test_a_download_has_a_plain_name():
    assert file_name(A, "md") == "abyssal-chat-aaaaaaaa.md"
    assert file_name("", "json").startswith("abyssal-chats-20")
