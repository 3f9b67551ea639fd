"""`abyssal info`: what a folder holds, and everything that is wrong with a broken one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from abyssal.checkpoint import files, shards
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant.convert import convert
from abyssal.quant.inspection import inspect


@pytest.fixture(scope="session")
def fp8(make_folder, tmp_path_factory):
    """A folder in FP8 with an MTP module, in several shards."""
    path = make_folder(["the deep sea is dark and the fish see\n" * 4], 320,
                       num_nextn_predict_layers=1)  # fmt: skip
    out = tmp_path_factory.mktemp("info") / "fp8"
    return convert(path, out, "fp8", max_shard_bytes=12_000).folder


@pytest.fixture
def broken(fp8, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(fp8, tmp_path / "broken")


def shard_with(folder, name):
    index = json.loads((folder / shards.INDEX).read_text())
    return folder / index["weight_map"][name]


def change(folder, name, tensor):
    """Another tensor, or none, in the place of one."""
    path = shard_with(folder, name)
    tensors = load_file(path)
    tensors[name] = tensor
    save_file({n: t for n, t in tensors.items() if t is not None}, path)


def edit(path, **changes):
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def faults(folder, verify=False):
    return [f"{fault.what}; {fault.remedy}" for fault in inspect(folder, verify=verify).faults]


def test_a_whole_folder_is_told_by_its_headers(abyssal_command, fp8, monkeypatch):
    monkeypatch.delattr(DeepSeekV3, "load")  # nothing is loaded
    ran = abyssal_command("info", str(fp8), "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert (said["whole"], said["faults"]) == (True, [])
    opened = shards.opened(fp8)
    coded = [name for name in opened.weights() if opened.precision(name) == "fp8"]
    assert said["quantized"] == {"fp8": len(coded)}
    assert said["fp8_scales"] == len(coded)  # each smaller than a block
    assert (said["fp8_block"], said["scale_format"]) == ([128, 128], "float32")
    assert said["bytes"] == sum(said["bytes_by_type"].values())
    assert said["bytes_by_type"]["F8_E4M3"] == sum(opened.raw(name).numel() for name in coded)
    assert (said["mtp_modules"], said["layout"], said["tokenizer_tokens"]) == (1, "v3", 320)
    assert said["shards"] == len(list(fp8.glob("model-*"))) > 2
    assert said["hashes"] == "as written"


def test_the_hash_of_a_folder_is_that_of_its_files(abyssal_command, fp8, broken):
    said = inspect(fp8).facts["sha256"]
    assert inspect(broken).facts["sha256"] == inspect(fp8, verify=False).facts["sha256"] == said
    (broken / "generation_config.json").write_text("{}")
    found = inspect(broken)
    assert found.facts["sha256"] != said
    assert found.facts["hashes"] == "changed"
    assert [fault.what for fault in found.faults] == [
        "not as it was written: generation_config.json"
    ]
    (broken / files.MANIFEST).unlink()
    found = inspect(broken)
    assert not found.faults
    assert found.facts["hashes"] == "no manifest to compare with"


BREAKS = {
    "model-00001-of-": lambda f: sorted(f.glob("model-*"))[0].unlink(),
    "is truncated: ": lambda f: cut(sorted(f.glob("model-*"))[1], -3),
    "has no whole header (5 bytes)": lambda f: cut(sorted(f.glob("model-*"))[1], 5),
    "missing: model.norm.weight": lambda f: change(f, "model.norm.weight", None),
    "of another shape: model.norm.weight is 3, expected 16": lambda f: change(
        f, "model.norm.weight", torch.ones(3)
    ),
    "not in the index: stray is in": lambda f: append(f, "stray"),
    "index points to nothing: model.norm.weight is not in": lambda f: change(
        f, "model.norm.weight", None
    ),
    "of a type not among": lambda f: change(f, "model.norm.weight", torch.ones(16).double()),
    "FP8 without scales: model.layers.0.self_attn.o_proj.weight has no": lambda f: unindex(
        f, "model.layers.0.self_attn.o_proj.weight_scale_inv"
    ),
    "scales of another shape: model.layers.0.self_attn.o_proj.weight_scale_inv is 2x1": (
        lambda f: change(f, "model.layers.0.self_attn.o_proj.weight_scale_inv", torch.ones(2, 1))
    ),
    "o_proj.weight_scale_inv has 1 of 1 NaN, infinite or zero": lambda f: change(
        f, "model.layers.0.self_attn.o_proj.weight_scale_inv", torch.tensor([[torch.nan]])
    ),
    "config.json has no quantization_config": lambda f: edit(
        f / "config.json", quantization_config=None
    ),
    "quant_method='awq'": lambda f: edit(
        f / "config.json", quantization_config={"quant_method": "awq"}
    ),
    "config.json: not valid JSON": lambda f: cut(f / "config.json", 40),
    "model.safetensors.index.json: cannot be read": lambda f: cut(f / shards.INDEX, 40),
    "tokenizer.json does not exist": lambda f: (f / "tokenizer.json").unlink(),
    "the tokenizer has 320 tokens, config.json says vocab_size=300": lambda f: edit(
        f / "config.json", vocab_size=300
    ),
    "config.json says eos_token_id=5, the tokenizer 1": lambda f: edit(
        f / "config.json", eos_token_id=5
    ),
    "has no chat template": lambda f: edit(f / "tokenizer_config.json", chat_template=None),
    "index.json is missing, and model-00001-of-": lambda f: (f / shards.INDEX).unlink(),
    "no weights; expected": lambda f: [path.unlink() for path in f.glob("model*")],
    "the index does not name it": lambda f: shutil.copy(
        sorted(f.glob("model-*"))[0], f / "model-extra.safetensors"
    ),
}


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def append(folder, name):
    path = sorted(folder.glob("model-*"))[0]
    save_file(load_file(path) | {name: torch.ones(1)}, path)


def unindex(folder, name):
    change(folder, name, None)
    index = json.loads((folder / shards.INDEX).read_text())
    del index["weight_map"][name]
    (folder / shards.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("said", BREAKS)
def test_what_is_broken_is_said_with_what_to_do(broken, said):
    BREAKS[said](broken)
    found = [fault for fault in faults(broken) if said in fault]
    assert found, faults(broken)
    assert all("; " in fault and "\n" not in fault for fault in found)


def test_all_faults_are_found_at_once_and_the_exit_code_is_1(abyssal_command, broken):
    first, second, *_ = sorted(broken.glob("model-*"))
    first.unlink()
    cut(second, -1)
    (broken / "tokenizer.json").write_text("{")
    (broken / "generation_config.json").write_text("[]")
    ran = abyssal_command("info", str(broken))
    assert ran.code == 1
    lines = [line for line in ran.out.splitlines() if line.startswith("broken: ")]
    for said in (f"{first.name} is missing", f"{second.name} is truncated", "is not JSON",
                 "not as it was written: generation_config.json",
                 f"in the manifest but not here: {first.name}"):  # fmt: skip
        assert sum(said in line for line in lines) == 1, said
    ran = abyssal_command("info", str(broken), "--no-verify", "--json")
    assert ran.code == 1
    said = json.loads(ran.out)
    assert said["whole"] is False
    assert {"what", "remedy"} == said["faults"][0].keys()
    assert said["hashes"] == "not compared"


def test_many_faults_of_a_kind_are_counted(broken):
    index = json.loads((broken / shards.INDEX).read_text())
    index["weight_map"] = dict([*index["weight_map"].items()][:-60])
    (broken / shards.INDEX).write_text(json.dumps(index))
    extra = [fault for fault in faults(broken) if fault.startswith("not in the index: ")]
    assert 0 < len(extra) <= 21 * len(list(broken.glob("model-*")))
    missing = [fault for fault in faults(broken) if fault.startswith("missing: ")]
    assert len(missing) == 21
    assert "more; " in missing[-1]


def test_tensors_of_a_shard_that_is_missing_are_not_listed(broken):
    sorted(broken.glob("model-*"))[0].unlink()
    (fault,) = faults(broken)
    assert "is missing, with" in fault


def test_no_folder_is_exit_code_2(abyssal_command, tmp_path):
    ran = abyssal_command("info", str(tmp_path / "nowhere"))
    assert ran.code == 2
    assert "nowhere: no such folder" in ran.err
