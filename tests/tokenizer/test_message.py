"""Messages: what the API's JSON says, and what cannot be said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import DataError
from abyssal.tokenizer.chat import Message, ToolCall

calls = st.lists(st.builds(ToolCall, st.text(min_size=1), st.text()), min_size=1).map(tuple)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), st.text()),
    st.builds(Message, st.just("assistant"), st.text(), st.none() | st.text()),
    st.builds(Message, st.just("assistant"), st.none() | st.text(), tool_calls=calls),
    st.builds(Message, st.just("assistant"), st.text(), prefix=st.booleans()),
    st.builds(Message, st.just("tool"), st.text(), tool_call_id=st.none() | st.text()),
)


@given(message=messages)
def test_a_message_survives_its_json(message):
    assert Message.from_dict(message.to_dict()) == message


def test_the_json_of_a_client_is_understood():
    function = {"name": "f", "arguments": {"city": "Zürich"}}
    fields = {"role": "assistant", "content": None, "refusal": None, "reasoning": "hm"}
    fields["tool_calls"] = [{"id": "call_0", "type": "function", "function": function}]
    call = ToolCall("f", '{"city": "Zürich"}')
    assert Message.from_dict(fields) == Message("assistant", None, "hm", (call,))


@given(texts=st.lists(st.text(), max_size=4))
def test_text_parts_are_the_text_they_add_up_to(texts):
    parts = [{"type": "text", "text": text} for text in texts]
    fields = {"role": "user", "content": parts, "name": "Ada"}
    assert Message.from_dict(fields) == Message("user", "".join(texts))


def test_a_developer_speaks_as_the_system():
    fields = {"role": "developer", "content": "Be brief."}
    assert Message.from_dict(fields) == Message("system", "Be brief.")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ("hello", "a JSON object"),
        ({"content": "hello"}, "no role"),
        ({"role": "robot", "content": ""}, "role='robot'"),
        ({"role": 3, "content": ""}, "role=3"),
        ({"role": "user"}, "no content"),
        ({"role": "user", "content": 5}, "content=5"),
        ({"role": "user", "content": ["hello"]}, "a string was expected"),
        ({"role": "user", "content": [{"type": "image_url", "text": "a"}]}, "image_url"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "a string was expected"),
        ({"role": "developer"}, "a system message has no content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "no content"),
        ({"role": "user", "content": "", "prefix": True}, "prefix"),
        ({"role": "user", "content": "", "reasoning_content": ""}, "reasoning"),
        ({"role": "assistant", "content": "", "prefix": "yes"}, "true or false"),
        ({"role": "assistant", "content": None, "tool_calls": "f()"}, "a list of calls"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "with a function"),
        ({"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}, "no function"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            "arguments=None of f",
        ),
    ],
)
def test_what_is_not_a_message_is_refused_in_one_line(fields, complaint):
    with pytest.raises(DataError) as refusal:
        Message.from_dict(fields)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_long_value_is_not_repeated_in_full():
    with pytest.raises(DataError) as refusal:
        Message.from_dict({"role": "user", "content": ["x" * 10_000]})
    assert len(str(refusal.value)) < 200


def test_an_unfinished_message_cannot_call_tools():
    with pytest.raises(DataError, match="unfinished"):
        Message("assistant", "", tool_calls=(ToolCall("f", "{}"),), prefix=True)
