import pytest
import torch

from calibration.moments import SecondMoments
from passes.factors import Directions, damped_factor, energies, even_rank, factors, rank_of_share, ranks_of_least_loss

SHAPES = [(24, 40), (40, 24), (32, 32), (12, 300)]


@pytest.fixture(params=SHAPES, ids=str)
def problem(request):
    """A weight [out_features, in_features] and the factor and the matrix of correlated inputs' second moments."""
    rows, columns = request.param
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) * torch.linspace(0.05, 2, columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    gram = inputs.T @ inputs / len(inputs)
    damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(columns)
    return torch.randn(rows, columns, generator=generator), damped_factor(SecondMoments.of(gram), 0.01), damped


def error(weight, found, moments):
    difference = weight.double() - found.double()
    return float(torch.trace(difference @ moments @ difference.T))


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_loss_is_that_of_the_dropped_singular_values_of_whitened_inputs(problem, rank):
    weight, factor, moments = problem
    directions = Directions.of(weight, factor)
    down, up = factors(weight, directions, rank)
    assert (down.shape, up.shape) == ((rank, weight.shape[1]), (weight.shape[0], rank))
    values = torch.linalg.svdvals(weight.double() @ torch.linalg.cholesky(moments))
    least = float(values[rank:].square().sum())
    assert error(weight, up @ down, moments) == pytest.approx(least, rel=1e-4)
    torch.testing.assert_close(energies(weight, factor), directions.energies)
    assert directions.lost(rank) == pytest.approx(least / float(values.square().sum()), rel=1e-4)


def test_they_are_those_of_the_whitened_decomposition(problem):
    """SVD-LLM: the truncated decomposition of W S, times the inverse of S."""
    weight, factor, moments = problem
    root = torch.linalg.cholesky(moments)
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    expected = (left[:, :6] * values[:6]) @ right[:6] @ torch.linalg.inv(root)
    down, up = factors(weight, Directions.of(weight, factor), 6)
    torch.testing.assert_close((up @ down).double(), expected, rtol=1e-3, atol=1e-3)


def test_no_inputs_is_a_plain_decomposition(problem):
    weight, _, moments = problem
    down, up = factors(weight, Directions.of(weight, None), 6)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(up @ down, (left[:, :6] * values[:6]) @ right[:6], rtol=1e-3, atol=1e-4)
    assert error(weight, up @ down, moments) > error(weight, *_product(problem, 6), moments)


def _product(problem, rank):
    weight, factor, _ = problem
    down, up = factors(weight, Directions.of(weight, factor), rank)
    return (up @ down,)


def test_full_rank_is_exact(problem):
    weight = problem[0]
    torch.testing.assert_close(_product(problem, min(weight.shape))[0], weight, rtol=1e-3, atol=1e-4)


def test_features_have_equal_norms_in_both(problem):
    weight, factor, _ = problem
    down, up = factors(weight, Directions.of(weight, factor), 6)
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0))


def test_what_is_of_low_rank_is_kept_and_the_rest_is_nothing():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    down, up = factors(weight, Directions.of(weight, None), 5)
    torch.testing.assert_close(up @ down, weight, rtol=1e-4, atol=1e-4)
    assert down.isfinite().all()
    assert not factors(torch.zeros(4, 6), Directions.of(torch.zeros(4, 6), None), 2)[0].any()


@pytest.mark.parametrize("shape", [(64, 64), (576, 1536), (3, 1), (192, 576)])
def test_factors_of_the_even_rank_are_smaller_and_of_the_next_are_not(shape):
    rank, (rows, columns) = even_rank(shape), shape
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)
    assert rank_of_share(shape, 0.5) * (rows + columns) <= 0.5 * rows * columns


def test_ranks_of_least_loss_beat_every_other_choice():
    """Against all choices of three ranks within the budget."""
    shapes = [(6, 6), (6, 12), (12, 6)]
    generator = torch.Generator().manual_seed(0)
    spectra = [
        torch.rand(6, generator=generator, dtype=torch.float64).pow(power).sort(descending=True).values
        for power in (1, 3, 9)
    ]

    def cost(ranks):
        return sum(
            rows * columns if rank is None else rank * (rows + columns)
            for rank, (rows, columns) in zip(ranks, shapes, strict=True)
        )

    def loss(ranks):
        return sum(
            0.0 if rank is None else float(spectrum[rank:].sum() / spectrum.sum())
            for rank, spectrum in zip(ranks, spectra, strict=True)
        )

    found = ranks_of_least_loss(shapes, spectra, 0.6)
    possible = [[*range(1, even_rank(shape) + 1), None] for shape in shapes]
    choices = [(a, b, c) for a in possible[0] for b in possible[1] for c in possible[2]]
    budget = 0.6 * sum(rows * columns for rows, columns in shapes)
    assert cost(found) <= budget
    # Greedy: what the last step leaves of the budget is less than the step.
    assert loss(found) <= min(loss(choice) for choice in choices if cost(choice) <= cost(found)) + 1e-9
