"""Text that streams out token by token is the text that comes out at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.tokenizer.bpe import TextStream

property_test = settings(max_examples=200)


def pushed(stream: TextStream, tokens: list[int]) -> list[str]:
    return [stream.push(token) for token in tokens]


@property_test
@given(data=st.data())
def test_a_stream_of_any_tokens_adds_up_to_decode(tiny, data):
    tokens = data.draw(st.lists(st.integers(0, tiny.vocab_size - 1)))
    stream = TextStream(tiny)
    assert "".join(pushed(stream, tokens)) + stream.flush() == tiny.decode(tokens)


@property_test
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")))
def test_every_push_holds_only_complete_characters(tiny, text):
    stream = TextStream(tiny)
    parts = pushed(stream, tiny.encode(text))
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) == text
    assert stream.flush() == ""


def test_a_character_comes_with_its_last_byte(tiny):
    tokens = tiny.encode("\U0001f980")  # a crab, which training never saw: four byte tokens
    assert len(tokens) == 4
    assert pushed(TextStream(tiny), tokens) == ["", "", "", "\U0001f980"]


def test_a_flushed_stream_starts_anew(tiny):
    stream = TextStream(tiny)
    first, *_ = tiny.encode("\U0001f980")
    assert stream.push(first) + stream.flush() == "\ufffd"
    assert pushed(stream, tiny.encode("ab")) == pushed(TextStream(tiny), tiny.encode("ab"))
