"""INT8 and INT4 as compressed-tensors stores them, down to the bit."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abyssal.checkpoint import integers, shards
from abyssal.errors import CheckpointError


def test_the_first_number_is_in_the_lowest_bits_and_8_stands_for_zero():
    numbers = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]], dtype=torch.uint8)
    packed = integers.pack(numbers)
    assert packed.dtype == torch.int32
    assert [word & 0xFFFFFFFF for word in packed[0].tolist()] == [0x87654321, 0x00000009]
    assert integers.unpack(packed, 9).tolist() == numbers.tolist()
    scale = torch.tensor([[0.5]])
    assert integers.dequantize_int4(numbers[:, 6:], scale).tolist() == [[-0.5, 0.0, 0.5]]


@given(rows=st.integers(1, 5), columns=st.integers(1, 150))
def test_what_is_packed_is_unpacked(rows, columns):
    numbers = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    packed = integers.pack(numbers)
    assert packed.shape == integers.packed_shape((rows, columns))
    assert torch.equal(integers.unpack(packed, columns), numbers)
    assert torch.equal(integers.unpack(packed.T.contiguous().T, columns), numbers)


@given(columns=st.integers(1, 300), group=st.sampled_from([1, 5, 64, 128]))
def test_a_scale_belongs_to_its_group_and_the_last_may_be_short(columns, group):
    numbers = torch.randint(0, 16, (3, columns), dtype=torch.uint8)
    scale = torch.rand(integers.group_shape(numbers.shape, group))
    expected = (numbers.float() - 8) * scale[:, torch.arange(columns) // group]
    assert torch.equal(integers.dequantize_int4(numbers, scale, group), expected)


# A folder


@pytest.fixture
def folder(tmp_path):
    """One matrix of each kind, and what they stand for."""
    generator = torch.Generator().manual_seed(1)
    q8 = torch.randint(-127, 128, (5, 20), dtype=torch.int8, generator=generator)
    q4 = torch.randint(0, 16, (5, 20), dtype=torch.uint8, generator=generator)
    tensors = {
        "a.weight": q8,
        "a.weight_scale": torch.rand(5, 1, generator=generator),
        "b.weight_packed": integers.pack(q4),
        "b.weight_scale": torch.rand(5, 2, generator=generator).bfloat16(),
        "b.weight_shape": torch.tensor([5, 20]),
        "c.weight": torch.randn(5, 20, generator=generator).bfloat16(),
        "d.weight": torch.randn(5, 20, generator=generator).half(),
        "e.weight": torch.randn(5, 20, generator=generator).to(torch.float8_e4m3fn),
        "e.weight_scale_inv": torch.rand(1, 1, generator=generator),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    say(tmp_path, {"quant_method": "compressed-tensors", "config_groups": {"g": {
        "weights": {"num_bits": 4, "group_size": 16}}}})  # fmt: skip
    return tmp_path


def say(folder, quantization):
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))


def test_a_matrix_comes_as_it_is_stored_and_means_what_tensor_gives(folder):
    opened, stored = shards.opened(folder), load_file(folder / "model.safetensors")
    found = {name: opened.matrix(f"{name}.weight") for name in "abcde"}
    assert [m.kind for m in found.values()] == ["int8", "int4", "bf16", "f32", "fp8"]
    assert all(m.shape == (5, 20) and m.data.is_contiguous() for m in found.values())
    assert torch.equal(found["a"].data, stored["a.weight"])
    assert torch.equal(found["a"].scale, stored["a.weight_scale"])
    assert torch.equal(found["b"].data, stored["b.weight_packed"].view(torch.uint8))
    assert (found["b"].scale.dtype, found["b"].block) == (torch.float32, (1, 16))
    assert torch.equal(found["d"].data, stored["d.weight"].float())
    assert found["e"].block == (128, 128)
    for name, matrix in found.items():
        tensor = opened.tensor(f"{name}.weight")
        assert tensor.dtype == opened.dtype(f"{name}.weight")
        assert torch.equal(matrix.dequantize().to(tensor.dtype), tensor)
        assert f"{name}.weight" in opened
    numbers = integers.unpack(stored["b.weight_packed"], 20).float() - 8
    by_hand = numbers * stored["b.weight_scale"].float()[:, [0] * 16 + [1] * 4]
    assert torch.equal(opened.tensor("b.weight"), by_hand.bfloat16())


def test_a_shape_that_its_numbers_do_not_have_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["b.weight_shape"] = torch.tensor([5, 30])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.weight_shape is 5 by 30"):
        shards.opened(folder).matrix("b.weight")


@pytest.mark.parametrize(
    ("quantization", "complaint"),
    [
        ({"quant_method": "gptq"}, "quant_method='gptq', expected fp8 or compressed-tensors"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4, "group_size": None}}}}, "one size"),
        ({"config_groups": {str(n): {"weights": {"num_bits": 4, "group_size": n}}
                            for n in (32, 64)}}, r"group_size=\[32, 64\]"),
    ],
)  # fmt: skip
def test_a_quantization_of_another_kind_is_refused(folder, quantization, complaint):
    say(folder, quantization)
    with pytest.raises(CheckpointError, match=complaint):
        shards.opened(folder)
