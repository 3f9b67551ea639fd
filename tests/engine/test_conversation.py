"""A conversation remembers, and drops its oldest turns only when it must, and says so."""

import itertools

import pytest

from abyssal.engine.conversation import Conversation
from abyssal.engine.request import SamplingParams
from abyssal.errors import RequestError
from abyssal.tokenizer.chat import Message

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
