"""The hostile server as a fixture: one for each test, so that its log is the test's own."""

from collections.abc import Iterator

import pytest

from tests.net.hostile import HostileServer, hostile_server


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    """A hostile server; whatever the test did, nobody may have dialled the canary."""
    with hostile_server() as server:
        yield server
        assert server.canary_hits == 0
