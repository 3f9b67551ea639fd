"""A saved folder opens in transformers, whose chat template then gives our ids."""

import pytest
from transformers import AutoTokenizer

from abyssal.tokenizer.chat import Message, ToolCall, render

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
