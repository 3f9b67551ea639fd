"""``abyssal plan``: a table for people, one object for machines, one red line for mistakes."""

import json

import pytest

import abyssal

PAPER = (
    "plan", "deepseek-v3", "--hardware", "H800", "--devices", "2048", "--pp", "16", "--ep", "64",
    "--zero", "1", "--precision", "fp8", "--schedule", "dualpipe", "--recompute", "norms",
    "--sequences", "15360",
)  # fmt: skip


def test_people_see_the_numbers_of_the_report(abyssal_command):
    ran = abyssal_command("plan", "deepseek-v3")
    assert (ran.code, ran.err) == (0, "")
    for text in ("671,026,419,200", "36,625,618,432", "11,610,068,224", "70.27 kB", "250.5 GFLOP"):
        assert text in ran.out


def test_machines_get_one_object_and_nothing_else(abyssal_command):
    ran = abyssal_command("plan", "tiny", "--seq-len", "512", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == abyssal.plan("tiny", seq_len=512).to_dict()


def test_a_model_folder_is_planned_like_its_preset(abyssal_command, tmp_path):
    abyssal.ModelConfig.preset("small").save(tmp_path)
    planned = abyssal_command("plan", str(tmp_path), "--json").out
    assert planned == abyssal_command("plan", "small", "--json").out


def test_a_mistake_is_one_line_and_exit_code_2(abyssal_command):
    ran = abyssal_command("plan", "no/such/model")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: no/such/model: neither a model folder nor a preset")
    assert ran.err.count("\n") == 1


def test_a_plan_of_training_says_whether_it_fits_and_what_it_costs(abyssal_command):
    ran = abyssal_command(*PAPER)
    assert ran.code == 0
    for text in ("pretrain", "H800", "activations", "fits", "MFU", "device hours", "$"):
        assert text in ran.out
    plan = json.loads(abyssal_command(*PAPER, "--json").out)
    assert plan["devices"] == 2048
    assert len(plan["memory_bytes"]) == 16
    assert plan["costs"]["pretrain"]["dollars"] == 2 * plan["costs"]["pretrain"]["device_hours"]
    dearer = json.loads(abyssal_command(*PAPER, "--price", "3", "--json").out)
    assert dearer["costs"]["pretrain"]["dollars"] == pytest.approx(
        1.5 * plan["costs"]["pretrain"]["dollars"]
    )


def test_a_plan_of_serving_and_a_search(abyssal_command):
    unit = ("plan", "deepseek-v3", "--hardware", "H800", "--devices", "144", "--serve")
    served = abyssal_command(*unit, "--context", "4989", "--precision", "fp8", "--json")
    assert json.loads(served.out)["cache_bytes_per_user"] == 70_272 * 4989
    found = abyssal_command("plan", "deepseek-v3-16b", "--hardware", "H100", "--devices", "8",
                            "--search", "--tokens", "1e12")  # fmt: skip
    assert (found.code, "layouts that fit" in found.out) == (0, True)
    assert "no price is stated" in found.err


def test_the_page_is_one_file_with_its_timeline(abyssal_command, tmp_path):
    assert abyssal_command(*PAPER, "--html", str(tmp_path / "plan.html")).code == 0
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert page.count('class="s4" d="M') >= 16  # pairs on every rank
    for text in ("Memory", "Timeline", "Idle share by schedule", "rank 15", "pretrain"):
        assert text in page


def test_a_recipe_decides_what_it_says(abyssal_command):
    ran = abyssal_command("plan", "v3/pretrain", "--hardware", "H800", "--devices", "2048",
                          "--pp", "16", "--ep", "64", "--zero", "1", "--schedule", "dualpipe",
                          "--precision", "fp8", "--json")  # fmt: skip
    plan = json.loads(ran.out)
    assert plan["layout"]["sequences"] == 15360
    assert plan["costs"]["pretrain"]["tokens"] == 14.8e12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--serve",), "--serve needs hardware; add --hardware H800"),
        (("--hardware", "H800", "--devices", "9", "--pp", "4"), "take a multiple of 4"),
        (("--hardware", "H800", "--devices", "8", "--dp", "4", "--pp", "4"), "leave one of them"),
        (("--hardware", "H800", "--search"), "add --devices N"),
        (("--hardware", "H800", "--stage", "sft"), "give --tokens"),
        (("--hardware", "A100", "--precision", "fp8"), "A100 has no fp8"),
        (("--hardware", "H801"), "expected one of H800"),
        (("--hardware", "H800", "--efficiency", "2"), "shares between 0 and 1"),
    ],
)
def test_what_cannot_be_planned_is_one_line_with_a_remedy(abyssal_command, arguments, said):
    ran = abyssal_command("plan", "small", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
