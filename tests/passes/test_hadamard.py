import math

import pytest
import torch

from passes.hadamard import Rotation, orthogonal_factors, paley, random_orthogonal, sylvester


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(factors):
    product = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        product = torch.kron(product, factor)
    return product


def assert_orthogonal(matrix):
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 36, 44, 60, 76, 84, 104, 124, 180, 200])
def test_paley_matrices_are_hadamard_matrices(order):
    matrix = paley(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [1, 2, 6, 10, 14, 16, 52, 92])  # 16, 52 and 92 need more than a prime
def test_paley_knows_where_it_has_no_matrix(order):
    assert paley(order) is None


def test_sylvester_matrix_of_order_4():
    rows = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert torch.equal(sylvester(2), torch.tensor(rows, dtype=torch.float64))


# Widths and head widths of SmolLM2, Qwen2 and 3, Llama 2 and 3, Mistral, and of heads of 80 and 96 channels.
@pytest.mark.parametrize("order", [64, 80, 96, 128, 576, 896, 960, 1536, 2048, 2560, 3584])
def test_widths_of_real_models_have_a_flat_rotation(order):
    factors = orthogonal_factors(order, generator())
    assert math.prod(len(factor) for factor in factors) == order
    for factor in factors:  # a product of flat orthogonal matrices is flat and orthogonal
        torch.testing.assert_close(factor.abs(), torch.full_like(factor, 1 / math.sqrt(len(factor))))
        assert_orthogonal(factor)


def test_large_powers_of_two_are_split_into_small_factors():
    assert [len(factor) for factor in orthogonal_factors(1 << 14, generator())] == [128, 128]


@pytest.mark.parametrize(("order", "core"), [(7, 7), (6, 3), (26, 13), (46, 23), (184, 23)])
def test_other_widths_have_a_random_core(order, core):
    factors = orthogonal_factors(order, generator())
    assert len(factors[-1]) == core
    assert_orthogonal(dense(factors))


def test_random_orthogonal_follows_its_seed():
    first, again, other = (random_orthogonal(9, generator(seed)) for seed in (1, 1, 2))
    assert_orthogonal(first)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("order", [1, 2, 6, 8, 36, 256, 576])
def test_a_rotation_is_its_matrix(order):
    rotation = Rotation.draw(3, order, generator())
    vectors = torch.randn(2, 5, 3 * order, dtype=torch.float64, generator=generator(1))
    expected = (vectors * rotation.signs) @ torch.block_diag(*[dense(rotation.factors)] * 3)
    torch.testing.assert_close(rotation(vectors), expected, atol=1e-13, rtol=0)


def test_blocks_differ_in_their_signs_and_repeat_in_a_row():
    rotation = Rotation.draw(2, 16, generator())
    first, second = rotation.signs.view(2, 16)
    assert not torch.equal(first, second)
    assert set(rotation.signs.tolist()) == {1.0, -1.0}
    assert torch.equal(rotation.repeat_blocks(2).signs.view(4, 16), torch.stack([first, first, second, second]))


def test_a_single_large_channel_is_spread_evenly():
    rotation = Rotation.draw(1, 576, generator())
    outlier = torch.zeros(576)
    outlier[100] = 24.0
    torch.testing.assert_close(rotation(outlier).abs(), torch.ones(576, dtype=torch.float64))
