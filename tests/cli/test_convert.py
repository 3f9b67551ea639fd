"""`abyssal convert`, as a person runs it."""

import json
import os
import shutil
import signal

import pytest

from abyssal.evals import fidelity
from abyssal.evals.fidelity import Fidelity, MatrixError
from abyssal.model.transformer import DeepSeekV3


@pytest.fixture(autouse=True)
def _disk_need_not_be_waited_for(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the fish see the dark sea")
    return str(tmp_path / "text.txt")


@pytest.fixture
def lost(monkeypatch):
    """lost(0.1): the measurement finds this loss in bits per byte."""

    def pretend(loss):
        worst = (MatrixError(name="lm_head.weight", weight_error=0.5, output_error=0.25),)
        found = Fidelity(before=1.0, after=1.0 + loss, unmeasured=None, matrices=worst)
        monkeypatch.setattr(fidelity, "measure", lambda source, draft, texts: found)

    return pretend


@pytest.mark.parametrize("to", ["int8", "int4", "fp8"])
def test_it_writes_a_folder_that_the_other_verbs_take(abyssal_command, folder, tmp_path, text, to):
    out = str(tmp_path / "out")
    ran = abyssal_command("convert", folder, out, f"--{to}", "--text", text)
    assert ran.code == 0, ran.err
    assert "model.layers.0" in ran.out
    assert "no better than chance" in ran.err
    ran = abyssal_command("generate", out, "--prompt", "the", "--max-tokens", "2", "--json")
    assert ran.code == 0, ran.err
    ran = abyssal_command("info", out, "--json")
    assert json.loads(ran.out)["hashes"] == "as written"


def test_json_says_what_was_made_and_what_it_cost(abyssal_command, folder, tmp_path, text, lost):
    lost(0.25)
    out = str(tmp_path / "out")
    ran = abyssal_command("convert", folder, out, "--int8", "--text", text, "--json")
    said = json.loads(ran.out)
    assert (said["folder"], said["format"]) == (out, "int8")
    assert (said["bits_per_byte_before"], said["bits_per_byte_after"]) == (1.0, 1.25)
    assert said["loss"] == 0.25
    assert said["worst"] == [{"name": "lm_head.weight", "weight_error": 0.5, "output_error": 0.25}]
    assert said["bytes_after"] < said["bytes_before"]


def test_a_loss_is_shown_and_a_notable_one_remarked_upon(abyssal_command, folder, tmp_path, lost):
    lost(0.01)
    ran = abyssal_command("convert", folder, str(tmp_path / "a"), "--int4")
    assert "1.0000 before, 1.0100 after: +0.0100" in ran.out
    assert "25.00%" in ran.out
    assert "lost" not in ran.err
    lost(0.06)
    ran = abyssal_command("convert", folder, str(tmp_path / "b"), "--int4")
    assert ran.code == 0
    assert "more than 0.05 bits per byte lost" in ran.err
    assert (tmp_path / "b" / "config.json").exists()


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_beyond_max_loss_there_is_no_folder_and_exit_code_1(
    abyssal_command, folder, tmp_path, lost, json_flag
):
    lost(0.02)
    out = str(tmp_path / "out")
    ran = abyssal_command("convert", folder, out, "--int8", "--max-loss", "0.01", *json_flag)
    assert ran.code == 1
    assert "0.0200 bits per byte are lost, 0.01 allowed" in ran.err
    if json_flag:
        assert json.loads(ran.out)["folder"] is None
    assert list(tmp_path.iterdir()) == []
    ran = abyssal_command("convert", folder, out, "--int8", "--max-loss", "0.03", *json_flag)
    assert ran.code == 0


def test_a_limit_that_cannot_be_checked_is_said_and_nothing_written(
    abyssal_command, folder, tmp_path, text
):
    ran = abyssal_command(
        "convert", folder, str(tmp_path / "out"), "--int8", "--max-loss", "1", "--text", text
    )
    assert ran.code == 2
    assert "--max-loss cannot be checked: the source needs" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_converted_and_the_reason_given(
    abyssal_command, folder, tmp_path
):
    DeepSeekV3.load(folder).save(tmp_path / "mute")
    ran = abyssal_command("convert", str(tmp_path / "mute"), str(tmp_path / "out"), "--fp8")
    assert ran.code == 0, ran.err
    assert "no tokenizer" in ran.err


def test_without_the_check_nothing_is_measured(abyssal_command, folder, tmp_path, monkeypatch):
    monkeypatch.delattr(fidelity, "measure")
    ran = abyssal_command(
        "convert", folder, str(tmp_path / "out"), "--int8", "--no-check", "--json"
    )
    assert ran.code == 0, ran.err
    assert "loss" not in json.loads(ran.out)


def test_mistakes_are_one_line_and_exit_code_2(abyssal_command, folder, tmp_path, text):
    out = tmp_path / "out"
    (tmp_path / "there").mkdir()
    quantized = str(tmp_path / "quantized")
    assert abyssal_command("convert", folder, quantized, "--int8", "--no-check").code == 0
    unknown = shutil.copytree(folder, tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (unknown / "config.json").write_text(json.dumps(config))
    for words, complaint in [
        ((folder, out), "no format given; expected one of --bf16, --fp32"),
        ((folder, out, "--int8", "--fp8"), "--fp8 and --int8 given; expected one of"),
        ((tmp_path / "nowhere", out, "--int8"), "nowhere: no such folder"),
        ((folder, tmp_path / "there", "--int8"), "there exists already"),
        ((folder, out, "--int8", "--no-check", "--text", text), "leave out --no-check"),
        ((folder, out, "--int8", "--no-check", "--max-loss", "1"), "leave out --no-check"),
        ((folder, out, "--int8", "--text", tmp_path / "no.txt"), "no.txt"),
        ((folder, out, "--bf16", "--max-loss", "1"), "belong to what is measured: --fp8"),
        ((folder, out, "--gguf", "--shard-size", "1GB"), "--gguf writes one file"),
        ((folder, out, "--shard-size", "0"), "--shard-size 0 given"),
        ((folder, out, "--shard-size", "much"), "'much' is no amount of memory"),
        ((folder, out, "--fp32"), "is in fp32 already"),
        ((folder, out, "--gguf", "--gguf-type", "q8_0"), "take --gguf-type bf16"),
        ((quantized, out, "--int4"), "quantized is quantized already (int8)"),
        ((unknown, out, "--int4"), "quant_method='awq', expected fp8 or compressed-tensors"),
    ]:
        ran = abyssal_command("convert", *map(str, words))
        assert ran.code == 2, words
        assert complaint in ran.err
        assert len(ran.err.splitlines()) == 1
        assert not out.exists()


def test_a_model_larger_than_memory_is_converted_and_not_measured(
    abyssal_command, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(fidelity, "free_bytes", lambda device: 1000)
    ran = abyssal_command("convert", folder, str(tmp_path / "out"), "--int8", "--json")
    assert ran.code == 0, ran.err
    assert "what it costs will not be measured" in ran.err
    assert "0.0 GB are free" in ran.err
    assert "loss" not in json.loads(ran.out)
    ran = abyssal_command("convert", folder, str(tmp_path / "b"), "--int8", "--max-loss", "1")
    assert ran.code == 2
    assert "cannot be obeyed" in ran.err
    assert not (tmp_path / "b").exists()


def test_there_and_back_in_other_shards_and_out_to_gguf(abyssal_command, folder, tmp_path):
    steps = [
        (folder, "fp8", "--fp8", "--no-check"),
        (tmp_path / "fp8", "fp32", "--fp32", "--shard-size", "10kB"),
        (tmp_path / "fp32", "again", "--fp8", "--no-check"),
        (tmp_path / "fp32", "one", "--shard-size", "1GB"),
        (tmp_path / "one", "model.gguf", "--gguf"),
    ]
    for source, out, *words in steps:
        ran = abyssal_command("convert", str(source), str(tmp_path / out), *words, "--json")
        assert ran.code == 0, ran.err
        said = json.loads(ran.out)
    assert (said["type"], said["mtp_modules"]) == ("bf16", 0)
    assert len(list((tmp_path / "fp32").glob("model-*"))) > 1
    (first,), (last,) = ((tmp_path / name).glob("model-*") for name in ("fp8", "again"))
    assert first.read_bytes() == last.read_bytes()


def test_a_signal_ends_it_between_two_tensors_and_the_same_command_goes_on(
    abyssal_command, folder, tmp_path, text, monkeypatch
):
    def measure(source, draft, texts):
        os.kill(os.getpid(), signal.SIGINT)
        return Fidelity(before=1.0, after=1.0, unmeasured=None, matrices=())

    monkeypatch.setattr(fidelity, "measure", measure)
    words = ("convert", folder, str(tmp_path / "out"), "--int8", "--text", text, "--json")
    ran = abyssal_command(*words)
    assert ran.code == 128 + signal.SIGINT
    assert "run the same command to go on" in ran.err
    assert not (tmp_path / "out").exists()
    ran = abyssal_command(*words[:-3], "--no-check", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["shards_taken_over"] == said["shards"] == 1
