import pytest
import torch

from calibration import spool
from calibration.spool import Spool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_batches_come_again_as_they_were(kept, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "KEPT_BYTES", kept)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(rows, 5, 6, generator=generator).to(dtype) for rows in (3, 3, 1)]
    spooled = Spool(sum(batch.nbytes for batch in batches), tmp_path)
    for found in (list(spooled.keep(iter(batches))), list(spooled), list(spooled)):
        assert len(found) == 3
        assert all(torch.equal(one, two) for one, two in zip(found, batches, strict=True))
    assert not list(tmp_path.iterdir())  # its file has no name
