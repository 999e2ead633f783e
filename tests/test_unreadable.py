"""Files that are given as weights and are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.weights import Found, state_dict
from pagoda_bench.pagoda import importing


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
@example(b"root:x:0:0:root:")  # unpickles far enough to take from an empty stack
@example(b"\x80\x00")  # another protocol than its own, of which PyTorch's reader warns
def test_whatever_the_bytes_are_the_refusal_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(UserError):
        importing.read(path)
    with pytest.raises(UserError):
        state_dict(Found(path, ""))
