"""A model folder: written and read back bit for bit, or refused with every fault named at once."""

import contextlib
import json
import math
import os
import resource
import shutil
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abyssal.checkpoint import files, fp8, names, weights
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError, ConfigError
from abyssal.model.transformer import DeepSeekV3

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=20, num_hidden_layers=2, first_k_dense_replace=1,
    intermediate_size=12, num_nextn_predict_layers=1, num_attention_heads=2, q_lora_rank=6,
    kv_lora_rank=10, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=7, moe_intermediate_size=9,
    n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, max_position_embeddings=64,
)  # fmt: skip
GATE_BIAS = "layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture(autouse=True)
def _disk_need_not_be_waited_for(monkeypatch):
    """Flushing costs most of the time of a small write, and no test here pulls a plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def random_tensors(config=CONFIG, dtype=torch.float32, seed=0):
    """Random values for every tensor of the model; gate biases in float32 as in the release."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    return {
        name: torch.randn(t.shape, generator=generator).to(
            torch.float32 if name.endswith("_bias") else dtype
        )
        for name, t in model.state_dict().items()
    }


def shapes_of(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def read(folder, config=CONFIG, **options):
    return weights.read(folder, config, shapes_of(random_tensors(config)), **options)


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def folder(tmp_path):
    """A folder with the random tensors of seed 0, in several shards."""
    weights.write(tmp_path / "model", CONFIG, random_tensors(), max_shard_bytes=8000)
    assert len(shards_of(tmp_path / "model")) > 3
    return tmp_path / "model"


def edit_shards(folder, change):
    """Pass all published tensors through `change` and store them as one file without an index."""
    tensors = {}
    for path in shards_of(folder):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_shard_bytes", [1, 3000, 5e9])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype, max_shard_bytes):
    tensors = random_tensors(dtype=dtype)
    weights.write(tmp_path / "model", CONFIG, tensors, max_shard_bytes=max_shard_bytes)
    assert_identical(read(tmp_path / "model"), tensors)
    assert ModelConfig.load(tmp_path / "model") == CONFIG
    published = json.loads((tmp_path / "model" / "config.json").read_text())
    assert published["dtype"] == published["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("q_lora_rank", [None, 6])
@pytest.mark.parametrize("modules", [0, 2])
def test_every_tensor_of_every_layout_has_names_of_its_own(tmp_path, q_lora_rank, modules):
    config = ModelConfig(**(
        {f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}
        | {"q_lora_rank": q_lora_rank, "num_nextn_predict_layers": modules, "n_shared_experts": 0}
    ))  # fmt: skip
    tensors = random_tensors(config)
    weights.write(tmp_path / "model", config, tensors)
    assert_identical(read(tmp_path / "model", config), tensors)


def test_names_on_disk_are_those_of_the_release(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    attention = ["q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm",
                 "kv_b_proj", "o_proj"]  # fmt: skip
    halves = ["gate_proj", "up_proj", "down_proj"]
    block = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{a}" for a in attention)]
    routed = [f"mlp.experts.{e}.{half}" for e in range(4) for half in halves]
    routed += ["mlp.gate", *(f"mlp.shared_experts.{half}" for half in halves)]
    mtp = ["enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head"]
    expected = {"model.embed_tokens", "model.norm", "lm_head"}
    expected |= {f"model.layers.0.{x}" for x in (*block, *(f"mlp.{half}" for half in halves))}
    expected |= {f"model.layers.1.{x}" for x in (*block, *routed)}
    expected |= {f"model.layers.2.{x}" for x in (*block, *routed, *mtp)}
    expected = {f"{name}.weight" for name in expected}
    expected |= {f"model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2)}
    assert set(index["weight_map"]) == expected
    sizes = [t.nbytes for path in shards_of(folder) for t in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_shards_hold_at_most_max_shard_bytes_unless_one_tensor_is_larger(folder):
    for path in shards_of(folder):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 8000
        assert path.name.endswith(f"-of-{len(shards_of(folder)):05d}.safetensors")


def test_a_folder_without_an_index_is_read_from_its_one_shard(folder):
    edit_shards(folder, lambda tensors: None)
    assert_identical(read(folder), random_tensors())


def test_a_dtype_casts_all_but_the_gate_biases(folder):
    found = read(folder, dtype=torch.bfloat16)
    assert found[GATE_BIAS].dtype == torch.float32
    assert {t.dtype for n, t in found.items() if not n.endswith("_bias")} == {torch.bfloat16}
    expected = random_tensors(dtype=torch.bfloat16)
    assert_identical(found, expected)


def test_numbers_that_are_not_finite_are_kept_as_they_are(tmp_path):
    tensors = random_tensors()
    for name in ("norm.weight", "embed_tokens.weight"):
        tensors[name].view(-1)[:2] = torch.tensor([torch.nan, -torch.inf])
    weights.write(tmp_path / "model", CONFIG, tensors)
    found = read(tmp_path / "model")
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, equal_nan=True, atol=0, rtol=0)


def test_what_was_read_does_not_change_when_the_folder_does(folder):
    found = read(folder)
    for path in shards_of(folder):
        path.write_bytes(bytes(path.stat().st_size))  # overwritten in place, as a careless copy is
    assert_identical(found, random_tensors())


# Folders of the release


@pytest.fixture(scope="module")
def released():
    with torch.device("meta"):
        shapes = shapes_of(DeepSeekV3(ModelConfig.preset("deepseek-v3")).state_dict())
    config = ModelConfig.preset("deepseek-v3")
    parts = [part for name, shape in shapes.items() for part in names.parts(name, shape, config)]
    return config, {part.published: part.shape for part in parts}


def test_an_fp8_release_has_91_991_tensors_and_688_574_839_360_bytes(released):
    config, shapes = released
    shapes = shapes | {copy: shapes[like] for copy, like in names.copies(config).items()}
    num_tensors, num_bytes = len(shapes), 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        linear = ".self_attn." in name or (".mlp." in name and ".mlp.gate." not in name)
        if linear and len(shape) == 2:
            num_tensors += 1
            num_bytes += size + 4 * math.prod(fp8.scale_shape(shape))
        else:
            num_bytes += size * (4 if name.endswith("_bias") else 2)
    assert num_tensors == 91_991
    assert num_bytes == 688_574_839_360


def quantize(weight, block):
    """float8 numbers and scales of a matrix, block by block."""
    rows, columns = fp8.scale_shape(weight.shape, block)
    q, scale = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            place = (
                slice(i * block[0], (i + 1) * block[0]),
                slice(j * block[1], (j + 1) * block[1]),
            )
            scale[i, j] = weight[place].abs().max() / 448
            q[place] = (weight[place] / scale[i, j]).to(torch.float8_e4m3fn)
    return q, scale


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    block=st.sampled_from([(128, 128), (5, 7)]),
)
def test_every_fp8_number_is_multiplied_by_the_scale_of_its_block(rows, columns, block):
    q = torch.randint(1, 100, (rows, columns)).to(torch.float8_e4m3fn)
    scale = torch.rand(fp8.scale_shape((rows, columns), block))
    found = fp8.dequantize(q, scale, block)
    assert found.dtype == torch.bfloat16
    down, across = torch.arange(rows) // block[0], torch.arange(columns) // block[1]
    expected = q.float() * scale[down[:, None], across]
    assert torch.equal(found, expected.bfloat16())


def into_fp8(folder, block, declare=True):
    def change(tensors):
        for name in [n for n in tensors if ".self_attn." in n or ".experts." in n]:
            if tensors[name].dim() == 2:
                tensors[name], tensors[name + "_scale_inv"] = quantize(tensors[name], block)

    edit_shards(folder, change)
    if declare:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3",
                                         "weight_block_size": list(block)}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("block", [(128, 128), (8, 3)])
def test_an_fp8_folder_is_read_as_bfloat16_within_the_precision_of_e4m3(folder, block):
    into_fp8(folder, block, declare=block != (128, 128))
    found, plain = read(folder), random_tensors()
    for name, tensor in plain.items():
        is_fp8 = tensor.dim() > 1 and (".self_attn." in name or ".experts." in name)
        assert found[name].dtype == (torch.bfloat16 if is_fp8 else torch.float32), name
        error = (found[name].float() - tensor).abs()
        if is_fp8:  # half a step of three mantissa bits, or of the smallest numbers
            assert (error <= tensor.abs() / 16 * 1.1 + tensor.abs().max() / 448 / 512).all(), name
        else:
            assert not error.any(), name


def test_a_missing_and_a_misshapen_scale_are_both_named(folder):
    into_fp8(folder, (128, 128))
    tensors = load_file(folder / "model.safetensors")
    o_proj, q_a = (f"model.layers.0.self_attn.{x}.weight_scale_inv" for x in ("o_proj", "q_a_proj"))
    del tensors[o_proj]
    tensors[q_a] = torch.ones(2, 1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert f"1 missing: {o_proj}" in str(error.value)
    assert f"{q_a} is 2x1, expected 1x1" in str(error.value)


def test_a_block_size_that_is_none_is_refused(folder):
    into_fp8(folder, (128, 128))
    config = json.loads((folder / "config.json").read_text())
    for quantization in [
        {"weight_block_size": s} for s in ([0, 128], [1.0, 1], [128], "128", None)
    ]:
        config["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="weight_block_size"):
            read(folder)


def test_the_copies_in_an_mtp_module_may_be_left_out(folder):
    edit_shards(folder, lambda t: [t.pop(copy) for copy in names.copies(CONFIG)])
    assert_identical(read(folder), random_tensors())


def test_a_copy_that_differs_is_refused(folder):
    edit_shards(folder, lambda t: t["model.layers.2.shared_head.head.weight"][3, 3].add_(1))
    with pytest.raises(CheckpointError, match=r"shared_head\.head\.weight differs from lm_head"):
        read(folder)


# Broken folders


def test_missing_surplus_and_misshapen_tensors_are_named_in_one_error(folder):
    def change(tensors):
        del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
        del tensors["lm_head.weight"]
        tensors["model.layers.7.what.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(19)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(12, 21)
        tensors["model.embed_tokens.weight"] = torch.zeros(50, 20, dtype=torch.int32)
        tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(20).to(torch.float8_e4m3fn)

    edit_shards(folder, change)
    with pytest.raises(CheckpointError) as error:
        DeepSeekV3.load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "2 missing: lm_head.weight" in message or ", lm_head.weight" in message
    assert "model.layers.1.mlp.experts.2.up_proj.weight" in message
    assert "1 surplus: model.layers.7.what.weight" in message
    assert "model.norm.weight is 19, expected 20" in message
    assert "model.layers.0.mlp.up_proj.weight is 12x21, expected 12x20" in message
    assert "model.embed_tokens.weight is I32" in message
    assert "model.layers.0.input_layernorm.weight is F8_E4M3" in message


def test_thousands_of_missing_tensors_are_counted_and_the_first_twenty_named(folder):
    edit_shards(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers" in n])
    with pytest.raises(CheckpointError, match=r"and \d+ more") as error:
        read(folder)
    assert len(str(error.value)) < 3000


def test_a_config_of_another_size_is_refused_with_the_shapes(folder):
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is 50x20, expected 50x24"):
        DeepSeekV3.load(folder)


def test_a_folder_without_config_json_is_no_model_folder(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        DeepSeekV3.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b'{"a"', b"\xff\xfe", b"[1]", b"null", b"{}"])
def test_a_json_file_that_is_broken_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=name.replace(".", r"\.")):
        DeepSeekV3.load(folder)


def test_shards_that_are_not_there_are_all_named(folder):
    first, *_, last = shards_of(folder)
    first.unlink()
    last.unlink()
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert first.name in str(error.value)
    assert last.name in str(error.value)


def test_a_folder_without_any_weights_is_refused(folder):
    for path in [*shards_of(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        read(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_shard_is_named(folder, keep):
    shard = shards_of(folder)[1]
    whole = shard.read_bytes()
    size = int(len(whole) * keep) if isinstance(keep, float) else keep
    shard.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match=shard.name):
        read(folder)


def test_a_tensor_the_index_promises_and_the_shard_lacks_is_missing(folder):
    shard = shards_of(folder)[0]
    tensors = load_file(shard)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=f"1 missing: {gone}"):
        read(folder)


@pytest.mark.parametrize("path", ["../model-00001.safetensors", "/etc/passwd", "a/b", "", 7])
def test_an_index_cannot_point_out_of_the_folder(folder, path):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = path
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read(folder)


# Writing over what is there


def test_a_second_write_replaces_the_first_and_leaves_other_files_alone(folder):
    (folder / "tokenizer.json").write_text("{}")
    for seed in (1, 2, 3):
        tensors = random_tensors(seed=seed)
        weights.write(folder, CONFIG, tensors, max_shard_bytes=[8000, 5e9, 20000][seed - 1])
        assert_identical(read(folder), tensors)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert {path.name for path in shards_of(folder)} == set(index["weight_map"].values())
        assert files.verify(folder) == []
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert not list(folder.glob(".*"))


def test_a_write_into_a_folder_with_one_unindexed_shard_takes_its_place(folder):
    edit_shards(folder, lambda tensors: None)
    tensors = random_tensors(seed=1)
    weights.write(folder, CONFIG, tensors)
    assert_identical(read(folder), tensors)
    assert not (folder / "model.safetensors").exists()


class PowerCutError(Exception):
    """What a failing step raises in these tests."""


def cut_power_at(monkeypatch, step):
    """Let the step-th move or flush of a file fail, and all later ones."""
    calls = [0]

    def failing(real):
        def operation(*arguments):
            calls[0] += 1
            if calls[0] >= step:
                raise PowerCutError
            return real(*arguments)

        return operation

    monkeypatch.setattr(os, "replace", failing(os.replace))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    return calls


@pytest.mark.parametrize("indexed", [True, False])
def test_a_write_interrupted_anywhere_leaves_the_old_model_or_the_new_one(
    tmp_path, monkeypatch, indexed
):
    old, new = random_tensors(seed=0), random_tensors(seed=1)
    weights.write(tmp_path / "old", CONFIG, old, max_shard_bytes=30000)
    if not indexed:
        edit_shards(tmp_path / "old", lambda tensors: None)
    seen = []
    for step in range(1, 100):
        folder = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "old", folder)
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                weights.write(folder, CONFIG, new, max_shard_bytes=30000)
            except PowerCutError:
                interrupted = True
            else:
                interrupted = False
        found = read(folder)
        is_new = torch.equal(found["norm.weight"], new["norm.weight"])
        assert_identical(found, new if is_new else old)
        seen.append(is_new)
        weights.write(folder, CONFIG, new)  # and the next attempt succeeds
        assert_identical(read(folder), new)
        if not interrupted:
            break
    assert seen == sorted(seen)  # once new, always new
    assert seen.count(False) > 5
    assert seen.count(True) > 3


def test_a_first_write_interrupted_anywhere_leaves_no_folder(tmp_path, monkeypatch):
    for step in range(1, 100):
        with monkeypatch.context() as patch:
            calls = cut_power_at(patch, step)
            with contextlib.suppress(PowerCutError):
                weights.write(tmp_path / "model", CONFIG, random_tensors())
        if (tmp_path / "model").exists():
            break
        assert not list(tmp_path.iterdir())
    assert calls[0] > 5
    assert_identical(read(tmp_path / "model"), random_tensors())


def test_what_a_killed_write_left_behind_is_cleared_by_the_next(tmp_path):
    (tmp_path / ".model.writing").mkdir()
    (tmp_path / ".model.writing" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    weights.write(tmp_path / "model", CONFIG, random_tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_identical(read(tmp_path / "model"), random_tensors())


def test_the_manifest_notices_a_flipped_bit_and_an_absent_file(folder):
    assert files.verify(folder) == []
    shard = shards_of(folder)[2]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (folder / "generation_config.json").unlink()
    assert files.verify(folder) == ["generation_config.json", shard.name]


@pytest.mark.parametrize("over", [False, True])
def test_no_file_gets_its_name_before_its_content_is_on_the_disk(tmp_path, monkeypatch, over):
    folder, synced = tmp_path / "model", set()
    if over:
        weights.write(folder, CONFIG, random_tensors())

    def replace(source, target, real=os.replace):
        whole = [*source.iterdir()] if source.is_dir() else [source]
        assert {path.stat().st_ino for path in whole} <= synced
        real(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(os, "replace", replace)
    weights.write(folder, CONFIG, random_tensors())
    assert folder.stat().st_ino in synced
    assert tmp_path.stat().st_ino in synced or over


def test_a_disk_that_is_full_is_reported_and_leaves_the_old_model(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            weights.write(folder, CONFIG, random_tensors(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert_identical(read(folder), random_tensors())
    assert not list(folder.glob(".*"))


def test_a_type_that_could_not_be_read_again_is_not_written(tmp_path):
    tensors = random_tensors() | {"norm.weight": torch.ones(20, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"norm\.weight is torch\.float64"):
        weights.write(tmp_path / "model", CONFIG, tensors)
    assert not list(tmp_path.iterdir())
