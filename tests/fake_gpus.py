"""Fake CUDA tensors, which have a device, a shape and a dtype but no numbers: what code does on a GPU, without one.

Autograd's engine does not run with them where there is no GPU, so `backward` walks the graph itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nlvideo.runtime.torch_private import FakeTensorMode

GPU = torch.device("cuda", 0)


class Watch(TorchDispatchMode):
    """Raises on what makes a CPU wait for a GPU: copies between them. FakeTensorMode raises where a value is read."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        before, after = ({t.device for t in tree_leaves(x) if isinstance(t, Tensor) and t.ndim} for x in (args, output))
        assert not (before and after) or before | after in ({GPU}, {torch.device("cpu")}), f"{function} copies"
        return output


class Calls(TorchDispatchMode):
    """Enters as a list of all operators with what they take and return: (name, arguments, output)."""

    def __enter__(self) -> list[tuple[str, tuple, object]]:
        super().__enter__()
        self.calls: list[tuple[str, tuple, object]] = []
        return self.calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.calls.append((function.overloadpacket.__name__, args, output))
        return output


@contextmanager
def fake_gpu() -> Iterator[None]:
    with FakeTensorMode(), Watch():
        yield


@contextmanager
def gpu_autocast(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast, which refuses where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16 if dtype == torch.float32 else dtype)
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def backward(y: Tensor, dy: Tensor) -> dict[Tensor, Tensor]:
    """Returns the gradients of the leaves: autograd's engine in Python."""
    order, seen, stack = [], set(), [(y.grad_fn, False)]
    while stack:
        node, visited = stack.pop()
        if visited:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(other, False) for other, _ in node.next_functions if other is not None]
    given: dict[object, dict[int, Tensor]] = {y.grad_fn: {0: dy}}
    leaves = {}
    for node in reversed(order):
        gradients = given.pop(node, {})
        if hasattr(node, "variable"):
            leaves[node.variable] = gradients[0]
            continue
        with torch.no_grad():
            call = node if callable(node) else node.apply  # of an autograd.Function
            found = call(*[gradients.get(i) for i in range(len(node._input_metadata))])
        found = found if isinstance(found, tuple) else (found,)
        for (other, i), gradient in zip(node.next_functions, found, strict=False):  # last are arguments without any
            if other is not None and gradient is not None:
                sums = given.setdefault(other, {})
                gradient = gradient.sum_to_size(other._input_metadata[i].shape)  # what was broadcast
                sums[i] = sums[i] + gradient if i in sums else gradient
    return leaves
