import av
import pytest
from fuzz_videos import KINDS, compare, try_copies, write


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_copies_of_every_kind_give_frames_or_an_error(tmp_path, kind):
    path = tmp_path / kind.name
    try:
        write(path, kind)
    except (av.codec.codec.UnknownCodecError, ValueError):
        pytest.skip("this FFmpeg has no such encoder")
    assert compare(path) == "same"
    for way in ("cut", "altered"):
        outcomes = try_copies((path, way, 0, 4))
        assert outcomes.total() == 4 and not any(outcome.startswith("!") for outcome in outcomes), outcomes
