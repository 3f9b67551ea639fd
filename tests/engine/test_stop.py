"""A stop text never shows, however the text around it is cut into tokens; thoughts and calls are
told from the answer.
"""

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.engine.stop import Piece, StopStrings, Writer
from abyssal.errors import DataError
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import END_THINK, THINK, Tokenizer
from abyssal.tokenizer.calls import join_calls
from abyssal.tokenizer.chat import Message, ToolCall, render

LAYOUTS = ["v3", "r1", "v3.1"]

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


@settings(max_examples=1000)
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


def written(writer: Writer, tokens: list[int]) -> Piece:
    """All that a writer makes of an answer."""
    pieces = []
    for token in tokens:
        pieces.append(writer.push(token))
        if pieces[-1].stopped:
            break
    else:
        pieces.append(writer.finish())
    return Piece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.calls),
        any(piece.stopped for piece in pieces),
    )


def split_by_thoughts(tokens: list[int], tokenizer: Tokenizer, thinking: bool) -> tuple[str, str]:
    """The definition: answer and thought, each part between the borders decoded at once."""
    borders = {False: tokenizer.control(THINK), True: tokenizer.control(END_THINK)}
    said, part = {False: "", True: ""}, []
    for token in tokens:
        if token == borders[thinking]:
            said[thinking] += tokenizer.decode(part)
            thinking, part = not thinking, []
        else:
            part.append(token)
    said[thinking] += tokenizer.decode(part)
    return said[False], said[True]


def test_ten_thousand_random_runs_add_up_to_their_full_decode(tokenizer):
    rng = random.Random(0)
    emoji = [tokenizer.encode(sign) for sign in "🐟🌊🦑𝄞深"]
    think = [[tokenizer.control(THINK)], [tokenizer.control(END_THINK)]]
    assert max(map(len, emoji)) > 2
    for _ in range(10_000):
        tokens: list[int] = []
        for _ in range(rng.randrange(12)):
            one = [rng.randrange(tokenizer.vocab_size)]
            tokens += rng.choice([one, *emoji, *think] if rng.random() < 0.7 else [one])
        thinking = rng.random() < 0.3
        text, reasoning = split_by_thoughts(tokens, tokenizer, thinking)
        found = written(Writer(tokenizer, (), thinking), tokens)
        assert (found.text, found.reasoning) == (text, reasoning)
        if not set(tokens) & {token for mark in think for token in mark} and not thinking:
            assert found.text == tokenizer.decode(tokens)


@given(signs=st.lists(st.sampled_from(["🐟", "🦑", "👩‍🚀", "深", "a"]), max_size=8), data=st.data())
def test_no_piece_holds_half_a_character_even_with_control_tokens_inside(tokenizer, signs, data):
    marks = [tokenizer.bos_token_id, tokenizer.control(control.USER)]
    tokens = []
    for token in tokenizer.encode("".join(signs)):
        tokens += [token, *data.draw(st.lists(st.sampled_from(marks), max_size=1))]
    writer = Writer(tokenizer, (), thinking=False, layout="v3.1")
    pieces = [writer.push(token).text for token in tokens]
    assert "".join(pieces) == "".join(signs)
    assert writer.finish() == Piece("")


names = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arguments = st.one_of(
    st.text("{}[]\"'\\\\`\n 🦑jsonfucti", max_size=30),
    st.dictionaries(st.text(), values, max_size=3).map(json.dumps),
    st.dictionaries(st.text(), values, max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False, indent=1)
    ),
)
calls = st.lists(st.builds(ToolCall, names, arguments), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("layout", "thinking"), [("v3", False), ("r1", True), ("v3.1", False), ("v3.1", True)]
)
@settings(max_examples=100)
@given(calls=calls, content=st.none() | st.text(), thought=st.text())
def test_calls_that_render_wrote_are_read_again(
    tokenizer, layout, thinking, calls, content, thought
):
    question = [Message("user", "1")]
    asked = Message("assistant", content, thought if thinking else None, calls)
    prompt = render(question, tokenizer, layout, thinking)
    whole = render([*question, asked], tokenizer, layout, thinking, add_generation_prompt=False)
    assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
    answer = whole.tokens[len(prompt.tokens) :]
    found = written(Writer(tokenizer, (), thinking, layout), answer)
    assert join_calls(found.calls) == calls
    before, after = ("\n", "\n\n") if layout == "r1" else ("", "")
    if END_THINK not in (content or ""):  # render would take what is before for a thought
        assert found.text == after + (content or "")
    assert found.reasoning == (thought + before if thinking else "")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_run_of_control_tokens_and_text_loses_text(tokenizer, layout):
    rng = random.Random(0)
    texts = [tokenizer.encode(text) for text in ["function", "the\n```json\n", "deep", "{🐟", "\n"]]
    marks = [[tokenizer.control(name)] for name in (*control.CLOSING, control.TOOL_SEP)]
    for _ in range(3_000):
        tokens = list(
            itertools.chain.from_iterable(rng.choices(texts + marks, k=rng.randrange(20)))
        )
        found = written(Writer(tokenizer, (), rng.random() < 0.3, layout), tokens)
        named = [call for call in found.calls if call.name is not None]
        assert [call.index for call in named] == list(range(len(named)))
        calls = "".join((call.name or "") + call.arguments for call in found.calls)
        lost = Counter(tokenizer.decode(tokens))
        lost.subtract(found.text + found.reasoning + calls)
        assert min(lost.values(), default=0) >= 0
        assert set(lost.elements()) <= set("function```json \n")


def marked(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Tokens of text, where the name of a control token stands alone as that token."""
    known = {name: [tokenizer.control(name)] for name in control.CLOSING}
    return [token for part in parts for token in known.get(part) or tokenizer.encode(part)]


CALL = (
    control.TOOL_CALL_BEGIN,
    "f",
    control.TOOL_SEP,
    '{"the": "dark sea"}',
    control.TOOL_CALL_END,
)
CALLS = (control.TOOL_CALLS_BEGIN, *CALL, *CALL, control.TOOL_CALLS_END)


def test_calls_are_not_text_and_stop_nothing(tokenizer):
    tokens = marked(tokenizer, "the sea", *CALLS, " is dark")
    found = written(Writer(tokenizer, ("dark", "sea is"), False, "v3.1"), tokens)
    assert found.text == "the "  # what stands on both sides of the calls is one text
    assert found.stopped
    assert join_calls(found.calls) == (ToolCall("f", '{"the": "dark sea"}'),) * 2


def test_calls_are_left_alone_where_no_layout_is_given(tokenizer):
    tokens = marked(tokenizer, "the sea", *CALLS)
    found = written(Writer(tokenizer, (), False), tokens)
    assert found.calls == ()
    assert found.text == tokenizer.decode(tokens)


def test_calls_in_two_batches_are_counted_on(tokenizer):
    writer = Writer(tokenizer, (), False, "v3.1")
    found = written(writer, marked(tokenizer, *CALLS, "and", *CALLS))
    assert [call.index for call in found.calls if call.name] == [0, 1, 2, 3]
    assert found.text == "and"


def test_a_call_without_the_token_that_opens_all_calls_is_one(tokenizer):
    found = written(Writer(tokenizer, (), False, "v3.1"), marked(tokenizer, "the", *CALL))
    assert found.text == "the"
    assert len(join_calls(found.calls)) == 1


def test_text_behind_the_calls_comes_at_once(tokenizer):
    writer = Writer(tokenizer, (), False, "v3.1")
    for token in marked(tokenizer, *CALLS):
        assert writer.push(token).text == ""
    assert "".join(writer.push(token).text for token in tokenizer.encode("dark")) == "dark"


def test_a_stop_text_may_end_with_a_control_token(tokenizer):
    stray = marked(tokenizer, control.TOOL_CALLS_BEGIN, "the dark sea", *CALL)
    found = written(Writer(tokenizer, ("dark",), False, "v3.1"), stray)
    assert found == Piece("the ", stopped=True)
    half = [*tokenizer.encode("the 𝄞")[:-1], *marked(tokenizer, *CALLS)]
    found = written(Writer(tokenizer, ("\N{REPLACEMENT CHARACTER}",), False, "v3.1"), half)
    assert found == Piece("the ", stopped=True)


def test_a_call_ends_a_thought_that_nobody_ended(tokenizer):
    tokens = marked(tokenizer, "hm", *CALLS, "so")
    found = written(Writer(tokenizer, (), True, "v3.1"), tokens)
    assert (found.reasoning, found.text) == ("hm", "so")
    assert len(join_calls(found.calls)) == 2


def test_an_answer_may_open_a_thought_by_itself(tokenizer):
    tokens = marked(tokenizer, THINK, "the deep", END_THINK, "the sea")
    for layout in (None, *LAYOUTS):
        found = written(Writer(tokenizer, ("deep",), False, layout), tokens)
        assert found == Piece("the sea", "the deep")


def test_calls_come_as_they_are_written(tokenizer):
    writer = Writer(tokenizer, (), False, "v3.1")
    head = marked(tokenizer, control.TOOL_CALLS_BEGIN, *CALL[:3])
    assert [writer.push(token).calls for token in head][-1] == ((0, "f", ""),)
    for token in tokenizer.encode(CALL[3]):
        assert writer.push(token).calls == ((0, None, tokenizer.decode([token])),)


def test_a_thought_that_could_never_end_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace(END_THINK, "<free>"), "utf-8")
    first_v3 = Tokenizer.load(path)
    assert written(Writer(first_v3, (), False, "v3"), first_v3.encode("sea")).text == "sea"
    with pytest.raises(DataError, match="no control token </think>"):
        Writer(first_v3, (), thinking=True)
