"""A stop text never shows, however the text around it is cut into tokens."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.engine.stop import StopStrings, Writer
from abyssal.tokenizer.bpe import END_THINK

LETTERS = st.text("ab", max_size=14)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=3).map(tuple)


def read(text: str, stops: tuple[str, ...], cuts: list[int]) -> tuple[str, bool]:
    """What a reader sees of text that comes in the pieces between the cuts."""
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    strings = StopStrings(stops)
    seen = ""
    for start, end in itertools.pairwise(borders):
        certain, stopped = strings.push(text[start:end])
        seen += certain
        if stopped:
            return seen, True
    return seen + strings.flush(), False


def before_first_complete_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The definition: the first end of a stop text; of several that end there, the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=2000)
@given(LETTERS, STOPS, st.lists(st.integers(0, 20), max_size=6))
def test_the_text_ends_before_the_first_stop_text_under_every_split(text, stops, cuts):
    assert read(text, stops, cuts) == before_first_complete_stop(text, stops)


@given(LETTERS, STOPS)
def test_only_what_may_become_a_stop_text_is_held_back(text, stops):
    strings = StopStrings(stops)
    certain, stopped = strings.push(text)
    held = text[len(certain) :]
    assert stopped or not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_text_across_tokens_and_characters_is_cut(tokenizer):
    text = "the deep 🐟 sea 🌊 is dark"
    tokens = tokenizer.encode(text)
    assert len(tokens) > 8
    for at in range(len(text)):
        for end in range(at + 1, min(at + 5, len(text)) + 1):
            stop = text[at:end]
            writer = Writer(tokenizer, (stop,), thinking=False)
            seen = ""
            for token in tokens:
                piece = writer.push(token)
                seen += piece.text
                if piece.stopped:
                    break
            assert piece.stopped
            assert seen == text[: text.find(stop)]


def test_an_unfinished_character_at_the_end_is_what_decode_makes_of_it(tokenizer):
    tokens = tokenizer.encode("sea 🦑")[:-1]
    writer = Writer(tokenizer, (), thinking=False)
    seen = "".join(writer.push(token).text for token in tokens) + writer.finish().text
    assert seen == tokenizer.decode(tokens)
    assert seen.endswith("\N{REPLACEMENT CHARACTER}")


def test_thoughts_are_kept_apart_and_do_not_stop_the_answer(tokenizer):
    tokens = [
        *tokenizer.encode("dark dark"),
        tokenizer.control(END_THINK),
        *tokenizer.encode("the sea is dark"),
    ]
    writer = Writer(tokenizer, ("dark",), thinking=True)
    pieces = [writer.push(token) for token in tokens]
    assert "".join(piece.reasoning for piece in pieces) == "dark dark"
    assert "".join(piece.text for piece in pieces) == "the sea is "
    assert [piece.stopped for piece in pieces] == [False] * (len(pieces) - 1) + [True]
