"""Preferences: the losses by hand and beside TRL's, their gradients, and runs that learn them."""

import json
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import IGNORE, Batch
from abyssal.errors import ConfigError, DataError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import loss, preference
from abyssal.train.comparisons import Example, lay_out
from abyssal.train.loss import token_logprobs
from abyssal.train.metrics import read_metrics
from abyssal.train.preference import answer_logprobs, dpo, figures, ipo

LN2 = math.log(2)


def trl_loss(kind, logprobs, reference, lengths, beta, smoothing=0.0):
    """What TRL makes of sums (N, 2), spread evenly over the tokens of each answer."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    longest = int(lengths.max())
    each = []
    for sums in (logprobs, reference):
        pairs = [*zip(sums[:, 0], lengths[:, 0], strict=True)]
        pairs += zip(sums[:, 1], lengths[:, 1], strict=True)
        rows = [F.pad(torch.full((n,), x / n), (0, longest - n))
                for x, n in ((float(x), int(n)) for x, n in pairs)]  # fmt: skip
        each.append(torch.stack(rows))
    model, known = each[0].requires_grad_(), each[1]
    counts = torch.cat([lengths[:, 0], lengths[:, 1]]).long()
    mask = (torch.arange(longest + 1)[None] <= counts[:, None]).long()
    mask[:, 0] = 0
    says = SimpleNamespace(
        log_probs=model, entropy=torch.zeros_like(known), mean_logits=torch.zeros_like(known),
        is_top1=torch.zeros_like(known).bool(),
    )  # fmt: skip
    said = {"input_ids": torch.ones_like(mask), "completion_mask": mask,
            "attention_mask": torch.ones_like(mask),
            "ref_chosen_logps": known[: len(logprobs)].sum(1),
            "ref_rejected_logps": known[len(logprobs) :].sum(1)}  # fmt: skip
    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=same, aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta,
        loss_types=[kind], loss_weights=[1.0], label_smoothing=smoothing, use_weighting=False,
        _metrics=metrics, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    total = trl.DPOTrainer._compute_loss(trainer, lambda **_: says, said, False)
    (grad,) = torch.autograd.grad(total, model)
    by_answer = torch.stack(grad[:, 0].chunk(2), -1)  # every token of a sum has the sum's
    return total.detach(), by_answer, metrics["train"]


def sums(seed, pairs):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (pairs, 2), generator=generator)
    model = -torch.rand(pairs, 2, generator=generator) * 3 * lengths
    reference = -torch.rand(pairs, 2, generator=generator) * 3 * lengths
    return model.requires_grad_(), reference, lengths


# By hand


def test_a_model_that_has_not_moved_pays_ln_2_whatever_the_answers():
    same = torch.tensor([[-3.0, -9.0], [-1.0, -0.5]])
    torch.testing.assert_close(dpo(same, same, beta=0.3), torch.full((2,), LN2))


def test_a_pair_worked_out_by_hand():
    # Log-ratios +1 and -2 make a margin of 0.5 * 3 = 1.5.
    model, reference = torch.tensor([[-4.0, -7.0]]), torch.tensor([[-5.0, -5.0]])
    clean, flipped = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert dpo(model, reference, beta=0.5).item() == pytest.approx(clean)
    smooth = dpo(model, reference, beta=0.5, label_smoothing=0.1).item()
    assert smooth == pytest.approx(0.9 * clean + 0.1 * flipped)
    # Per token +1/2 and -2/4: 1 against a target of 1 / (2 * 0.25) = 2.
    assert ipo(model, reference, torch.tensor([[2, 4]]), beta=0.25).item() == pytest.approx(1.0)


def test_the_gradient_is_beta_times_the_chance_of_being_wrong():
    model = torch.tensor([[-4.0, -7.0]], requires_grad=True)
    reference = torch.tensor([[-5.0, -5.0]])
    (grad,) = torch.autograd.grad(dpo(model, reference, beta=0.5).sum(), model)
    wrong = 1 / (1 + math.exp(1.5))
    torch.testing.assert_close(grad, torch.tensor([[-0.5 * wrong, 0.5 * wrong]]))


@given(st.integers(0, 9), st.integers(1, 5))
def test_finite_differences_agree(seed, pairs):
    model, reference, lengths = (x.double() for x in sums(seed, pairs))
    model = model.detach().requires_grad_()
    for one in (
        lambda x: dpo(x, reference, beta=0.2, label_smoothing=0.2),
        lambda x: ipo(x, reference, lengths, beta=0.2),
    ):
        assert torch.autograd.gradcheck(one, (model,))


def test_rewards_are_said_as_sums():
    said = figures(torch.tensor([[1.0, -1.0], [0.5, 2.0]]))
    assert said == {
        "accuracy": (1.0, 2.0), "margin": (0.5, 2.0), "reward/chosen": (1.5, 2.0),
        "reward/rejected": (1.0, 2.0),
    }  # fmt: skip


# TRL


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "smoothing"), [("sigmoid", 0.0), ("ipo", 0.0), ("aot", 0.15)]
)  # aot of one pair is the smoothed sigmoid
@pytest.mark.parametrize("seed", range(4))
def test_losses_gradients_and_figures_are_trls_on_the_same_tensors(kind, smoothing, seed):
    model, reference, lengths = sums(seed, 1 if kind == "aot" else 5)
    theirs, grads, said = trl_loss(kind, model.detach(), reference, lengths, 0.3, smoothing)
    if kind == "ipo":
        ours = ipo(model, reference, lengths, beta=0.3).mean()
    else:
        ours = dpo(model, reference, beta=0.3, label_smoothing=smoothing).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(ours, model)
    torch.testing.assert_close(grad, grads, rtol=1e-4, atol=1e-6)
    rewards = 0.3 * (model - reference)
    names = {"accuracy": "accuracies", "margin": "margins", "reward/chosen": "chosen"}
    for name, theirs_name in names.items():
        total, count = figures(rewards)[name]
        assert total / count == pytest.approx(said[f"rewards/{theirs_name}"][0], abs=1e-5)


# Log-probabilities of answers


@given(st.integers(1, 30), st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([3, 8]))
def test_log_probabilities_and_gradients_are_torchs_whatever_the_chunks(rows, ignored, chunk):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 5, generator=generator).requires_grad_()
    head = torch.randn(11, 5, generator=generator).requires_grad_()
    labels = torch.randint(11, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE
    weights = torch.randn(rows, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_rows_at_a_time", lambda head: chunk)
        ours = token_logprobs(hidden, head, labels)
        found = torch.autograd.grad((ours * weights).sum(), (hidden, head))
    wanted = -F.cross_entropy(hidden @ head.T, labels, ignore_index=IGNORE, reduction="none")
    expected = torch.autograd.grad((wanted * weights).sum(), (hidden, head))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_answer_is_the_sum_of_its_tokens_and_no_other():
    hidden, head = torch.randn(7, 5), torch.randn(11, 5)
    labels = torch.tensor([IGNORE, 3, 4, IGNORE, 2, 1, IGNORE])
    batch = Batch(
        torch.zeros(7, dtype=torch.int64), torch.arange(7), torch.tensor([0, 4, 7]), labels
    )
    total, count = answer_logprobs(hidden, head, batch)
    each = token_logprobs(hidden, head, labels)
    torch.testing.assert_close(total, torch.stack([each[:4].sum(), each[4:].sum()]))
    assert count.tolist() == [2, 2]


# Runs


def piece_of(objective, examples):
    piece = objective.piece(examples)
    return piece.score(objective.model(piece.batch), piece.batch, balance=False)


@pytest.fixture
def objective(tune, course, base):
    run = tune("dpo").run
    model = DeepSeekV3.load(base).train()
    return preference.PreferenceObjective(run, model, course.tokenizer)


def test_equal_answers_give_no_gradient_of_preference(objective):
    same = [Example(0, (example.sequences[0],) * 2, True) for example in objective.examples[:3]]
    real = objective.examples[:3]
    norms = []
    for examples in (same, real):
        objective.model.zero_grad()
        piece_of(objective, examples).main.backward()
        grads = [p.grad.norm() for p in objective.model.parameters() if p.grad is not None]
        norms.append(torch.stack(grads).norm().item())
    assert norms[0] < 1e-4 * norms[1]


def test_the_reference_is_the_start_and_is_asked_once(objective, monkeypatch):
    found = piece_of(objective, objective.examples[:3])
    assert found.main.item() == pytest.approx(3 * LN2, rel=1e-5)
    assert abs(found.figures["margin"][0]) < 1e-4
    monkeypatch.setattr(objective, "_ask", None)
    piece_of(objective, objective.examples[3:5])


def test_labels_are_the_answers_tokens_alone(objective, course):
    (example,) = objective.examples[:1]
    batch = lay_out([example])
    first = example.sequences[0]
    learned = [t for t, label in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True)
               if label != IGNORE]  # fmt: skip
    assert len(learned) == sum(sum(s.trained) for s in example.sequences)
    said = [label for label in batch.labels[: len(first.tokens)].tolist() if label != IGNORE]
    assert course.tokenizer.decode(said).startswith("the ")
    assert said[-1] == course.tokenizer.eos_token_id
    assert batch.labels[len(first.tokens) - 1] == IGNORE


def test_a_run_learns_to_prefer_and_says_how_far(tune, tmp_path):
    seas = ("dark", "blue", "deep", "deep blue")
    rows = [{"prompt": f"the {sea} sea", "chosen": f"the fish swam in the {sea} sea",
             "rejected": f"the crab swam in the {sea} sea"} for sea in seas]  # fmt: skip
    files = {}
    for name, part in (("pairs", rows[:3]), ("others", rows[3:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in part))
        files[name] = [{"name": name, "rows": str(path)}]
    data = {"sources": files["pairs"], "held_out": files["others"]}
    training = tune("dpo", {"epochs": 40.0, "optim": {"lr": 0.01}, "data": data})
    list(training.steps())
    metrics = read_metrics(training.folder)
    first, last = metrics.steps[0], metrics.steps[-1]
    assert first.loss == pytest.approx(LN2, rel=1e-4)
    assert last.loss < 0.5 * LN2
    assert last.figures["accuracy"] == 1.0
    assert last.figures["margin"] == pytest.approx(
        last.figures["reward/chosen"] - last.figures["reward/rejected"], rel=1e-6
    )
    accuracy = [row.value for row in metrics.measures if row.name == "others/accuracy"]
    assert accuracy[-1] == 1.0
    DeepSeekV3.load(training.folder)  # a model folder like any other


@pytest.mark.parametrize("changes", [{"loss": "ipo"}, {"label_smoothing": 0.2}, {"recompute": True},
                                     {"balance": {"alpha": 0.0}}])  # fmt: skip
def test_every_kind_of_run_comes_to_its_end(tune, changes):
    training = tune("dpo", {**changes, "epochs": 1.0})
    rows = list(training.steps())
    assert training.is_done
    assert all(math.isfinite(row.loss) for row in rows)


@pytest.mark.parametrize("stage", ["dpo", "reward"])
@pytest.mark.parametrize("step", [3, 5, 9])
def test_a_run_dropped_at_any_step_goes_on_bit_for_bit(tune, look, drop, stage, step):
    whole = tune(stage, out="whole")
    list(whole.steps())
    drop(tune(stage), step)
    resumed = tune(stage)
    list(resumed.steps())
    ours, theirs = look(resumed.folder), look(whole.folder)
    assert ours.weights == theirs.weights
    assert ours.figures == theirs.figures
    assert ours.metrics.measures == theirs.metrics.measures
    assert ours.metrics.drifts == theirs.metrics.drifts


def test_answers_longer_than_seq_len_are_left_out_and_said(tune, objective, caplog):
    lengths = {max(len(s.tokens) for s in example.sequences) for example in objective.examples}
    size = sorted(lengths)[-2]
    list(tune("dpo", {"batch": {"seq_len": size}, "epochs": 1.0}).steps())
    assert f"more than seq_len={size} tokens" in caplog.text
    with pytest.raises(DataError, match="holds no comparison to learn from"):
        list(tune("dpo", {"batch": {"seq_len": 8}}, out="none").steps())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta=0.0, expected a number above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "0 with ipo"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"data": {"sources": [{"name": "x"}]}}, "expected either rows or shipped"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tune, changes, message):
    with pytest.raises(ConfigError, match=message):
        tune("dpo", changes)
