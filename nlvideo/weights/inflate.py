"""Turns the weights of a 2D network into those of a 3D network with the same names (paper, Sec. 4)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nlvideo.runtime.errors import UserError


def inflate(weight: Tensor, shape: torch.Size) -> Tensor:
    """Returns a 2D kernel (O, I, H, W) or (O, I, 1, H, W) as a 3D one (O, I, T, H, W), each plane being 1/T of it.

    A video of one repeated frame then gives what the 2D network gives for that frame. Tensors that already
    have the wanted shape (norms, fc) are returned as they are.

    Raises:
        UserError: the kernel cannot become `shape`.
    """
    if weight.shape == shape:
        return weight
    plane = weight.squeeze(2) if weight.ndim == 5 and weight.shape[2] == 1 else weight  # of a C2D checkpoint
    if plane.ndim == 4 and len(shape) == 5 and plane.shape == shape[:2] + shape[3:]:
        return plane.unsqueeze(2).expand(shape) / shape[2]
    raise UserError(f"a weight of shape {tuple(weight.shape)} cannot be inflated to {tuple(shape)}")


def inflate_state_dict(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with every kernel inflated to the shape it has in `target`; other names are kept as they are.

    Raises:
        UserError: names the first key whose shape does not fit.
    """
    inflated = {}
    for key, weight in state.items():
        try:
            inflated[key] = inflate(weight, target[key].shape) if key in target else weight
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
    return inflated
