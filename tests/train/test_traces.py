"""Traces: which answers are kept, what is learned of them, and that a stop changes nothing."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.data.documents import DropReport
from abyssal.data.shards import Shards
from abyssal.errors import ConfigError, DataError, RequestError
from abyssal.evals.puzzles import Puzzle, is_held_out, prompt_of
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import traces
from abyssal.train.reinforce import Task
from abyssal.train.sieve import Sieve, sift
from abyssal.train.teachers import FolderTeacher, Manner, Written
from abyssal.train.traces import Sampling, Writing, questions, tasks_of

SUMS = Task(name="chain_sum", settings=("max_terms=2", "max_digits=1"))
TWO = Puzzle("sums", "1 + 1 =", "2", lambda answer: float(answer == "2"))
GOOD = "<think> one and one </think> <answer> 2 </answer>"


class Pupil:
    """A teacher whose answers are a function of question and number."""

    name = "pupil"

    def __init__(self, stop_after: int | None = None):
        self.asked: list[int] = []
        self.stop_after = stop_after

    def answer(self, asked, manner):
        for index, text in asked:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(index)
            sums = text.split(":")[-1].replace("=", "").strip().rstrip(".")
            right = str(eval(sums))
            texts = [GOOD.replace("2", right if i % 2 else "x") for i in range(manner.answers)]
            yield [(index, [Written(None, text, "stop") for text in texts])]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A random model and its tokenizer."""
    root = tmp_path_factory.mktemp("teacher")
    prompt = prompt_of("State the final answer to the following arithmetic problem: 4 - 1 =")
    tokenizer = Tokenizer.train([prompt] * 3, 360)
    config = ModelConfig(
        vocab_size=360, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=160, initializer_range=0.2,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(root)
    tokenizer.save(root)
    return root


def fell(*texts: str, form="zero", thought=None, end="stop", **sieve) -> Counter[str]:
    """How many answers to 1 + 1 fell to which filter; kept ones count too."""
    report = DropReport()
    answers = [Written(thought, text, end) for text in texts]
    kept = sift(TWO, answers, form, Sieve(**sieve), report)
    assert report.total == len(texts)
    assert report.kept == len(kept)
    return Counter(report.dropped) + Counter(kept=len(kept))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (GOOD, "kept"),
        ("2", "form"),
        (f"{GOOD} and so on", "form"),
        ("<think> </think> <answer></answer>", "form"),
        (GOOD.replace("2", "3"), "wrong"),
        (GOOD.replace("one and one", "der die und das"), "language"),
        (GOOD.replace("one and one", "это один и один"), "language"),
        (GOOD.replace("one and one", "so\n```\n1+1\n```"), "code block"),
        (GOOD.replace("one and one", "the " * 600), "long paragraph"),
        (GOOD.replace("one and one", "the " * 300 + "\n\n" + "the " * 300), "kept"),
    ],
)
def test_each_answer_falls_to_the_first_filter_it_does_not_pass(text, where):
    assert fell(text) == {where: 1}


def test_what_was_cut_off_is_no_trace():
    assert fell(GOOD, end="length") == {"cut off": 1}


def test_equal_answers_count_once_and_no_more_are_kept_than_asked_for():
    others = [GOOD.replace("and", word) for word in ("with", "to", "by")]
    assert fell(GOOD, GOOD.replace(" and", "  and"), keep=9) == {"kept": 1, "duplicate": 1}
    assert fell(GOOD, *others, keep=3) == {"kept": 3, "enough": 1}


@pytest.mark.parametrize("text", ["2", " 2\n", r"It is \boxed{2}.", "So: <answer> 2 </answer>"])
def test_a_chat_s_answer_stands_behind_its_thought(text):
    assert fell(text, form="chat", thought="easy") == {"kept": 1}
    assert fell(text, form="chat", thought=None) == {"form": 1}
    assert fell(text, form="chat", thought="no </think> yes") == {"form": 1}


@given(st.lists(st.tuples(st.text(max_size=30), st.booleans()), max_size=8), st.integers(1, 3))
def test_what_is_kept_is_right_whole_and_no_more_than_asked_for(said, keep):
    answers = [
        Written(None, GOOD.replace("one", word) if good else word, "stop") for word, good in said
    ]
    report = DropReport()
    kept = sift(TWO, answers, "zero", Sieve(keep=keep), report)
    assert len(kept) <= keep
    assert report.kept == len(kept)
    for one in kept:
        assert one.reply.answer == "2"
        assert one.parts.accuracy == one.parts.format == 1
    assert len({one.reply.thought for one in kept}) == len(kept)


def test_no_question_is_held_out_and_more_begin_with_the_same():
    tasks = (*tasks_of("r1/zero"), SUMS)
    some = list(islice(questions(tasks, 3), 300))
    assert not any(is_held_out(puzzle.question) for puzzle in some)
    assert len({puzzle.question for puzzle in some}) == 300
    fewer = [puzzle.question for puzzle in islice(questions(tasks, 3), 100)]
    assert fewer == [puzzle.question for puzzle in some[:100]]
    assert {puzzle.task for puzzle in some} == {"chain_sum", "basic_arithmetic"}


def test_tasks_without_new_questions_say_so(monkeypatch):
    monkeypatch.setattr(traces, "STALE", 100)
    with pytest.raises(ConfigError, match="different questions; ask for fewer"):
        list(islice(questions([SUMS], 0), 1000))


@pytest.mark.parametrize(("form", "layout"), [("zero", "r1"), ("chat", "r1"), ("chat", "v3.1")])
def test_shards_hold_the_prompt_a_student_is_asked_with_and_learn_the_rest(
    folder, tmp_path, form, layout
):
    sampling = Sampling(Pupil(), [SUMS], Manner(answers=2), tmp_path / "out", 12)
    list(sampling.run(Sieve()))
    sampling.publish(Sieve(), Writing(tokenizer=folder, form=form, layout=layout))
    lines = (tmp_path / "out" / "traces.jsonl").read_text().splitlines()
    rows, shards = [json.loads(line) for line in lines], Shards(tmp_path / "out" / "shards")
    tokenizer = Tokenizer.load(folder)
    assert len(shards) == len(rows) == 12
    for i, row in enumerate(rows):
        tokens, mask = shards.tokens(i).tolist(), shards.mask(i).tolist()
        start = mask.index(1)
        assert mask == [0] * start + [1] * (len(mask) - start)
        assert tokens[-1] == tokenizer.eos_token_id
        learned = tokenizer.decode(tokens[start:], skip_control=False)
        assert row["thought"] == "one and one"
        assert row["final"] == row["answer"]
        assert row["rewards"] == {"accuracy": 1, "format": 1, "language": 1}
        if form == "zero":
            assert tokens[:start] == tokenizer.encode(prompt_of(row["question"]), bos=True)
            assert learned.startswith(f" <think> one and one </think> <answer> {row['final']} ")
        else:
            assert row["question"] in tokenizer.decode(tokens[:start])
            assert tokens[start - 1] == tokenizer.control(control.THINK) or layout == "r1"
            thought, _, answer = learned.partition(control.END_THINK)
            assert thought.strip() == "one and one"
            assert answer.removesuffix(control.EOS).strip() == row["final"]


def test_a_stop_and_another_sieve_ask_nobody_again(folder, tmp_path):
    def sampling(name: str, pupil: Pupil, number: int = 10) -> Sampling:
        return Sampling(pupil, [SUMS], Manner(answers=4, seed=1), tmp_path / name, number)

    list(sampling("whole", Pupil()).run(Sieve()))
    stopped, rest = Pupil(stop_after=4), Pupil()
    with pytest.raises(KeyboardInterrupt):
        list(sampling("parts", stopped, 7).run(Sieve()))
    with (tmp_path / "parts" / "answers.jsonl").open("a") as file:
        file.write('{"index": 4, "id": "half a li')  # a kill in the middle of a line
    last = list(sampling("parts", rest).run(Sieve()))[-1]
    assert last.done == last.total == 10
    assert rest.asked == [4, 5, 6, 7, 8, 9]
    files = [tmp_path / name / "answers.jsonl" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for keep, expected in ((1, 10), (2, 10)):  # the two good answers to each are the same
        report = sampling("parts", Pupil(0)).publish(Sieve(keep=keep), Writing(tokenizer=folder))
        assert report.kept == expected
        assert report.dropped["wrong"] == 20
    again = sampling("whole", Pupil())
    assert [step.done for step in again.run(Sieve())] == [10]


def test_another_teacher_or_manner_is_refused(tmp_path):
    Sampling(Pupil(), [SUMS], Manner(), tmp_path, 3)
    with pytest.raises(DataError, match=r"holds answers with temperature=1\.0, not 0\.5"):
        Sampling(Pupil(), [SUMS], Manner(temperature=0.5), tmp_path, 3)


def test_an_engine_teacher_writes_the_same_bytes_after_a_stop(folder, tmp_path):
    def sampling(name: str, number: int) -> Sampling:
        manner = Manner(answers=2, max_tokens=6, form="chat", seed=2)
        return Sampling(FolderTeacher(folder), [SUMS], manner, tmp_path / name, number)

    list(sampling("whole", 6).run(Sieve()))
    steps = sampling("parts", 4).run(Sieve())
    assert next(step for step in steps if step.done >= 1)
    steps.close()
    list(sampling("parts", 6).run(Sieve()))
    files = [tmp_path / name / "answers.jsonl" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(files[0].read_bytes().splitlines()) == 6
    with pytest.raises(DataError, match=r"no answer is worth learning: .*cut off"):
        sampling("whole", 6).publish(Sieve(), Writing(tokenizer=folder))


def test_a_question_too_long_for_the_teacher_is_counted(folder, tmp_path):
    manner = Manner(answers=2, instruct="the deep sea " * 40)
    sampling = Sampling(FolderTeacher(folder), [SUMS], manner, tmp_path / "out", 2)
    list(sampling.run(Sieve()))
    report = DropReport()
    assert list(sampling.traces(Sieve(), report)) == []
    assert report.dropped == {"too long to be asked": 2}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sieve(keep=0), "keep=0"),
        (lambda: Sieve(language=2), "language=2"),
        (lambda: tasks_of("tiny/base"), "unknown stage 'pretrain'"),
        (lambda: tasks_of("r1/none"), "unknown recipe"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_answers_are_some():
    with pytest.raises(RequestError, match="answers=0"):
        Manner(answers=0)
