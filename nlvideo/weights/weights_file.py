"""A file of weights to start from, ours or another project's: what it holds, and what it says of its function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nlvideo.data.lists.class_file import has_names
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.bounds import check_stored
from nlvideo.weights.checkpoint_file import check_content, check_format, evaluation_weights, is_ours, naming
from nlvideo.weights.fitting import check_width
from nlvideo.weights.foreign_files import read_weights_file
from nlvideo.weights.function_keys import FUNCTION_KEYS, function_values
from nlvideo.weights.hub import local_weights
from nlvideo.weights.importers import import_weights


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        name: the file, as the user calls it.
        title: what kind it is.
        state: the weights, by our names.
        values: {key of FUNCTION_KEYS: value} of what the file says; a key it does not speak of is absent.
        assumed: the keys among them that nothing in the file tells.
        classes: names, in the order of the outputs; None where they have none.
        num_classes: None without a head, or if it is a 2D network's.
    """

    name: str
    title: str
    state: Mapping[str, Tensor]
    values: dict[str, Any]
    assumed: list[str] = field(default_factory=list)
    classes: list[str] | None = None
    num_classes: int | None = None

    @property
    def places(self) -> list[str]:
        """The residual blocks that have a context block."""
        if self.values.get("block.kind", "none") == "none":
            return []
        return self.values.get("block.places", {}).get(f"r{self.values.get('model.depth')}", [])


def read_weights(path: str | Path, mode: str | None = None, *, lazily: bool = False) -> WeightsFile:
    """Returns what a file of weights holds.

    Args:
        path: a checkpoint of ours, another project's file, or a published network; see local_weights().
        mode: block.mode where the user gives it, for files that do not tell it.
        lazily: read what it says alone; the weights are not verified.

    Raises:
        UserError: no such file, or none whose weights can be used; names model.pretrained.
    """
    try:
        content = read_weights_file(local_weights(path), lazily=lazily)
        if is_ours(content):
            (check_format if lazily else check_content)(content, path)
            return _file_of_ours(content, str(path))
        with naming(path):
            return imported_file(content, str(path), mode=mode)
    except UserFileNotFoundError as error:
        raise UserFileNotFoundError(f"model.pretrained: {error}") from None
    except UserError as error:
        raise UserError(f"model.pretrained: {error}") from None


def _file_of_ours(content: Mapping[str, Any], name: str) -> WeightsFile:
    classes, state, values = list(content["classes"]), evaluation_weights(content), function_values(content["config"])
    with naming(name):
        check_stored(content["config"])
        check_width(state, values.get("model.width"))
    return WeightsFile(
        name,
        "nlvideo checkpoint",
        state,
        values,
        classes=classes if has_names(classes) else None,
        num_classes=len(classes),
    )


def imported_file(content: Any, name: str, source: str | None = None, mode: str | None = None) -> WeightsFile:
    """Returns what another project's file holds; the arguments are those of import_weights()."""
    found = import_weights(content, source, mode)
    return WeightsFile(
        name,
        f"{found.title}, inflated" if found.flat else found.title,
        found.state,
        {key: value for key, value in found.values.items() if key in FUNCTION_KEYS},
        assumed=[key for key in found.assumed if key in FUNCTION_KEYS],
        classes=None if found.flat else found.classes,
        num_classes=len(found.state["fc.weight"]) if "fc.weight" in found.state and not found.flat else None,
    )
