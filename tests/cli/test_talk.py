"""A talk: questions answered as they come, and what the commands with a slash do."""

import builtins
import json
import readline
import signal

import pytest

from abyssal.cli import console, slash, talk
from abyssal.engine.conversation import Conversation
from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, SamplingParams
from abyssal.tokenizer.calls import CallPiece
from abyssal.tokenizer.chat import Message

OPTIONS = ("--max-tokens", "8", "--temperature", "0")


@pytest.fixture(scope="module")
def llm(folder) -> LLM:
    return LLM(folder)


class Script:
    """A model that answers with given deltas."""

    def __init__(self, llm: LLM, *deltas: Delta):
        self.config, self.count_tokens, self.engine = llm.config, llm.count_tokens, llm.engine
        self.deltas = deltas

    def stream(self, messages, params, *, layout, thinking):
        yield from self.deltas


def test_a_chat_through_a_pipe_answers_each_line_and_knows_its_history(
    abyssal_command, folder, typed
):
    typed("the sea", "", "the fish", "/system dark", "/what", "/reset", "the sea", "/quit", "see")
    ran = abyssal_command("chat", folder, *OPTIONS, "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    llm = LLM(folder)
    first = llm.chat("the sea", max_tokens=8, temperature=0).text
    history = [Message("user", "the sea"), Message("assistant", first), Message("user", "the fish")]
    second = llm.chat(history, max_tokens=8, temperature=0).text
    third = llm.chat(
        [Message("system", "dark"), Message("user", "the sea")], max_tokens=8, temperature=0
    ).text
    assert [(row["prompt"], row["text"]) for row in rows] == [
        ("the sea", first), ("the fish", second), ("the sea", third)
    ]  # fmt: skip
    assert f"/what is no command; there are {', '.join(slash.COMMANDS)}" in ran.err
    typed("the sea")
    assert abyssal_command("chat", folder, *OPTIONS).out == f"{first}\n"
    assert abyssal_command("chat", folder, "--prompt", "the sea", *OPTIONS).out == f"{first}\n"


def test_a_full_context_drops_the_oldest_turns_aloud_and_a_flood_is_refused(
    abyssal_command, folder, typed
):
    typed(*["the deep sea is dark"] * 6, "深海" * 99, "see")
    ran = abyssal_command("chat", folder, "--max-tokens", "8", "--seed", "1", "--json")
    assert ran.code == 0
    assert "dropped the 2 oldest messages" in ran.err
    assert "error: the conversation has" in ran.err
    assert len(ran.out.splitlines()) == 7


def rows_of(ran) -> list[dict]:
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_retry_is_another_answer_to_the_same_question(abyssal_command, folder, typed, llm):
    typed("/retry", "the sea", "/retry", "/temperature 0", "/retry", "/retry")
    ran = abyssal_command(
        "chat", folder, "--max-tokens", "8", "--seed", "5", "--temperature", "1", "--json"
    )
    assert "error: there is no question" in ran.err
    assert "the answer stays the same" in ran.err
    first, second, third, fourth = rows_of(ran)
    assert {row["prompt"] for row in (first, second, third, fourth)} == {"the sea"}
    drawn = [
        llm.chat("the sea", max_tokens=8, seed=seed, temperature=1.0, top_p=0.95).text
        for seed in (5, 6)
    ]
    assert [first["text"], second["text"]] == drawn
    assert drawn[0] != drawn[1]
    assert third["text"] == fourth["text"] == llm.chat("the sea", max_tokens=8, temperature=0).text


def test_a_talk_can_be_saved_left_and_taken_up_again(abyssal_command, folder, typed, tmp_path):
    file = tmp_path / "talk.json"
    typed("/system dark", "the sea", f"/save {file}", "the fish")
    _, expected = rows_of(abyssal_command("chat", folder, *OPTIONS, "--json"))
    saved = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    typed(f"/load {file}", "the fish")
    ran = abyssal_command("chat", folder, *OPTIONS, "--json")
    assert rows_of(ran) == [expected]
    assert "2 messages" in ran.err


def test_stats_say_what_the_answers_cost(abyssal_command, folder, typed):
    typed("/stats", "the sea", "the fish", "/stats")
    before, _, _, after = rows_of(abyssal_command("chat", folder, *OPTIONS, "--json"))
    assert before["all"]["answers"] == 0
    assert (after["all"]["answers"], after["latest"]["answers"]) == (2, 1)
    assert after["all"]["answer_tokens"] >= after["latest"]["answer_tokens"] > 0
    assert after["latest"]["first_token_s"] > 0
    assert "drafts" not in after
    typed("the sea", "/stats")
    assert "tokens_per_s" in abyssal_command("chat", folder, *OPTIONS).out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/what", "/what is no command; there are /system,"),
        ("/temperature warm", "error: /temperature 'warm', expected a number"),
        ("/temperature -1", "error: temperature=-1"),
        ("/save", "error: /save needs a file"),
        ("/load", "error: /load needs a file"),
        ("/load nowhere.json", "error: nowhere.json: cannot be read"),
        ("/save no/such/folder.json", "error: no/such/folder.json: cannot be written"),
    ],
)
def test_a_slip_is_told_and_the_talk_goes_on(abyssal_command, folder, typed, line, said):
    typed(line, "the sea")
    ran = abyssal_command("chat", folder, *OPTIONS, "--json")
    assert said in ran.err
    assert len(rows_of(ran)) == 1


def test_help_explains_every_command(abyssal_command, folder, typed):
    typed("/help")
    said = abyssal_command("chat", folder).err
    for name, command in slash.COMMANDS.items():
        assert any(line.startswith(name) and command.does in line for line in said.splitlines())


def test_thoughts_are_kept_apart_from_answers(abyssal_command, folder, typed, tmp_path):
    typed("the sea")
    ran = abyssal_command("chat", folder, "--layout", "v3.1", "--thinking", *OPTIONS, "--json")
    expected = LLM(folder).chat(
        "the sea", layout="v3.1", thinking=True, max_tokens=8, temperature=0
    )
    (row,) = rows_of(ran)
    assert (row["text"], row["reasoning"]) == (expected.text, expected.reasoning)
    ran = abyssal_command("chat", folder, "--prompt", "a", "--thinking")
    assert (ran.code, ran.out) == (2, "")
    assert "cannot think" in ran.err


def test_the_layout_is_the_folder_s_own_unless_named(abyssal_command, folder, tmp_path, llm):
    words = ("--prompt", "the sea", *OPTIONS)
    for layout in ("v3", "v3.1"):
        expected = llm.chat("the sea", layout=layout, max_tokens=8, temperature=0).text
        ran = abyssal_command("chat", folder, *words, "--layout", layout)
        assert ran.out == f"{expected}\n"


THOUGHT = (
    Delta(0, 1, reasoning="why "),
    Delta(0, 2, reasoning="not"),
    Delta(0, 9),
    Delta(0, 3, text="yes"),
    Delta(0, 4, text=" \x1b[31m", finish_reason="stop"),
)


def test_folded_thoughts_are_counted_and_shown_when_asked_for(llm, capsys):
    conversation = Conversation(Script(llm, *THOUGHT), SamplingParams(), layout="r1")
    here = talk.Talk(conversation, as_json=False, is_typed=False)
    here.turn("the sea")
    said = capsys.readouterr()
    assert said.out == "yes \x1b[31m\n"
    assert said.err == "thought 3 tokens; /think shows them\n"
    here.turn("/think")
    assert capsys.readouterr().err == "why not\nthoughts are shown\n"
    here.turn("the sea")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("yes \x1b[31m\n", "why not\n")
    here.turn("/think")
    assert capsys.readouterr().err == "thoughts are folded\n"


def test_a_terminal_never_gets_the_control_characters_of_a_model(llm, capsys, monkeypatch):
    conversation = Conversation(Script(llm, *THOUGHT), SamplingParams())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    talk.Talk(conversation, as_json=False, is_typed=True).turn("the sea")
    assert capsys.readouterr().out == "yes ␛[31m\n"


def test_tool_calls_are_named(llm, capsys):
    calls = (CallPiece(0, "look", '{"at": '), CallPiece(0, None, "3}"))
    script = Script(llm, Delta(0, 1, calls=calls, finish_reason="stop"))
    talk.Talk(Conversation(script, SamplingParams()), as_json=False, is_typed=False).turn("a")
    assert 'it calls look({"at": 3})' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "is_typed", "code"),
    [(signal.SIGINT, True, None), (signal.SIGINT, False, 130), (signal.SIGTERM, True, 143)],
)
def test_a_signal_ends_the_answer_and_perhaps_the_talk(
    llm, capsys, monkeypatch, number, is_typed, code
):
    write, written = console.write, []

    def write_and_stop(text):
        written.append(text)
        write(text)
        if len(written) == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(console, "write", write_and_stop)
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=2)
    conversation = Conversation(llm, params)
    here = talk.Talk(conversation, as_json=False, is_typed=is_typed)
    if code is None:
        here.turn("the sea")
    else:
        with pytest.raises(talk.typer.Exit) as end:
            here.turn("the sea")
        assert end.value.exit_code == code
    kept = "".join(written[:3])
    assert conversation.turns[1].content == kept
    assert llm.chat("the sea", params).text.startswith(kept)
    assert capsys.readouterr().out == f"{kept}\n"
    assert llm.engine.stats().pages_in_use == 0


def test_at_a_terminal_lines_are_typed_and_names_completed(monkeypatch, capsys):
    lines = iter(["the sea", " /help ", "/quit", "never read"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    assert list(talk._lines()) == ["the sea", "/help"]
    assert "/help lists the commands" in capsys.readouterr().err
    complete = readline.get_completer()
    assert [complete("/s", state) for state in range(4)] == ["/system ", "/save ", "/stats ", None]
    assert complete("", 0) is None
    readline.set_completer(None)


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_end_of_input_is_the_end_of_the_talk(monkeypatch, end):
    def type_nothing(prompt):
        raise end

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", type_nothing)
    assert list(talk._lines()) == []
