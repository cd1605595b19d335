"""The Hugging Face hub: whether it is reachable, why a download failed, which commit it gave."""

import os
import re
import time
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_WAITS_SECONDS = (0.0, 0.5, 1.5)
_CACHED_FILES = ("config.json", "tokenizer.json")


@cache
def unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can, or if the user chose offline mode.

    If it cannot, this process and its children switch to offline mode: cached files are found
    immediately, and missing ones fail without waiting half a minute each. A slow connection has
    HF_HUB_ETAG_TIMEOUT seconds (10 by default) to open.
    """
    if constants.is_offline_mode():
        return None
    reason = ""
    for seconds in _WAITS_SECONDS:
        time.sleep(seconds)
        try:
            get_session().head(
                constants.ENDPOINT,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                follow_redirects=False,  # another host's answer says nothing about this one
            )
        # The hub's HTTP library is its own choice, so errors are compared by name. Nothing is
        # lost: other errors come up again in the hub's own request.
        except Exception as error:
            kind = type(error).__name__
            reason = " ".join(str(error).split()) or kind
            if kind not in ("ConnectError", "ConnectTimeout", "ProxyError"):
                return None  # something answers, so the hub's own retries apply
            if kind == "ConnectTimeout":
                reason = f"none within {constants.HF_HUB_ETAG_TIMEOUT} s"
                break
        else:
            return None
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A mirror's address may hold a password.
    return f"no connection to {re.sub('//[^/]*@', '//', constants.ENDPOINT)}: {reason}"


def explain_error(path: str | Path, error: BaseException) -> str | None:
    """One line on why the hub did not provide the files of `path`, and what to do.

    None if the hub is not the cause.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def is_caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_caused_by(HFValidationError):
        return f"{path}: no such folder; name an existing one, or owner/name on the hub"
    if is_caused_by(GatedRepoError):
        return (
            f"{path}: is gated on the hub; accept its licence there and set HF_TOKEN, or name a "
            "folder that holds it"
        )
    if is_caused_by(RevisionNotFoundError):
        return f"{path}: the hub has no such revision; correct revision, or remove it"
    if is_caused_by(RepositoryNotFoundError):
        return (
            f"{path}: the hub has no such model, or it is private; correct the name, or set "
            "HF_TOKEN"
        )
    if is_caused_by(RemoteEntryNotFoundError):
        return None
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status == 401:
                return (
                    f"{path}: the hub refuses the token; set HF_TOKEN to a valid one, or for a "
                    "public model remove it (also the one of `hf auth login`)"
                )
            return f"{path}: the hub answers {status}; try later, or name a folder that holds it"
    if is_caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            unreachable() or "HF_HUB_OFFLINE is set, as it is for jobs of a run without a network"
        )
        return (
            f"{path}: no such folder, and the hub cannot be reached ({reason}); download it where "
            f"there is a network (`hf download {path}`; gated models need HF_TOKEN), or name a "
            "folder that holds it"
        )
    return None


def commit(path: str | Path, revision: str | None) -> str | None:
    """The commit that a hub name was last opened at on this machine.

    None if it was never opened here, or for a folder.
    """
    if Path(path).is_dir():
        return None
    for name in _CACHED_FILES:
        try:
            file = try_to_load_from_cache(str(path), name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(file, str):
            return Path(file).parent.name
    return None
