"""Networks that are published on the Hugging Face hub, by name: owner/name, or owner/name@revision."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import NEWEST_FILE
from nlvideo.weights.published import PUBLISHED_CONFIG, PUBLISHED_FILES, is_published, published_config

_REPOSITORY = re.compile(r"(\w[\w.-]*)/\w[\w.-]*(@\w[\w./-]*)?")
_PINNED = re.compile(r".+@[0-9a-f]{40}")  # by its commit
# What ends so names a file, which is missing then
WEIGHTS_ENDINGS = (".pt", ".pth", ".pyth", ".pkl", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")
_FILE_ENDINGS = (
    *WEIGHTS_ENDINGS,
    *(".yaml", ".yml", ".json", ".csv", ".txt", ".npz", ".npy", ".tar", ".zip", ".gz", ".mp4", ".mkv", ".avi", ".webm"),
)
FIRST_ANSWER_SECONDS = 8.0  # of a request, which may wait so long for each of its parts
RUNS = "outputs"  # where runs go if nothing else is said


def is_repository(name: str | Path) -> bool:
    """Returns whether this names a repository of the hub.

    What exists here is no such name, and neither is anything in a folder that exists here, or in that of the runs: it
    is a mistyped path, which must not be sent to a stranger, or answered by one.
    """
    text = str(name)
    found = _REPOSITORY.fullmatch(text)
    if found is None or text.endswith(_FILE_ENDINGS) or Path(text).exists():
        return False
    return found[1] != RUNS and not Path(found[1]).is_dir()


def is_pinned(name: str) -> bool:
    """Returns whether this names a commit of a repository, as pinned() does."""
    return bool(_REPOSITORY.fullmatch(name) and _PINNED.fullmatch(name))


def pinned(name: str) -> str:
    """Returns the name of the commit that a repository's name stands for now; any other name as it is.

    Raises:
        UserError: as local_weights().
    """
    return f"{name.partition('@')[0]}@{local_weights(name).name}" if is_repository(name) else name


def local_weights(name: str | Path) -> Path:
    """Returns the file or the published network's folder that holds these weights, downloaded if it has to be.

    Args:
        name: a file; a run's folder, which stands for its newest checkpoint; a published network's folder; or a
            repository of the hub, if nothing here is called so.

    Raises:
        UserError: the repository cannot be had, or holds no network of ours; a folder that is none of these.
    """
    if is_repository(name):
        with _without_notes():
            return _fetched(str(name))
    path = Path(name)
    if not path.is_dir() or is_published(path):
        return path
    if not (path / NEWEST_FILE).exists():
        raise UserFileNotFoundError(
            f"{path} is neither a run's folder, with {NEWEST_FILE}, nor a published network's, with "
            f"{', '.join(PUBLISHED_FILES)}."
        )
    return path / NEWEST_FILE


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keeps the client's lines, for each request and each new try, off the standard output.

    Hydra puts them there, where results belong. What is the matter in the end is an error.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
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
        raise UserFileNotFoundError(_by_hand(name, reason)) from None
    try:
        local = not _can_be_had(huggingface_hub, errors, repository, revision)
        fetch = partial(huggingface_hub.hf_hub_download, repository, local_files_only=local)
        config = Path(fetch(PUBLISHED_CONFIG, revision=revision or None))
        _check_ours(huggingface_hub, config, name)
        for file in PUBLISHED_FILES[1:]:
            # of the same commit, whatever happens to the branch meanwhile
            fetch(file, revision=config.parent.name)
        return config.parent
    except errors.LocalEntryNotFoundError:
        raise UserFileNotFoundError(_by_hand(name, "the hub cannot be reached")) from None
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
        raise UserFileNotFoundError(_by_hand(name, reason)) from None
    except errors.RevisionNotFoundError:
        raise UserFileNotFoundError(f"{repository} on the hub has no revision {revision}.") from None
    except Exception as error:
        if not _is_of_the_transfer(error):
            raise
        raise UserFileNotFoundError(_by_hand(name, _first_line(error))) from None


def _can_be_had(huggingface_hub: Any, errors: Any, repository: str, revision: str) -> bool:
    """Returns whether the hub answers, if something is to be downloaded.

    Without a network the client goes on asking for half a minute, which it has no setting for; it asks once where there
    is something in its cache.
    """
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, PUBLISHED_CONFIG, revision=revision or None), str):
        return True
    try:
        url = huggingface_hub.hf_hub_url(repository, PUBLISHED_CONFIG, revision=revision or None)
        huggingface_hub.get_hf_file_metadata(url, timeout=FIRST_ANSWER_SECONDS)
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.FileMetadataError):  # the download says which
        return True
    except Exception as error:
        if not _is_of_the_transfer(error):
            raise
        return False
    return True


def _check_ours(huggingface_hub: Any, config: Path, name: str) -> None:
    """Raises UserError if a repository's config.json is another library's; says what the repository holds."""
    try:
        published_config(config)
    except UserError as error:
        said = str(error).replace(str(config), PUBLISHED_CONFIG).removesuffix(".")
        raise UserError(f"{name} on the hub: {said}. It holds: {_held(huggingface_hub, name)}.") from None


def _held(huggingface_hub: Any, name: str) -> str:
    repository, _, revision = name.partition("@")
    try:
        files = huggingface_hub.HfApi().list_repo_files(repository, revision=revision or None)
    except Exception:  # whatever it is, it must not take the place of what is being said
        return "files that cannot be listed now"
    return ", ".join(files[:6]) + (", ..." if len(files) > 6 else "")


def _is_of_the_transfer(error: Exception) -> bool:
    """Returns whether an error of the hub's client is one of the connection, the disk or the name.

    Those of a connection are the HTTP library's own: OSErrors of requests, or errors of any version of httpx, which
    are none.
    """
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _by_hand(name: str, reason: str) -> str:
    repository, _, revision = name.partition("@")
    tree = f"/tree/{revision}" if revision else ""
    return (
        f"{repository} is no file or folder here, and was not downloaded: {reason}. You can put "
        f"{', '.join(PUBLISHED_FILES)} of https://huggingface.co/{repository}{tree} into the folder {repository}"
        f"{', and give its name alone' if revision else ''}."
    )
