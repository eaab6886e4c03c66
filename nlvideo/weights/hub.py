"""Networks that are published on the Hugging Face hub, by name: owner/name, or owner/name@revision."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import NEWEST_FILE
from nlvideo.weights.published import PUBLISHED_CONFIG, PUBLISHED_FILES, is_published, published_config

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
# What ends so names a file, which is missing then
_FILE_ENDINGS = (".pt", ".pth", ".pyth", ".pkl", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")


def is_repository(name: str | Path) -> bool:
    """Returns whether this names a repository of the hub: what exists here is no such name."""
    text = str(name)
    return bool(_REPOSITORY.fullmatch(text)) and not text.endswith(_FILE_ENDINGS) and not Path(text).exists()


def local_weights(name: str | Path) -> Path:
    """Returns the file or the published network's folder that holds these weights, downloaded if it has to be.

    Args:
        name: a file; a run's folder, which stands for its newest checkpoint; a published network's folder; or a
            repository of the hub, if nothing here is called so.

    Raises:
        UserError: the repository cannot be had, or holds no network of ours.
    """
    if is_repository(name):
        with _without_notes():
            return _fetched(str(name))
    path = Path(name)
    return path / NEWEST_FILE if path.is_dir() and not is_published(path) else path


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keeps the client's line for each request off the standard output, where Hydra puts it and results belong."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _fetched(name: str) -> Path:
    """Downloads a repository's files, and no others, into huggingface_hub's cache; returns their folder."""
    repository, _, revision = name.partition("@")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        reason = "the package huggingface_hub is not installed (pip install 'nlvideo[hub]')"
        raise UserFileNotFoundError(_by_hand(repository, reason)) from None
    try:
        config = Path(huggingface_hub.hf_hub_download(repository, PUBLISHED_CONFIG, revision=revision or None))
        _check_ours(huggingface_hub, config, name)
        for file in PUBLISHED_FILES[1:]:
            # of the same commit, whatever happens to the branch meanwhile
            huggingface_hub.hf_hub_download(repository, file, revision=config.parent.name)
        return config.parent
    except errors.LocalEntryNotFoundError:
        raise UserFileNotFoundError(_by_hand(repository, "the hub cannot be reached")) from None
    except errors.EntryNotFoundError:
        raise UserFileNotFoundError(
            f"{name} on the hub is no network of nlvideo's: of {', '.join(PUBLISHED_FILES)} it lacks some. It holds: "
            f"{_held(huggingface_hub, name)}."
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"{name} on the hub asks for your consent first; give it there, then `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        reason = "the hub has no repository of this name that you may see"
        raise UserFileNotFoundError(_by_hand(repository, reason)) from None
    except errors.RevisionNotFoundError:
        raise UserFileNotFoundError(f"{repository} on the hub has no revision {revision}.") from None
    except (OSError, errors.HFValidationError) as error:  # of the network, or the disk
        raise UserFileNotFoundError(_by_hand(repository, str(error).splitlines()[0])) from None


def _check_ours(huggingface_hub: Any, config: Path, name: str) -> None:
    """Raises UserError if a repository's config.json is another library's; says what the repository holds."""
    try:
        published_config(config)
    except UserError as error:
        said = str(error).replace(str(config), PUBLISHED_CONFIG).removesuffix(".")
        raise UserError(f"{name} on the hub: {said}. It holds: {_held(huggingface_hub, name)}.") from None


def _held(huggingface_hub: Any, name: str) -> str:
    repository, _, revision = name.partition("@")
    files = huggingface_hub.HfApi().list_repo_files(repository, revision=revision or None)
    return ", ".join(files[:6]) + (", ..." if len(files) > 6 else "")


def _by_hand(repository: str, reason: str) -> str:
    return (
        f"{repository} is no file or folder here, and was not downloaded: {reason}. You can put "
        f"{', '.join(PUBLISHED_FILES)} of https://huggingface.co/{repository} into the folder {repository}."
    )
