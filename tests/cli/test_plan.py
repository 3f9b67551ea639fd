"""``abyssal plan``: a table for people, one object for machines, one red line for mistakes."""

import json

import abyssal


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
