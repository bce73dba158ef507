"""The ServerApp's way in."""

from types import SimpleNamespace
from typing import Any

import pytest

from server import app


@pytest.mark.parametrize("simulated", [True, False])
def test_a_deployed_server_app_ends_with_what_started_it_and_a_simulation_goes_on(
    simulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[bool] = []
    store = SimpleNamespace(settings=SimpleNamespace(simulated=simulated, runtime=SimpleNamespace(server_threads=1)))
    monkeypatch.setattr(app, "open_store", lambda _: store)
    monkeypatch.setattr(app, "run_study", lambda *_: None)
    monkeypatch.setattr(app, "end_with_parent", lambda: bound.append(True))
    context: Any = SimpleNamespace(run_config={})
    app.main(None, context)
    assert bool(bound) != simulated
