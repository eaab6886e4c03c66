import pytest
from kills import kill_and_compare


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_left_alone(tmp_path):
    assert kill_and_compare(tmp_path, kills=2, ranks=1, steps=80, seed=0) == []
