"""What the small runs of these tests can do without."""

import pytest


@pytest.fixture
def curves():
    """Asks for the picture of a run's curves."""


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Drawing them takes half the time of a run this small; processes and tests that use `curves` draw them."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("nlvideo.training.run_log.draw_curves", lambda folder: None)
