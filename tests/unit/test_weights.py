"""Weights as they travel between processes."""

import numpy as np
import pytest
import torch

from dro_rl.policy.weights import pack, unpack

pytestmark = pytest.mark.unit


def test_weights_travel_bit_for_bit():
    torch.manual_seed(0)
    weights = {
        "a.weight": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c.half": torch.randn(2, 2).half(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "strided": torch.randn(4, 3).T,
        "special": torch.tensor([float("inf"), float("nan"), -0.0]).bfloat16(),
    }
    packed = pack(weights.items())
    assert all(isinstance(x, np.ndarray) for x in packed.values())
    back = unpack(packed)
    assert set(back) == set(weights)
    for name, weight in weights.items():
        assert back[name].dtype == weight.dtype and back[name].shape == weight.shape
        assert torch.equal(back[name].isnan(), weight.isnan())
        assert torch.equal(back[name].nan_to_num(), weight.nan_to_num()), name


def test_unpacked_weights_own_their_memory():
    weight = torch.ones(3)
    packed = pack([("w", weight)])
    for array in packed.values():
        array.flags.writeable = False  # as Ray's are
    back = unpack(packed)["w"]
    back += 1
    weight += 5
    assert back.tolist() == [2, 2, 2]


def test_packing_a_learners_weights_needs_no_gradient():
    assert pack([("w", torch.ones(2, requires_grad=True))])["w"].tolist() == [1, 1]
