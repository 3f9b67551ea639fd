"""A folder in fewer bits: the right matrices, named and typed as the world has it, or no folder."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from abyssal.batch import Batch
from abyssal.checkpoint import files, fp8, integers, shards
from abyssal.errors import CheckpointError
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant import formats, weight_only
from abyssal.quant.convert import convert

FORMATS = ["int8", "int4", "fp8"]
PROJECTIONS = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj",
               "up_proj", "down_proj"}  # fmt: skip
HEADS = {"lm_head.weight", "model.layers.2.shared_head.head.weight"}


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def matrices_of(source):
    """The published projections of blocks."""
    return {name for name in tensors_of(source) if name.split(".")[-2] in PROJECTIONS}


# What is stored


def test_fp8_is_the_released_format(source, tmp_path):
    convert(source, tmp_path / "out", "fp8")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    coded = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    assert coded == matrices_of(source)
    for name in coded:
        scale = after.pop(f"{name}_scale_inv")
        assert (scale.dtype, scale.shape) == (torch.float32, fp8.scale_shape(before[name].shape))
    assert after.keys() == before.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }  # fmt: skip


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_integers_are_stored_by_the_names_of_compressed_tensors(source, tmp_path, to):
    convert(source, tmp_path / "out", to)
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    small = {name for name in matrices_of(source) if "kv_b_proj" not in name}
    eight, four = (small | HEADS, set()) if to == "int8" else (HEADS, small)
    for name in eight:
        numbers, scale = after.pop(name), after.pop(f"{name}_scale")
        assert (numbers.dtype, numbers.shape) == (torch.int8, before[name].shape)
        assert (scale.dtype, scale.shape) == (torch.float32, (len(numbers), 1))
    for name in four:
        rows, columns = before[name].shape
        packed, scale = after.pop(f"{name}_packed"), after.pop(f"{name}_scale")
        assert (packed.dtype, packed.shape) == (torch.int32, (rows, -(-columns // 8)))
        assert (scale.dtype, scale.shape) == (torch.bfloat16, (rows, -(-columns // 64)))
        assert after.pop(f"{name}_shape").tolist() == [rows, columns]
    assert after.keys() == before.keys() - eight - four
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_the_config_names_each_stored_matrix_once_and_ignores_the_other_linear_modules(
    source, tmp_path, to
):
    """Targets as compressed-tensors reads them: an expression for a name, else a class."""
    convert(source, tmp_path / "out", to)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    said = config["quantization_config"]
    assert said["quant_method"] == "compressed-tensors"
    assert said["quantization_status"] == "compressed"
    stored = tensors_of(tmp_path / "out")
    linear = {name.removesuffix(".weight") for name, t in tensors_of(source).items()
              if t.dim() == 2 and "embed_tokens" not in name}  # fmt: skip
    for module in linear:
        groups = list(said["config_groups"].values())
        named = [g for g in groups if any(matches(t, module) for t in g["targets"])]
        (group,) = named or [g for g in groups if "Linear" in g["targets"]]
        if any(matches(expression, module) for expression in said["ignore"]):
            assert stored[f"{module}.weight"].dtype == torch.bfloat16
        elif group["weights"]["num_bits"] == 8:
            assert stored[f"{module}.weight"].dtype == torch.int8
            assert (group["format"], group["weights"]["strategy"]) == ("int-quantized", "channel")
            assert group["input_activations"]["strategy"] == "token"
            assert group["input_activations"]["dynamic"] is True
        else:
            assert f"{module}.weight_packed" in stored
            assert (group["format"], group["weights"]["strategy"]) == ("pack-quantized", "group")
            assert group["weights"]["group_size"] == 64
    assert said["format"] == ("int-quantized" if to == "int8" else "mixed-precision")


def matches(expression, module):
    return expression.startswith("re:") and re.match(expression.removeprefix("re:"), module)


@pytest.mark.parametrize("to", FORMATS)
def test_numbers_are_those_of_the_definition(source, tmp_path, to):
    convert(source, tmp_path / "out", to)
    before, opened = tensors_of(source), shards.opened(tmp_path / "out")
    quantize = getattr(weight_only, f"quantize_{to}")
    for name in ("model.layers.1.mlp.experts.3.down_proj.weight",
                 "model.layers.0.self_attn.q_a_proj.weight"):  # fmt: skip
        numbers, scale = quantize(before[name])
        matrix = opened.matrix(name)
        assert matrix.kind == to
        assert torch.equal(matrix.scale, scale.float())
        if to == "int4":
            numbers = integers.pack(numbers)
        assert torch.equal(matrix.data.view(torch.uint8), numbers.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_precisions_are_quantized_from_what_they_are(source, tmp_path, dtype):
    for path in source.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    convert(source, tmp_path / "out", "int8")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert after["model.norm.weight"].dtype == dtype
    assert torch.equal(
        after["lm_head.weight"], weight_only.quantize_int8(before["lm_head.weight"]).numbers
    )


# Reading


@pytest.mark.parametrize(("to", "within"), [("int8", 0.02), ("fp8", 0.06), ("int4", 0.2)])
def test_the_model_of_the_new_folder_is_nearly_that_of_the_old(source, tmp_path, to, within):
    convert(source, tmp_path / "out", to)
    ours, theirs = DeepSeekV3.load(tmp_path / "out"), DeepSeekV3.load(source)
    for name, tensor in theirs.state_dict().items():
        found = ours.state_dict()[name]
        assert found.dtype == tensor.dtype, name
        assert (found.float() - tensor.float()).norm() <= within * tensor.float().norm(), name
    batch = Batch.from_sequences([[1, 2, 3, 4, 5, 6, 7]])
    with torch.inference_mode():
        expected = theirs.float().logits(batch)
        lost = ours.float().logits(batch) - expected
    assert 0 < float(lost.norm()) < 2 * within * float(expected.norm())


@pytest.mark.parametrize("to", FORMATS)
def test_a_converted_folder_that_lost_a_scale_is_refused_by_name(source, tmp_path, to):
    made = convert(source, tmp_path / "out", to)
    (path,) = made.folder.glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if "_scale" in name and "experts.2" in name)
    tensors["model.layers.0.self_attn.o_proj.weight_zero_point"] = tensors.pop(name)
    save_file(tensors, made.folder / "model.safetensors")
    (made.folder / shards.INDEX).unlink()
    with pytest.raises(CheckpointError) as error:
        DeepSeekV3.load(made.folder)
    assert f"1 missing: {name}" in str(error.value)
    assert "1 surplus: model.layers.0.self_attn.o_proj.weight_zero_point" in str(error.value)


# The folder


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("max_shard_bytes", [1, 30_000, 5e9])
def test_shards_are_as_large_as_was_planned_and_the_index_knows_them(
    source, tmp_path, to, max_shard_bytes
):
    heard = []
    made = convert(
        source, tmp_path / "out", to, max_shard_bytes=max_shard_bytes,
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    index = json.loads((made.folder / shards.INDEX).read_text())
    sizes = []
    for path in made.folder.glob("*.safetensors"):
        tensors = load_file(path)
        assert all(index["weight_map"][name] == path.name for name in tensors)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
    assert len(index["weight_map"]) == len(tensors_of(made.folder))
    assert sum(sizes) == index["metadata"]["total_size"] == made.bytes_after
    assert made.bytes_before == sum(t.nbytes for t in tensors_of(source).values())
    assert [total for _, total in heard] == [made.bytes_after] * (made.matrices + made.kept)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1][0] == made.bytes_after
    if max_shard_bytes == 30_000:
        assert len(sizes) > 2
        assert max(sizes) <= 30_000
    DeepSeekV3.load(made.folder)


def test_what_describes_the_model_comes_along_and_what_tells_of_a_run_does_not(source, tmp_path):
    made = convert(source, tmp_path / "out", "int8")
    names = {path.name for path in made.folder.iterdir()}
    assert names == {
        "LICENSE", "config.json", "generation_config.json", "manifest.json",
        "model-00001-of-00001.safetensors", "model.safetensors.index.json", "tokenizer.json",
    }  # fmt: skip
    assert not files.verify(made.folder)
    config = json.loads((made.folder / "config.json").read_text())
    assert config.pop("quantization_config") == formats.quantization_config("int8")
    assert config == json.loads((source / "config.json").read_text())


def test_rows_that_end_in_a_short_group_are_counted(source, tmp_path):
    four = [t for n, t in tensors_of(source).items() if formats.kind_of(n, "int4") == "int4"]
    made = convert(source, tmp_path / "out", "int4")
    assert made.short_groups == sum(tensor.shape[1] % 64 != 0 for tensor in four) > 0
    assert convert(source, tmp_path / "eight", "int8").short_groups == 0


# No folder


def nothing_was_left(tmp_path):
    return {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_folder_that_is_not_approved_does_not_appear(source, tmp_path):
    seen = []

    def approve(draft):
        seen.append(DeepSeekV3.load(draft))
        assert not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "int4", approve=approve)
    assert seen
    assert nothing_was_left(tmp_path)


def test_a_folder_that_is_there_is_never_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="out exists already"):
        convert(source, tmp_path / "out", "int8")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, source, "int8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_that_came_meanwhile_is_not_touched_either(source, tmp_path):
    def approve(draft):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()

    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(source, tmp_path / "out", "int8", approve=approve)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize("first", FORMATS)
def test_what_is_quantized_already_is_refused(source, tmp_path, first):
    convert(source, tmp_path / "once", first)
    with pytest.raises(CheckpointError, match="quantized already"):
        convert(tmp_path / "once", tmp_path / "twice", "int8")
    config = json.loads((tmp_path / "once" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "once" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="holds quantized weights"):
        convert(tmp_path / "once", tmp_path / "twice", "int8")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(source, tmp_path, bad):
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"][2, 3] = bad
            save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds numbers that are not finite"):
        convert(source, tmp_path / "out", "int8")
    assert nothing_was_left(tmp_path)


def test_a_broken_source_is_refused_before_anything_is_written(source, tmp_path):
    path = sorted(source.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        convert(source, tmp_path / "out", "int8")
    assert nothing_was_left(tmp_path)
