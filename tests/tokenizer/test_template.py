"""A saved folder opens in transformers, whose chat template then gives our ids, and says which
layout it has.
"""

import json

import pytest
from transformers import AutoTokenizer

from abyssal.errors import DataError
from abyssal.tokenizer.chat import Message, ToolCall, render
from abyssal.tokenizer.template import chat_template, layout_of

CALLS = (ToolCall("get_weather", '{"city": "Rome"}'), ToolCall("get_time", "{}"))
CONVERSATION = [
    Message("system", "You are Abyssal."),
    Message("user", "Weather and time?\n\nIn Rome, please.\n"),
    Message("assistant", None, tool_calls=CALLS),
    Message("tool", "22 C"),
    Message("tool", "09:00\n"),
    Message("assistant", "\n\nWarm, and nine. 从前"),
    Message("user", " 12345?"),
    Message("assistant", "\n5 digits.", reasoning="One, two.\n"),
]


@pytest.mark.parametrize(
    ("layout", "thinking"), [("v3", False), ("r1", False), ("v3.1", False), ("v3.1", True)]
)
def test_transformers_gives_our_ids(tiny, texts, tmp_path, layout, thinking):
    tiny.save(tmp_path, layout=layout, model_max_length=2048)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tiny.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tiny.bos_token_id, tiny.eos_token_id)
    assert theirs.model_max_length == 2048
    for text in texts[:3]:
        assert theirs(text, add_special_tokens=False).input_ids == tiny.encode(text)
    for end in range(2, len(CONVERSATION) + 1):
        messages = CONVERSATION[:end]
        for prompt in (False, True):
            tokens = theirs.apply_chat_template(
                [message.to_dict() for message in messages],
                add_generation_prompt=prompt,
                thinking=thinking,
                return_dict=False,
            )
            assert tokens == render(messages, tiny, layout, thinking, prompt).tokens


def folder_with(path, template):
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), "utf-8")
    return path


@pytest.mark.parametrize("layout", ["v3", "r1", "v3.1"])
def test_the_layout_of_a_saved_folder_is_told_from_its_template(tiny, tmp_path, layout):
    tiny.save(tmp_path / "ours", layout=layout)
    assert layout_of(tmp_path / "ours") == layout
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert layout_of(tmp_path / "theirs") == layout


def test_the_layout_of_the_published_r1_is_told_from_its_marks(published_path):
    assert layout_of(published_path.parent) == "r1"


@pytest.mark.parametrize(
    ("layout", "rest"),
    [
        ("v3", ""),
        ("r1", "{% set content = content.split('</think>')[-1] %}"),
        ("v3.1", "{% if not thinking is defined %}{% set thinking = false %}{% endif %}</think>"),
    ],
)
def test_templates_we_do_not_know_by_heart_are_told_by_their_marks(tmp_path, layout, rest):
    template = "{{ bos_token }}<\uff5cUser\uff5c>{{ x }}<\uff5cAssistant\uff5c>" + rest
    assert layout_of(folder_with(tmp_path, template)) == layout
    (tmp_path / "chat_template.jinja").write_text(chat_template("v3"), "utf-8")
    assert layout_of(tmp_path) == "v3"  # the file of its own is the newer one


def test_a_folder_without_a_template_of_ours_wants_to_be_told(tmp_path):
    with pytest.raises(DataError, match=r"no chat template .* give --layout"):
        layout_of(tmp_path)
    with pytest.raises(DataError, match=r"no chat template .* give --layout"):
        layout_of(folder_with(tmp_path, None))
    with pytest.raises(DataError, match=r"not of V3, R1 or V3\.1; give --layout"):
        layout_of(folder_with(tmp_path, "<|im_start|>{{ role }}</think>"))
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"is not JSON .* or give --layout"):
        layout_of(tmp_path)
