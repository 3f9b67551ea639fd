"""Packing, token by token: nothing is lost, nothing crosses, and every position can be resumed."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import IGNORE, Batch
from abyssal.data.packing import Packer
from abyssal.data.shards import Shards, write_shards
from abyssal.data.sources import Source
from abyssal.errors import AbyssalError, ConfigError, DataError

CONTROL = {"bos": 0, "eos": 1, "fim_begin": 2, "fim_hole": 3, "fim_end": 4}
VOCAB = 60_000


def documents_of(lengths: Sequence[int], first: int = 10) -> list[list[int]]:
    """BOS, tokens that occur nowhere else, EOS: any token says which document it is from."""
    documents = []
    for length in lengths:
        documents.append([0, *range(first, first + length), 1])
        first += length
    return documents


Maker = Callable[..., Source]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes a source of documents, each the first time it is asked for."""
    made: dict[str, Shards] = {}

    def make(
        documents: list[list[int]],
        weight: float = 1.0,
        name: str = "a",
        masks: list[list[bool]] | None = None,
        **meta: object,
    ) -> Source:
        key = repr((documents, masks, meta))
        if key not in made:
            settings = {"tokenizer_sha256": "t", "vocab_size": VOCAB, "control": CONTROL, **meta}
            folder = tmp_path_factory.mktemp("shards") / "s"
            pairs = zip(documents, masks or [None] * len(documents), strict=True)
            made[key] = write_shards(folder, pairs, file_tokens=500, **settings)
        return Source(made[key], weight, name)

    return make


A = documents_of([5, 1, 9, 30, 2, 2, 14, 70, 3], first=10)
B = documents_of([8, 8, 40, 0, 1], first=1000)
MASKED = documents_of([6, 20, 3], first=2000)
MASKS = [[i % 3 > 0 for i in range(len(tokens))] for tokens in MASKED]


def packer(source: Maker, isolate: bool, fim_rate: float = 0.0, seed: int = 0, **sizes) -> Packer:
    """Three sources of unequal weight, one of them with masks."""
    sources = [
        source(A, 1.0, "a"),
        source(B, 2.5, "b"),
        source(MASKED, 0.5, "masked", masks=MASKS),
    ]
    sizes = {"tokens_per_batch": 48, "seq_len": 16, **sizes}
    return Packer(sources, isolate=isolate, fim_rate=fim_rate, seed=seed, **sizes)


def spans(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The (tokens, labels) of every span."""
    assert batch.labels is not None
    borders = batch.cu_seqlens.tolist()
    tokens, labels = batch.tokens.tolist(), batch.labels.tolist()
    return [(tokens[start:end], labels[start:end]) for start, end in pairwise(borders)]


def assert_equal(one: Batch, other: Batch) -> None:
    """Bit for bit, in every tensor."""
    for name in ("tokens", "positions", "cu_seqlens", "labels"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype == torch.int64
        assert torch.equal(mine, theirs)


@given(
    isolate=st.booleans(),
    fim_rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**63),
    before=st.integers(0, 30),
    rows=st.integers(1, 4),
)
def test_a_resumed_packer_goes_on_bit_for_bit(
    source: Maker, isolate: bool, fim_rate: float, seed: int, before: int, rows: int
):
    settings = {"isolate": isolate, "fim_rate": fim_rate, "seed": seed}
    settings["tokens_per_batch"] = 16 * rows
    first = packer(source, **settings)
    for _ in range(before):
        first.next_batch()
    second = packer(source, **settings)
    second.next_batch()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(12):
        assert_equal(first.next_batch(), second.next_batch())
    assert first.state_dict() == second.state_dict()
    assert first.epochs == second.epochs


@given(isolate=st.booleans(), fim_rate=st.sampled_from([0.0, 0.5]), rows=st.integers(1, 9))
def test_a_batch_is_exactly_full_and_well_formed(
    source: Maker, isolate: bool, fim_rate: float, rows: int
):
    pack = packer(source, isolate, fim_rate, tokens_per_batch=16 * rows + 5 * isolate)
    for _ in range(20):
        batch = pack.next_batch()
        assert len(batch.tokens) == pack.tokens_per_batch == batch.cu_seqlens[-1]
        assert 0 < min(batch.lengths) <= max(batch.lengths) <= 16
        assert isolate or set(batch.lengths) == {16}
        counted = torch.cat([torch.arange(length) for length in batch.lengths])
        assert torch.equal(batch.positions, counted)


def test_the_stream_is_whole_documents_end_to_end_across_batches(source: Maker):
    pack = Packer([source(A)], tokens_per_batch=32, seq_len=16, isolate=False, seed=3)
    batches = [pack.next_batch() for _ in range(40)]
    tokens = torch.cat([batch.tokens for batch in batches])
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    assert torch.equal(tokens[1:], labels[:-1])  # also over rows, documents and batches
    stream = tokens.tolist()
    starts = [i for i, token in enumerate(stream) if token == 0]
    found = [stream[start:end] for start, end in pairwise(starts)]
    for epoch in range(len(found) // len(A)):
        assert sorted(found[epoch * len(A) : (epoch + 1) * len(A)]) == sorted(A)


def test_each_epoch_has_an_order_of_its_own_that_the_seed_decides(source: Maker):
    def order(seed: int, name: str) -> list[list[int]]:
        pack = Packer(
            [source(A, name=name)], tokens_per_batch=80, seq_len=80, isolate=True, seed=seed
        )
        found = [tokens for _ in range(60) for tokens, labels in spans(pack.next_batch())]
        whole = [tuple(tokens) for tokens in found if tokens[-1] == 1]
        return [whole[:9], whole[9:18]]

    first, second = order(0, "a")
    assert first != second
    assert sorted(first) == sorted(second) == sorted(map(tuple, A))
    assert order(0, "a") == [first, second]
    assert order(1, "a") != [first, second]
    assert order(0, "another") != [first, second]


@given(seed=st.integers(0, 1000), size=st.integers(16, 100))
def test_isolated_spans_hold_one_document_and_labels_never_cross(
    source: Maker, seed: int, size: int
):
    sources = [source(A, 1.0, "a"), source(B, 2.0, "b")]
    pack = Packer(sources, tokens_per_batch=size, seq_len=16, isolate=True, seed=seed)
    for _ in range(20):
        *whole, (last_tokens, last_labels) = spans(pack.next_batch())
        for tokens, labels in whole:
            assert any(tokens == piece for d in A + B for piece in pieces(d, 16))
            assert labels == [*tokens[1:], IGNORE]
        assert any(last_tokens == piece[: len(last_tokens)] for d in A + B for piece in pieces(d))
        assert last_labels in ([*last_tokens[1:], IGNORE], [IGNORE] * len(last_tokens))


def pieces(document: list[int], size: int = 16) -> list[list[int]]:
    """The document in pieces of this size and a last one."""
    return [document[start : start + size] for start in range(0, len(document), size)]


def test_each_epoch_learns_each_token_of_isolated_documents_once(source: Maker):
    pack = Packer([source(A)], tokens_per_batch=37, seq_len=16, isolate=True, seed=5)
    learned: Counter[int] = Counter()
    while pack.epochs["a"] < 20:
        for _, labels in spans(pack.next_batch()):
            learned.update(label for label in labels if label >= 10)
    inner = {token for d in A for piece in pieces(d) for token in piece[1:] if token >= 10}
    assert set(learned) == inner  # all but the first token of a piece, which nothing precedes
    assert set(learned.values()) <= {19, 20}


def test_a_document_that_does_not_fit_is_cut_and_comes_again(source: Maker):
    pack = Packer(
        [source(documents_of([8] * 5))], tokens_per_batch=15, seq_len=12, isolate=True, seed=0
    )
    first, second = spans(pack.next_batch()), spans(pack.next_batch())
    assert [len(tokens) for tokens, _ in first + second] == [10, 5, 10, 5]
    cut, labels = first[1]
    assert labels == [IGNORE] * 5
    assert second[0][0][:5] == cut
    assert pack.served == {"a": 30}  # three documents are open or done; the cut ones count once


@pytest.mark.parametrize("isolate", [False, True])
def test_only_tokens_under_the_mask_are_labels(source: Maker, isolate: bool):
    only = [source(MASKED, 1.0, "masked", masks=MASKS)]
    pack = Packer(only, tokens_per_batch=64, seq_len=32, isolate=isolate, seed=0)
    mask_of = {
        t: m for d, row in zip(MASKED, MASKS, strict=True) for t, m in zip(d, row, strict=True)
    }
    seen: Counter[bool] = Counter()
    for _ in range(10):
        batch = pack.next_batch()
        for tokens, labels in spans(batch):
            for following, label in zip(tokens[1:], labels[:-1], strict=True):
                if following >= 10 and set(labels) != {IGNORE}:
                    assert label == (following if mask_of[following] else IGNORE)
                    seen[mask_of[following]] += 1
    assert min(seen[True], seen[False]) > 50


@given(
    weights=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0.05, 20)),
    isolate=st.booleans(),
)
def test_the_mixture_is_right_to_within_one_document_at_every_moment(
    source: Maker, weights: tuple[float, float, float], isolate: bool
):
    texts = [A, B, documents_of([3, 50, 3], first=3000)]
    sources = [source(d, w, n) for d, w, n in zip(texts, weights, "abc", strict=True)]
    pack = Packer(sources, tokens_per_batch=64, seq_len=32, isolate=isolate, seed=0)
    for _ in range(30):
        pack.next_batch()
        total = sum(pack.served.values())
        for name, weight in zip("abc", weights, strict=True):
            share = weight / sum(weights)
            assert abs(pack.served[name] - share * total) <= 2 * 72  # 72: the longest document


def test_epochs_say_how_often_each_source_was_read(source: Maker):
    sources = [source(documents_of([8] * 4), 1.0, "a"), source(documents_of([8] * 2), 1.0, "b")]
    pack = Packer(sources, tokens_per_batch=40, seq_len=10, isolate=True, seed=0)
    assert pack.epochs == {"a": 0.0, "b": 0.0}
    pack.next_batch()
    assert pack.epochs == {"a": 0.5, "b": 1.0}
    pack.next_batch()
    assert pack.epochs == {"a": 1.0, "b": 2.0}


def test_fill_in_the_middle_touches_its_share_of_documents_and_loses_nothing(source: Maker):
    texts = documents_of([12] * 400)
    pack = Packer(
        [source(texts)], tokens_per_batch=170, seq_len=17, isolate=True, fim_rate=0.25, seed=0
    )
    found = []
    while pack.epochs["a"] < 1:
        found += [tokens for tokens, labels in spans(pack.next_batch()) if tokens[-1] == 1]
    told = [tokens for tokens in found[:400] if CONTROL["fim_begin"] in tokens]
    assert 70 <= len(told) <= 130
    for tokens in told:
        begin, hole, end = (tokens.index(CONTROL[f"fim_{n}"]) for n in ("begin", "hole", "end"))
        assert tokens[:2] == [0, CONTROL["fim_begin"]]
        body = tokens[begin + 1 : hole] + tokens[end + 1 : -1] + tokens[hole + 1 : end]
        assert [0, *body, 1] in texts


def test_conversations_keep_their_order_whatever_the_fim_rate(source: Maker):
    only = [source(MASKED, 1.0, "masked", masks=MASKS)]
    pack = Packer(only, tokens_per_batch=44, seq_len=22, isolate=False, fim_rate=1.0, seed=0)
    assert not any((pack.next_batch().tokens == CONTROL["fim_begin"]).any() for _ in range(10))


def test_a_batch_may_grow_between_saving_and_going_on(source: Maker):
    small = packer(source, isolate=False)
    small.next_batch()
    large = packer(source, isolate=False, tokens_per_batch=96, seq_len=32)
    large.load_state_dict(small.state_dict())
    tokens = torch.cat([small.next_batch().tokens, small.next_batch().tokens])
    assert torch.equal(large.next_batch().tokens, tokens)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["data"].update(seed=7),
        lambda state: state["data"].update(isolate=False),
        lambda state: state["data"]["sources"][0].update(weight=9.0),
        lambda state: state["data"]["sources"][1].update(sha256="other"),
        lambda state: state["data"]["sources"].reverse(),
        lambda state: state.pop("data"),
        lambda state: state.pop("offset"),
        lambda state: state.update(offset=10_000),
        lambda state: state.update(offset=-1),
        lambda state: state.update(open="nobody"),
        lambda state: state["sources"].pop("a"),
        lambda state: state["sources"]["a"].update(position=10_000),
        lambda state: state["sources"]["a"].update(epoch=-1),
        lambda state: state["sources"]["a"].update(served="many"),
    ],
)
def test_a_position_in_other_data_is_refused(source: Maker, change):
    pack = packer(source, isolate=True)
    pack.next_batch()
    state = json.loads(json.dumps(pack.state_dict()))
    change(state)
    with pytest.raises(DataError) as error:
        pack.load_state_dict(state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 1}, "seq_len=1"),
        ({"tokens_per_batch": 0}, "tokens_per_batch=0"),
        ({"tokens_per_batch": 10}, "tokens_per_batch=10 holds no sequence of seq_len=16"),
        ({"tokens_per_batch": 50}, "not a multiple of seq_len=16.*take 48"),
        ({"fim_rate": 1.5}, "fim_rate=1.5"),
        ({"fim_rate": float("nan")}, "fim_rate=nan"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_sizes_that_cannot_be_packed_are_refused(source: Maker, settings, message: str):
    with pytest.raises(ConfigError, match=message):
        packer(source, **{"isolate": False, **settings})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(source: Maker, weight: float):
    with pytest.raises(ConfigError, match=f"source 'a' has weight {weight}"):
        source(A, weight)


def test_sources_that_cannot_be_mixed_are_refused(source: Maker):
    def pack(sources: list[Source], fim_rate: float = 0.0) -> None:
        Packer(sources, tokens_per_batch=8, seq_len=8, isolate=True, fim_rate=fim_rate, seed=0)

    cases: list[tuple[type[AbyssalError], str, list[Source]]] = [
        (ConfigError, "at least one", []),
        (ConfigError, "each name once", [source(A), source(B)]),
        (DataError, "different tokenizers", [source(A), source(B, 1, "b", tokenizer_sha256="u")]),
        (
            ConfigError,
            "fim_hole, fim_end",
            [source(A, control={"bos": 0, "eos": 1, "fim_begin": 2})],
        ),
    ]
    for kind, message, sources in cases:
        with pytest.raises(kind, match=message):
            pack(sources, fim_rate=0.1)


def test_packing_is_faster_than_any_model_here_reads(source: Maker):
    # 30 million tokens/s were measured on one core; the margin is for busy machines.
    texts = [[0, *[7] * 300, 1]] * 20
    pack = Packer([source(texts)], tokens_per_batch=8192, seq_len=1024, isolate=False, seed=0)
    begin_s = time.perf_counter()
    for _ in range(128):
        pack.next_batch()
    assert 128 * 8192 / (time.perf_counter() - begin_s) > 2e6


def test_a_token_beyond_the_vocabulary_does_not_reach_the_model(tmp_path: Path):
    texts = documents_of([10] * 5)
    write_shards(
        tmp_path / "s",
        ((d, None) for d in texts),
        tokenizer_sha256="t",
        vocab_size=100,
        control=CONTROL,
    )
    path = tmp_path / "s" / "tokens-00000.bin"
    np.full(path.stat().st_size // 2, 777, "<u2").tofile(path)
    broken = Source(Shards(tmp_path / "s"), 1.0, "a")
    pack = Packer([broken], tokens_per_batch=16, seq_len=16, isolate=False, seed=0)
    with pytest.raises(DataError, match="token 777, beyond the vocabulary of 100"):
        pack.next_batch()
