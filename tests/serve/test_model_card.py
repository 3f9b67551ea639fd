"""GET /model and its report: the facts of a folder, whatever has become of it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from abyssal.engine.llm import LLM
from abyssal.plan.count import count
from abyssal.serve import answers, model_card
from tests.serve.client import serving

pytestmark = pytest.mark.anyio

REPORT = "<!doctype html><title>深海</title><style>p{}</style><p>a run"
STEPS = "".join(
    json.dumps({"kind": "step", "step": i, "tokens": 8 * i, "loss": 9.0 - i}) + "\n"
    for i in range(5)
)


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    path = tmp_path / "a model"
    path.mkdir()
    model.save(path)
    tokenizer.save(path, "v3.1")
    (path / "metrics.jsonl").write_text(STEPS)
    (path / "report.html").write_text(REPORT, "utf-8")
    return path


@pytest.fixture
def loaded(folder: Path) -> LLM:
    return LLM(folder)


async def card_of(llm: LLM) -> dict:
    async with serving(llm) as client:
        reply = await client.http.get("/model")
    assert reply.status_code == 200, reply.text
    answers.ModelCardAnswer.model_validate_json(reply.text, strict=True)
    return reply.json()


async def test_the_card_tells_what_is_served(loaded: LLM, folder: Path):
    card = await card_of(loaded)
    config = loaded.config
    assert card["id"] == "tiny"
    assert card["folder"] == str(folder)
    assert card["config"] == json.loads((folder / "config.json").read_text())
    parameters = card["parameters"]
    assert parameters["total"] == sum(p["count"] for p in parameters["parts"])
    assert parameters["total"] == sum(p.numel() for p in loaded.model.parameters()) + sum(
        gate.e_score_correction_bias.numel() for gate in loaded.model.gates()
    )
    assert parameters["active"] == count(config).params_active_with_embedding
    assert parameters["mtp"] == 0
    assert card["tokenizer"]["vocab_size"] == loaded.tokenizer.vocab_size
    assert card["tokenizer"]["sha256"] == loaded.tokenizer.sha256
    assert (card["layout"], card["layouts"]) == ("v3.1", ["v3", "r1", "v3.1"])
    assert card["thinking"] is card["report"] is True
    assert card["max_model_len"] == config.max_position_embeddings
    assert card["curves"] == {"loss": [[8 * i, 9.0 - i] for i in range(5)]}


@pytest.mark.parametrize(("layout", "thinks"), [("v3", False), ("r1", True), ("v3.1", True)])
async def test_thinking_is_of_the_layout(llm: LLM, layout, thinks):
    async with serving(llm, layout=layout) as client:
        card = (await client.http.get("/model")).json()
    assert (card["layout"], card["thinking"]) == (layout, thinks)


async def test_a_model_without_a_folder_has_neither_curves_nor_report(llm: LLM):
    card = await card_of(llm)
    assert (card["folder"], card["curves"], card["report"]) == (None, {}, False)
    async with serving(llm) as client:
        reply = await client.http.get("/model/report")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "no_report"


async def test_the_report_shows_itself_and_loads_nothing(loaded: LLM):
    async with serving(loaded) as client:
        reply = await client.http.get("/model/report")
    assert (reply.status_code, reply.text) == (200, REPORT)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["sandbox"] == ""  # no script, no form, no origin
    assert set(policy) == {
        "default-src", "style-src", "img-src", "base-uri", "form-action", "frame-ancestors",
        "sandbox",
    }  # fmt: skip
    assert not any("http" in value or "script" in value for value in policy.values())


async def test_curves_grow_with_their_file_and_are_not_read_twice(loaded, folder, monkeypatch):
    reads = []

    def noting(path):
        reads.append(path)
        return model_card_read(path)

    model_card_read = model_card.read_curves
    monkeypatch.setattr(model_card, "read_curves", noting)
    async with serving(loaded) as client:
        for _ in range(3):
            before = (await client.http.get("/model")).json()["curves"]["loss"]
        assert len(reads) == 1
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "step", "step": 9, "tokens": 72, "loss": 0.5}) + "\n")
        after = (await client.http.get("/model")).json()["curves"]["loss"]
    assert after == [*before, [72, 0.5]]


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    for name in ("metrics.jsonl", "report.html"):
        (folder / name).write_bytes(b"")


def _noise(folder: Path) -> None:
    for name in ("metrics.jsonl", "config.json", "tokenizer.json"):
        (folder / name).write_bytes(bytes(range(256)) * 100)


def _folders(folder: Path) -> None:
    for name in ("metrics.jsonl", "report.html"):
        (folder / name).unlink()
        (folder / name).mkdir()


def _pipes(folder: Path) -> None:
    for name in ("metrics.jsonl", "report.html"):
        (folder / name).unlink()
        os.mkfifo(folder / name)


def _loops(folder: Path) -> None:
    for name in ("metrics.jsonl", "report.html"):
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)


def _links_out(folder: Path) -> None:
    for name in ("metrics.jsonl", "report.html"):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)


def _hole(folder: Path) -> None:
    """Terabytes that take no room."""
    for name in ("metrics.jsonl", "report.html"):
        with (folder / name).open("wb") as file:
            file.truncate(2**40)


BREAKS = [_remove, _empty, _noise, _folders, _pipes, _loops, _links_out, _hole]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda one: one.__name__)
async def test_a_broken_folder_has_a_card_all_the_same(loaded, folder, break_it, monkeypatch):
    monkeypatch.setattr(model_card, "MOST_REPORT_BYTES", 2**20)
    break_it(folder)
    card = await card_of(loaded)
    assert card["curves"] == {}
    async with serving(loaded) as client:
        report = await client.http.get("/model/report")
    has_report = break_it in (_empty, _noise)
    assert report.status_code == (200 if has_report else 404)


CONFIGS = [
    ('{"dtype": "bfloat16", "n_routed_experts": 99}', {"dtype": "bfloat16"}),
    ('{"quantization_config": {"bits": [4, {"a": null}]}}',
     {"quantization_config": {"bits": [4, {"a": None}]}}),
    ('{"a": NaN, "b": 1e999, "c": "\\ud800", "\\ud800": 1, "d": 1' + "0" * 99 + "}", {}),
    ('{"a": ' + "[" * 9 + "]" * 9 + ', "b": true}', {"b": True}),
    ("[" * 100_000, {}),
    ("[1]", {}),
    ('{"a": "' + "x" * 2**20 + '"}', {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "more"), CONFIGS, ids=range(len(CONFIGS)))
async def test_config_json_adds_to_what_is_in_use_and_breaks_nothing(loaded, folder, text, more):
    (folder / "config.json").write_text(text)
    assert (await card_of(loaded))["config"] == {**loaded.config.to_dict(), **more}


async def test_unreadable_files_leave_their_parts_out(loaded, folder, monkeypatch):
    real = Path.open

    def refused(path, *values, **named):
        if path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied")
        return real(path, *values, **named)

    monkeypatch.setattr(Path, "open", refused)
    card = await card_of(loaded)
    assert card["curves"] == {}
    async with serving(loaded) as client:
        assert (await client.http.get("/model/report")).status_code == 404


async def test_a_path_of_any_bytes_can_be_told(model, tokenizer, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n<b>"))
    llm = LLM(model, tokenizer)
    llm.folder = path
    assert (await card_of(llm))["folder"].endswith("/\ufffd\n<b>")
