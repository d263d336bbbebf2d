import torch

from calibration.activations import InputStatistics
from calibration.energy import InputEnergy


def test_energy_is_the_diagonal_of_the_second_moments():
    batches = torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    energy, moments = InputEnergy(16), InputStatistics(16)
    for batch in (*batches, batches[0, :1]):
        energy.add(batch)
        moments.add(batch)
    torch.testing.assert_close(energy.energy, moments.moments.diagonal(), rtol=1e-2, atol=1e-3)
    assert torch.equal(energy.largest, moments.largest)
    assert energy.rows == moments.rows == 35
