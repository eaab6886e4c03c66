"""Whether weights fit a network: every one has its place and its shape, and no place is empty."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import UserError
from nlvideo.weights.inflate import inflate_state_dict


def check_width(state: Mapping[str, Tensor], width: int | None) -> None:
    """Raises UserError if weights are not of the model.width that their own config has; None: it has none.

    A network is built before it is filled, and a config of others may describe one that no machine can hold.
    """
    if width is not None and width != len(state.get("conv1.weight", ())):
        raise UserError(f"its weights are not those of its config, which has model.width={width}.")


def check_fits(network: VideoResNet, state: Mapping[str, Tensor]) -> None:
    """Raises UserError, in one line, unless these are the weights of the network that their own config describes."""
    target = network.state_dict()
    missing = {key for key in target.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    if odd := sorted(missing | (state.keys() - target.keys())):
        raise UserError(f"its weights are not those of its config: {listed(odd)} are in one of the two alone.")
    for key, value in state.items():
        if value.shape != target[key].shape:
            shapes = f"{key} has the shape {tuple(value.shape)}, by the config {tuple(target[key].shape)}"
            raise UserError(f"its weights are not those of its config: {shapes}.")


def fitted(network: VideoResNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the whole state of a network from weights by our names; 2D kernels are inflated.

    Raises:
        UserError: names every kind of mismatch with its first keys.
    """
    target, found, wrong = network.state_dict(), dict(state), []
    for key, value in state.items():
        if key in target and value.shape != target[key].shape:
            try:
                found |= inflate_state_dict({key: value}, target)
            except ValueError:
                wrong.append(f"{key} {tuple(value.shape)} instead of {tuple(target[key].shape)}")
    for key in target.keys() - found.keys():
        if key.endswith("num_batches_tracked"):
            found[key] = target[key]
    missing, surplus = sorted(target.keys() - found.keys()), sorted(found.keys() - target.keys())
    report = [
        f"{len(keys)} {what}: {listed(keys)}"
        for what, keys in (
            ("keys have another shape", wrong),
            ("keys of the network are not in the file", missing),
            ("keys of the file are not in the network", surplus),
        )
        if keys
    ]
    if report:
        raise UserError("it does not fit the network that the config describes:\n  " + "\n  ".join(report))
    return found


def listed(keys: Sequence[str]) -> str:
    """Returns the first keys."""
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
