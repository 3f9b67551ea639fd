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
from abyssal.quant import formats, round_trip, weight_only
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
        progress=lambda done, total, what: heard.append((done, total, what)),
    )  # fmt: skip
    heard = [(done, total) for done, total, what in heard if not what.startswith("comparing")]
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
        raise RuntimeError

    with pytest.raises(RuntimeError):
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
    (tmp_path / "out" / "mine").unlink()
    (tmp_path / "out").rmdir()
    made = convert(source, tmp_path / "out", "int8")
    assert made.shards_taken_over == made.shards == 1  # nothing was lost


@pytest.mark.parametrize("first", ["int8", "int4"])
@pytest.mark.parametrize("to", FORMATS)
def test_what_was_rounded_to_integers_is_not_rounded_again(source, tmp_path, first, to):
    convert(source, tmp_path / "once", first)
    with pytest.raises(CheckpointError, match=r"once is quantized already .* would lose twice"):
        convert(tmp_path / "once", tmp_path / "twice", to)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("to", ["fp8", "bf16"])
def test_a_folder_that_is_in_the_format_already_is_not_copied(source, tmp_path, to):
    if to == "fp8":
        source = convert(source, tmp_path / "fp8", "fp8").folder
    with pytest.raises(CheckpointError, match=f"is in {to} already; nothing to convert"):
        convert(source, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


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


# From any format to any other


@pytest.mark.parametrize("to", ["bf16", "fp32"])
@pytest.mark.parametrize("first", FORMATS)
def test_what_is_quantized_is_multiplied_out(source, tmp_path, first, to):
    convert(source, tmp_path / "once", first)
    made = convert(tmp_path / "once", tmp_path / "out", to)
    expected, found = shards.opened(tmp_path / "once"), shards.opened(made.folder)
    dtype = formats.PLAIN[to]
    assert found.weights().keys() == tensors_of(source).keys()
    for name in found.weights():
        whole = expected.raw(name) if expected.precision(name) in ("bf16", "fp32") else (
            expected.matrix(name).dequantize(dtype))  # fmt: skip
        keeps = name.endswith("_bias") and to == "bf16"
        assert torch.equal(found.raw(name), whole if keeps else whole.to(dtype)), name
    config = json.loads((made.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert DeepSeekV3.load(made.folder).lm_head.weight.dtype == dtype


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_integers_of_fp8_are_those_of_what_fp8_stands_for(source, tmp_path, to):
    convert(source, tmp_path / "fp8", "fp8")
    convert(tmp_path / "fp8", tmp_path / "out", to)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    whole = shards.opened(tmp_path / "fp8").matrix(name).dequantize(torch.float32)
    numbers, scale = getattr(weight_only, f"quantize_{to}")(whole)
    matrix = shards.opened(tmp_path / "out").matrix(name)
    numbers = integers.pack(numbers) if to == "int4" else numbers
    assert torch.equal(matrix.data.view(torch.uint8), numbers.view(torch.uint8))
    assert torch.equal(matrix.scale, scale.float())
    kept = shards.opened(tmp_path / "out").stored["model.layers.1.self_attn.kv_b_proj.weight"]
    assert kept.dtype == "BF16"
    DeepSeekV3.load(tmp_path / "out")


@pytest.mark.parametrize("between", ["bf16", "fp32"])
def test_fp8_comes_back_byte_by_byte(source, tmp_path, between):
    convert(source, tmp_path / "fp8", "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config["quantization_config"]["scale_fmt"] = "ue8m0"  # comes back too
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "fp8", tmp_path / "plain", between, max_shard_bytes=30_000)
    convert(tmp_path / "plain", tmp_path / "merged", None, max_shard_bytes=5e9)
    convert(tmp_path / "merged", tmp_path / "again", "fp8")
    before, after = tensors_of(tmp_path / "fp8"), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.uint8), after[name].to(tensor.dtype).view(torch.uint8))
    said = json.loads((tmp_path / "again" / "config.json").read_text())
    assert said["quantization_config"] == config["quantization_config"]
    assert not (tmp_path / "again" / round_trip.FILE).exists()


@pytest.mark.parametrize("where", ["weight", "weight_scale_inv"])
@pytest.mark.parametrize("to", ["bf16", "fp32", "int8"])
def test_nan_in_fp8_or_in_its_scales_is_refused(source, tmp_path, where, to):
    convert(source, tmp_path / "fp8", "fp8")
    (path,) = (tmp_path / "fp8").glob("model-*")
    tensors = load_file(path)
    name = f"model.layers.0.self_attn.o_proj.{where}"
    tensors[name].view(torch.uint8)[0] = 0x7F if where == "weight" else 0xFF
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"o_proj\.weight holds numbers that are not finite"):
        convert(tmp_path / "fp8", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.writing").exists()


def test_weights_that_were_changed_since_are_quantized_anew(source, tmp_path):
    convert(source, tmp_path / "fp8", "fp8")
    convert(tmp_path / "fp8", tmp_path / "plain", "bf16")
    name = "model.layers.0.mlp.up_proj.weight"  # 150 by 70: two blocks
    path = next(p for p in (tmp_path / "plain").glob("model-*") if name in load_file(p))
    tensors = load_file(path)
    tensors[name][140, 3] *= 1.01
    save_file(tensors, path)
    convert(tmp_path / "plain", tmp_path / "again", "fp8")
    before, after = tensors_of(tmp_path / "fp8"), tensors_of(tmp_path / "again")
    anew = weight_only.quantize_fp8(tensors[name])
    assert torch.equal(after[name][:128].view(torch.uint8), before[name][:128].view(torch.uint8))
    assert torch.equal(after[name][128:].view(torch.uint8), anew.numbers[128:].view(torch.uint8))
    assert after[f"{name}_scale_inv"][1] == anew.scale[1]


@pytest.mark.parametrize("to", [None, "fp8"])
def test_other_shards_hold_the_same_tensors(source, tmp_path, to):
    folder = convert(source, tmp_path / "fp8", to).folder if to else source
    split = convert(folder, tmp_path / "split", None, max_shard_bytes=20_000)
    merged = convert(split.folder, tmp_path / "merged", None, max_shard_bytes=5e9)
    assert split.shards > 3
    assert (merged.shards, merged.matrices) == (1, 0)
    before = tensors_of(folder)
    for made in (split, merged):
        after = tensors_of(made.folder)
        assert after.keys() == before.keys()
        assert all(same_bits(after[name], tensor) for name, tensor in before.items())
        assert (made.folder / "config.json").read_text() == (
            files_of(folder)["config.json"].read_text()
        )


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def files_of(folder):
    return {path.name: path for path in folder.iterdir()}


# Stopped and gone on with


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(source, tmp_path):
    whole = convert(source, tmp_path / "whole", "int8", max_shard_bytes=20_000)
    stops = 0
    while True:
        allowed = iter(range(20))

        def stop(done, total, what, allowed=allowed):
            if "already" not in what and next(allowed, None) is None:
                raise KeyboardInterrupt

        try:
            made = convert(source, tmp_path / "out", "int8", max_shard_bytes=20_000, progress=stop)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not (tmp_path / "out").exists()
    assert stops > 2
    assert made.shards_taken_over > 0
    assert files_of(made.folder).keys() == files_of(whole.folder).keys()
    for name, path in files_of(whole.folder).items():
        assert (made.folder / name).read_bytes() == path.read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"source", "whole", "out"}


@pytest.fixture
def stopped(source, tmp_path):
    """A source and the draft of a folder of it, stopped before the end."""

    def approve(draft):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "int8", max_shard_bytes=20_000, approve=approve)
    return source, tmp_path / ".out.writing"


def test_a_shard_that_is_not_as_it_was_written_is_made_again(stopped, tmp_path):
    source, draft = stopped
    broken, gone, *_ = sorted(draft.glob("*.safetensors"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    gone.unlink()
    made = convert(source, tmp_path / "out", "int8", max_shard_bytes=20_000)
    assert made.shards_taken_over == made.shards - 2
    assert (made.folder / broken.name).read_bytes() == whole
    assert not files.verify(made.folder)


def test_unfinished_work_of_another_kind_is_not_touched(stopped, tmp_path):
    source, draft = stopped
    before = {path.name: path.read_bytes() for path in draft.iterdir()}
    complaint = r"unfinished work of another kind: .* to int8, .* files written"
    with pytest.raises(CheckpointError, match=complaint):
        convert(source, tmp_path / "out", "int4", max_shard_bytes=20_000)
    changed = source / "config.json"
    changed.write_text(changed.read_text() + " ")
    with pytest.raises(CheckpointError, match="unfinished work of another kind"):
        convert(source, tmp_path / "out", "int8", max_shard_bytes=20_000)
    assert {path.name: path.read_bytes() for path in draft.iterdir()} == before


def test_one_process_writes_a_folder_at_a_time(source, tmp_path):
    def approve(draft):
        with pytest.raises(CheckpointError, match="is being written by another process"):
            convert(source, tmp_path / "out", "int8")

    convert(source, tmp_path / "out", "int8", approve=approve)
