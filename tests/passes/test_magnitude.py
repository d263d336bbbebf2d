import torch
from torch.nn.utils import prune as reference

from passes.magnitude import prune
from passes.sparsity import parse_pattern


def test_entries_are_those_that_torch_prunes():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Linear(64, 24)
    linear.weight.data.copy_(weight)
    reference.l1_unstructured(linear, "weight", amount=0.375)
    assert torch.equal(prune(weight, 0.375, None), linear.weight)


def test_the_larger_of_each_group_stay_in_their_dtype():
    weight = torch.tensor([[0.1, -3, 2, 0.2, 4, 3, -2, 1]]).bfloat16()
    found = prune(weight, 0.5, parse_pattern("2:4"))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0, -3, 2, 0, 4, 3, 0, 0]]
