"""Multi-token prediction: what each module sees, and what it shares with the model."""

import pytest
import torch

from abyssal.batch import Batch

T = 14


def hidden_ahead(model, tokens, depth):
    return model(Batch.from_sequences([tokens]), mtp=True).mtp_hidden[depth - 1]


@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_row_i_at_depth_k_sees_exactly_the_tokens_up_to_i_plus_k(small_model, depth):
    model = small_model(num_nextn_predict_layers=2)
    tokens = torch.randint(61, (T,)).tolist()
    before = hidden_ahead(model, tokens, depth)
    for changed in range(T):
        other = [*tokens]
        other[changed] = (other[changed] + 1) % 61
        moved = (hidden_ahead(model, other, depth) != before).any(-1)
        rows = torch.arange(T - depth)  # the rest has no token to come
        assert torch.equal(moved[: T - depth], rows + depth >= changed)


@torch.no_grad()
def test_a_sequence_in_a_batch_predicts_ahead_as_it_does_alone(small_model):
    model = small_model(num_nextn_predict_layers=2)
    first, second = (torch.randint(61, (n,)).tolist() for n in (9, 13))
    packed = model(Batch.from_sequences([first, second]), mtp=True).mtp_hidden
    for depth, rows in enumerate(packed, 1):
        alone = [hidden_ahead(model, tokens, depth) for tokens in (first, second)]
        torch.testing.assert_close(rows[: 9 - depth], alone[0][: 9 - depth])
        torch.testing.assert_close(rows[9 : 22 - depth], alone[1][: 13 - depth])


def test_embedding_and_head_are_the_models_own(small_model):
    plain, ahead = small_model(), small_model(num_nextn_predict_layers=1)
    extra = {name for name, _ in ahead.named_parameters()} - {
        n for n, _ in plain.named_parameters()
    }
    assert extra
    assert all(name.startswith("mtp.0.") for name in extra)
    assert not any("embed" in name or "head" in name for name in extra)


def test_a_loss_on_what_lies_ahead_reaches_the_embedding_and_every_module_before(small_model):
    model = small_model(num_nextn_predict_layers=2)
    hidden_ahead(model, list(range(T)), 2).square().sum().backward()
    assert model.embed_tokens.weight.grad.any()
    assert model.mtp[0].eh_proj.weight.grad.any()
    assert model.layers[0].self_attn.o_proj.weight.grad.any()


@torch.no_grad()
def test_without_mtp_asked_for_the_modules_do_not_run_and_change_nothing(small_model):
    model = small_model(num_nextn_predict_layers=2)
    batch = Batch.from_sequences([list(range(T))])
    plain, ahead = model(batch), model(batch, mtp=True)
    assert plain.mtp_hidden == ()
    assert torch.equal(plain.hidden, ahead.hidden)
    assert len(ahead.routings) == len(plain.routings) + 2


@torch.no_grad()
def test_a_module_reads_the_embedding_first_and_the_hidden_state_second(small_model):
    model = small_model(num_nextn_predict_layers=1)
    D = model.config.hidden_size
    tokens = torch.randint(61, (T,)).tolist()
    model.mtp[0].eh_proj.weight[:, D:] = 0  # blind to the hidden state
    before = hidden_ahead(model, tokens, 1)
    after = hidden_ahead(model, [(tokens[0] + 1) % 61, *tokens[1:]], 1)
    torch.testing.assert_close(before[:-1], after[:-1])  # only embeddings 1.. are left to see
