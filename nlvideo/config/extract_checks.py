"""Which values of nlvideo-extract's config are refused, and why."""

from nlvideo.config.schema import ExtractConfig
from nlvideo.config.value_checks import check_at_least_one, check_at_most, check_choice, value_of
from nlvideo.runtime.errors import UserError

FEATURE_PRESETS = ("paper", "rtfm")
FEATURE_LAYERS = ("res5", "res4", "head")
FEATURE_CROPS = (1, 3, 5, 10, "full")
FEATURE_FORMATS = ("npy", "hdf5", "safetensors")
FEATURE_DTYPES = ("float32", "float16")
# Slips of the hand, which would take all memory or make features that nobody meant
MOST_SIDE, MOST_SNIPPET_FRAMES = 4096, 1024
SNIPPET_SECONDS = (0.001, 86_400.0)


def check_extraction(config: ExtractConfig) -> None:
    """Raises UserError for a value of nlvideo-extract's own keys that is not allowed."""
    check_choice("preset", config.preset, FEATURE_PRESETS)
    check_choice("layer", config.layer, FEATURE_LAYERS)
    check_choice("format", config.format, FEATURE_FORMATS)
    check_choice("dtype", config.dtype, FEATURE_DTYPES)
    if config.crops is not None:
        check_choice("crops", config.crops, FEATURE_CROPS)
    check_at_least_one(config, "crop_size short_side num_devices views_per_step videos_at_once num_threads")
    check_at_least_one(config, "snippet.frames snippet.stride snippet.step")
    check_at_most(config, "crop_size short_side", MOST_SIDE)
    check_at_most(config, "snippet.frames", MOST_SNIPPET_FRAMES)
    if config.positions and config.layer == "head":
        raise UserError("positions=true has no effect on layer=head, whose scores are those of a whole crop.")
    if config.crops == "full" and config.crop_size is not None:
        raise UserError(f"crop_size={config.crop_size} has no effect on crops=full, which takes the whole frame.")
    if config.preset == "rtfm" and config.short_side is not None:
        raise UserError(f"short_side={config.short_side} has no effect on preset=rtfm: its frames are 340x256.")
    for key in ("snippet.stride", "snippet.step"):
        seconds = value_of(config, f"{key}_seconds")
        if seconds is not None and value_of(config, key) is not None:
            raise UserError(f"{key} and {key}_seconds say the same in two ways; give one of them.")
        low, high = SNIPPET_SECONDS
        if seconds is not None and not low <= seconds <= high:
            raise UserError(f"{key}_seconds={seconds}: must be from {low:g} to {high:g}, or null.")
    if config.shard is not None:
        _check_shard(config.shard)


def _check_shard(shard: str) -> None:
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"shard={shard}: must be I/N, the I-th of N parts, such as 1/4 and 4/4 for the first and last.")
