"""An address at which there is no Ray is one error, at once."""

import pytest

from cera.studies.axes import StudyError
from cera.studies.ray_runner import connected


@pytest.mark.parametrize(
    ("address", "error"),
    [("auto", "Could not find any running Ray"), ("127.0.0.1:1", "Connection refused"), ("here", "Invalid address")],
)
def test_an_address_without_a_cluster_is_one_error(monkeypatch, address, error) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StudyError, match=f"there is no Ray at the address '{address}': {error}"), connected(address):
        pass
