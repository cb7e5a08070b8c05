"""The one door to the Hugging Face hub. huggingface_hub is imported when it is needed, and reads its own
settings: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.

Names are timm's: `hf-hub:USER/NAME`, or `hf-hub:USER/NAME@REVISION` for a branch, tag or commit.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbone.adapters.card import LIBRARY, is_written
from pipeline.backbone.adapters.config import from_json
from pipeline.backbone.adapters.folder import CARD, CONFIG, MOST_BYTES, TENSORS, check_size
from pipeline.errors import CheckpointError, ConfigError
from pipeline.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf-hub:"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def repository_of(name: str) -> tuple[str, str | None]:
    """Repository and revision of `hf-hub:USER/NAME[@REVISION]`; the prefix may be left out. Raises
    ConfigError."""
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise ConfigError(
            f"'{name}' is no name of the hub; give {PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION"
        )
    return match[1], match[2]


def download(name: str) -> Path:
    """The folder, in the cache of the hub, with the files of an adapter of one commit. Raises ConfigError and
    CheckpointError.

    Sizes are asked for before anything is fetched. Without a network, or with HF_HUB_OFFLINE=1, the cache
    alone is looked at.
    """
    from huggingface_hub import hf_hub_download

    fetch = partial(hf_hub_download, library_name=LIBRARY, library_version=VERSION)
    repository, revision = repository_of(name)
    with _told(name, repository):
        config = _bounded(fetch, name, repository, CONFIG, revision)
        # the second file is of the commit that the first one is of
        return _bounded(fetch, name, repository, TENSORS, config.parent.name).parent


def cached_file(name: str, file: str, cache_dir: Any = None) -> Path | None:
    """The path in the cache of a file of `hf-hub:USER/NAME[@REVISION]`, which is fetched if need be; None
    where the repository has no such file. Raises ConfigError and CheckpointError."""
    from huggingface_hub import errors, hf_hub_download

    repository, revision = repository_of(name)
    with _told(name, repository):
        try:
            return Path(hf_hub_download(repository, file, revision=revision, cache_dir=cache_dir))
        except errors.RemoteEntryNotFoundError:
            return None


def _bounded(fetch: Callable[..., Any], name: str, repository: str, file: str, revision: str | None) -> Path:
    """The path of a file in the cache, which is fetched where its size is one that an adapter can have."""
    found = fetch(repository, file, revision=revision, dry_run=True)
    check_size(f"{name}: {file}", found.file_size or 0, MOST_BYTES[file])
    return Path(fetch(repository, file, revision=revision))


def upload(
    folder: Path,
    repository: str,
    *,
    card: Callable[[str], str],
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    message: str = "Add merge adapter",
) -> str:
    """Makes the repository if there is none, and adds the files of an adapter in one commit. Returns its URL.

    card: gives the text of the model card for the name of the repository; a card there that somebody wrote or
    edited stays. Raises ConfigError and CheckpointError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _told(repository, repository):
        api = HfApi(token=token, library_name=LIBRARY, library_version=VERSION)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        added = [CommitOperationAdd(name, folder / name) for name in (TENSORS, CONFIG)]
        if not _has_own_card(api, repository, revision):
            added.append(CommitOperationAdd(CARD, card(PREFIX + repository).encode()))
        done = api.create_commit(
            repository, added, commit_message=message, revision=revision, create_pr=create_pr
        )
    return str(done.pr_url or done.commit_url)


def _has_own_card(api: "HfApi", repository: str, revision: str | None) -> bool:
    """Whether a repository has a card that is not the one which its own adapter was pushed with."""
    if not api.file_exists(repository, CARD, revision=revision):
        return False
    if not api.file_exists(repository, CONFIG, revision=revision):
        return True
    texts: list[str] = []
    for name in (CARD, CONFIG):
        told = api.hf_hub_download(repository, name, revision=revision, dry_run=True)
        if (told.file_size or 0) > MOST_BYTES[CONFIG]:
            return True
        path = Path(api.hf_hub_download(repository, name, revision=revision))
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
    try:
        return not is_written(texts[0], from_json(texts[1], CONFIG))
    except ConfigError:
        return True


@contextmanager
def _told(name: str, repository: str) -> Iterator[None]:
    """Around calls of huggingface_hub: what they raise becomes a CheckpointError with the way out."""
    from huggingface_hub import errors
    from huggingface_hub.constants import is_offline_mode

    try:
        yield
    except errors.LocalEntryNotFoundError as err:
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub does not answer"
        raise CheckpointError(
            f"{name} is not in the cache, and {why}; run `hf download {repository}` where there is a network "
            f"(and copy its folder of the cache, HF_HOME), or give the adapter's folder"
        ) from err
    except errors.RevisionNotFoundError as err:
        raise CheckpointError(
            f"{name}: the repository has no such revision; give a branch, tag or commit"
        ) from err
    except errors.RepositoryNotFoundError as err:
        raise CheckpointError(
            f"{name}: the hub has no such repository for you; for a private one, `hf auth login` first"
        ) from err
    except errors.EntryNotFoundError as err:
        raise CheckpointError(f"{name} is no merge adapter: it lacks {CONFIG} or {TENSORS}") from err
    except errors.HFValidationError as err:
        raise ConfigError(f"{name} is no name of the hub: {err}") from err
    # HTTPError: of a push without a network; ValueError: a card that the hub does not take
    except (errors.HTTPError, OSError, ValueError) as err:  # pyright: ignore[reportPrivateImportUsage]
        raise CheckpointError(f"{name}: the hub cannot be reached or refuses: {err}") from err
