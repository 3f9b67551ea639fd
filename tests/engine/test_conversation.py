"""A conversation remembers, and drops its oldest turns only when it must, and says so."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.cache import PagedCache
from abyssal.engine.conversation import Conversation, Figures
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.engine.request import Delta, SamplingParams
from abyssal.errors import DataError, RequestError
from abyssal.tokenizer.chat import Message, ToolCall

PARAMS = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)


def say(conversation: Conversation, text: str) -> str:
    return "".join(delta.text for delta in conversation.ask(text))


def test_each_answer_is_that_of_the_whole_history(llm):
    conversation = Conversation(llm, PARAMS, system="dark")
    first = say(conversation, "the sea")
    second = say(conversation, "the fish")
    system = Message("system", "dark")
    history = [system, Message("user", "the sea")]
    assert first == llm.chat(history, PARAMS).text
    history += [Message("assistant", first), Message("user", "the fish")]
    assert second == llm.chat(history, PARAMS).text
    conversation.reset()
    assert say(conversation, "the sea") == first


def test_the_oldest_turns_leave_when_the_context_is_full_and_the_system_message_stays(llm):
    conversation = Conversation(llm, PARAMS, system="dark")
    dropped = 0
    for i in range(12):
        say(conversation, "the deep sea " * (i % 4 + 1))
        dropped += conversation.num_dropped
        asked = [Message("system", "dark"), *conversation.turns[:-1]]
        assert llm.count_tokens(asked) <= llm.config.max_position_embeddings - PARAMS.max_tokens
    assert dropped > 0
    assert len(conversation.turns) == 24 - dropped
    assert conversation.turns[0].role == "user"


def test_a_message_too_long_even_alone_is_refused_and_forgotten(llm):
    conversation = Conversation(llm, PARAMS)
    say(conversation, "the sea")
    with pytest.raises(RequestError, match="conversation"):
        conversation.ask("深海" * 200)
    assert all("深海" not in (turn.content or "") for turn in conversation.turns)
    assert say(conversation, "the fish")


def test_an_answer_broken_off_is_remembered_as_far_as_it_was_read(llm):
    conversation = Conversation(llm, PARAMS)
    deltas = conversation.ask("the sea")
    read = "".join(delta.text for delta in itertools.islice(deltas, 3))
    deltas.close()
    assert conversation.turns == [Message("user", "the sea"), Message("assistant", read)]


def test_another_answer_takes_the_place_of_the_one_before(llm):
    conversation = Conversation(llm, replace(PARAMS, temperature=1.0, seed=40), system="dark")
    say(conversation, "the sea")
    first = say(conversation, "the fish")
    before = conversation.turns[:-1]
    tries = ["".join(delta.text for delta in conversation.retry()) for _ in range(3)]
    assert conversation.turns[:-1] == before
    assert conversation.turns[-1] == Message("assistant", tries[-1])
    asked = [Message("system", "dark"), *before]
    expected = [
        llm.chat(asked, replace(PARAMS, seed=40 + i), temperature=1.0).text for i in range(4)
    ]
    assert [first, *tries] == expected
    assert len(set(expected)) > 1
    told = say(conversation, "dark")
    assert conversation.question == "dark"
    asked = conversation.messages[:-1]
    assert told == llm.chat(asked, replace(PARAMS, seed=40), temperature=1.0).text


def test_without_a_question_there_is_no_other_answer(llm):
    conversation = Conversation(llm, PARAMS)
    with pytest.raises(RequestError, match="ask one first"):
        conversation.retry()
    assert conversation.turns == []


def test_a_question_the_engine_will_not_take_is_forgotten(model, tokenizer):
    page = PagedCache.bytes_per_page(model.config, 2, torch.float32)
    llm = LLM(model, tokenizer, options=EngineOptions(cache_bytes=2 * page))
    conversation = Conversation(llm, replace(PARAMS, max_tokens=60))
    say(conversation, "the sea")
    before = conversation.turns
    with pytest.raises(RequestError, match="cache"):
        say(conversation, "the deep sea " * 3)
    assert conversation.turns == before


def test_a_question_whose_answer_nobody_read_can_be_asked_again(llm):
    conversation = Conversation(llm, PARAMS)
    conversation.ask("the sea").close()
    assert conversation.question == "the sea"
    said = "".join(delta.text for delta in conversation.retry())
    assert said == llm.chat("the sea", replace(PARAMS, seed=2)).text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TURNS = st.lists(
    st.builds(Message, st.just("user"), TEXTS)
    | st.builds(Message, st.just("assistant"), TEXTS, st.none() | TEXTS)
    | st.builds(
        Message, st.just("assistant"), st.none(), st.none(),
        st.tuples(st.builds(ToolCall, st.just("look"), st.just('{"at": 3}'))),
    )
    | st.builds(Message, st.just("tool"), TEXTS, tool_call_id=st.none() | TEXTS),
    min_size=1, max_size=5,
)  # fmt: skip


@given(turns=TURNS, system=st.none() | TEXTS.filter(bool))
def test_a_saved_conversation_loads_as_it_was(llm, tmp_path_factory, turns, system):
    file = tmp_path_factory.mktemp("talk") / "talk.json"
    conversation = Conversation(llm, PARAMS, system)
    conversation.turns = turns
    conversation.save(file)
    assert [path.name for path in file.parent.iterdir()] == ["talk.json"]
    other = Conversation(llm, PARAMS)
    other.load(file)
    assert (other.system, other.turns) == (system, turns)


def test_a_list_of_messages_loads_too_and_system_messages_are_joined(llm, tmp_path):
    file = tmp_path / "talk.json"
    rows = [{"role": role, "content": role} for role in ("system", "user", "system", "assistant")]
    file.write_text(json.dumps(rows))
    conversation = Conversation(llm, PARAMS)
    conversation.load(file)
    assert conversation.system == "system\n\nsystem"
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        ("{broken", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ("{}", "no list of messages"),
        ('{"messages": []}', "no list of messages"),
        ('[{"role": "king", "content": "a"}]', "role='king'"),
        ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
        ('[{"role": "assistant", "content": "a", "prefix": true}]', "unfinished"),
    ],
)
def test_a_file_of_something_else_is_refused_and_the_talk_goes_on(llm, tmp_path, content, named):
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    conversation = Conversation(llm, PARAMS, system="dark")
    say(conversation, "the sea")
    before = conversation.messages
    with pytest.raises(DataError, match=named):
        conversation.load(file)
    assert conversation.messages == before


def test_a_file_that_cannot_be_written_is_refused(llm, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        Conversation(llm, PARAMS, system="dark").save(tmp_path / "gone" / "talk.json")


def test_figures_add_up_over_the_answers(llm):
    conversation = Conversation(llm, PARAMS)
    assert conversation.latest == conversation.total == Figures()
    say(conversation, "the sea")
    first = conversation.latest
    assert (first.answers, first.answer_tokens) == (1, 6)
    assert first.prompt_tokens == llm.count_tokens([Message("user", "the sea")])
    assert first.first_token_s > 0
    assert first.tokens_per_s == 5 / first.writing_s
    say(conversation, "the fish")
    assert conversation.total == first + conversation.latest
    assert conversation.total.answer_tokens == 12
    mean_s = (first.first_token_s + conversation.latest.first_token_s) / 2
    assert conversation.total.to_dict()["first_token_s"] == pytest.approx(mean_s)


def test_a_question_asked_again_is_found_in_the_prefix_cache(llm):
    conversation = Conversation(llm, PARAMS)
    question = next(
        text for n in range(99)
        if llm.count_tokens([Message("user", text := "fish " * n)]) >= PAGE + 2
    )  # fmt: skip
    say(conversation, question)
    assert conversation.latest.cached_tokens == 0
    for _ in conversation.retry():
        pass
    assert conversation.latest.cached_tokens == PAGE


def test_a_thinking_talk_keeps_thought_and_answer_apart(llm):
    class Thinker:
        """The same model, which closes its thought after the fifth token."""

        config, count_tokens = llm.config, llm.count_tokens

        def stream(self, messages, params, *, layout, thinking):
            yield from [Delta(0, 5, reasoning="hm"), Delta(0, 6, text="ah", finish_reason="stop")]

    conversation = Conversation(Thinker(), PARAMS, layout="v3.1", thinking=True)
    say(conversation, "the sea")
    assert conversation.turns[-1] == Message("assistant", "ah", "hm")
    with pytest.raises(DataError, match="cannot think"):
        Conversation(llm, PARAMS, layout="v3", thinking=True)
