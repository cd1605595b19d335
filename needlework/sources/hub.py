"""The Hugging Face hub: whether it is there, why it gives nothing, and which commit it gave."""

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
_KNOWN = ("config.json", "tokenizer.json")


@cache
def unreachable() -> str | None:
    """Why there is no connection to the hub; None: there is one, or offline mode was asked for.

    Without one, this process and those that it starts are offline from here on: what is cached is
    found at once, and what is not does not keep anyone waiting for half a minute a file. A slow
    connection has HF_HUB_ETAG_TIMEOUT seconds, ten by default, to be made.
    """
    if constants.is_offline_mode():
        return None
    for seconds in _WAITS_SECONDS:
        time.sleep(seconds)
        try:
            get_session().head(
                constants.ENDPOINT,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                follow_redirects=False,  # elsewhere says nothing of here
            )
        # Which HTTP library is the hub's choice. Nothing is lost: what is not known to be a missing
        # connection comes up again in the hub's own request.
        except Exception as error:
            told, kind = " ".join(str(error).split()), type(error).__name__
            if kind not in ("ConnectError", "ConnectTimeout", "ProxyError"):
                return None  # something answers: the hub's own patience is in place
            if kind == "ConnectTimeout":
                told = f"none within {constants.HF_HUB_ETAG_TIMEOUT} s"
                break
        else:
            return None
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A mirror's address may hold a password.
    return f"no connection to {re.sub('//[^/]*@', '//', constants.ENDPOINT)}: {told or kind}"


def why(path: str | Path, error: Exception) -> str | None:
    """One line on why the hub did not give the files of the name `path`, and what to do; None: that
    is not what went wrong."""
    causes, at = [], error
    while at is not None:
        causes.append(at)
        at = at.__cause__ or at.__context__

    def found(*kinds: type[Exception]) -> Exception | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if found(HFValidationError):
        return f"{path}: no such folder; name an existing one, or a hub's owner/name"
    if found(GatedRepoError):
        return (
            f"{path}: is gated on the hub; accept its licence there and set HF_TOKEN, or name a "
            "folder that holds it"
        )
    if found(RevisionNotFoundError):
        return f"{path}: the hub has no such revision of it; mend revision, or leave it out"
    if found(RepositoryNotFoundError):
        return (
            f"{path}: the hub has no such model, or it is private; mend the name, or set HF_TOKEN"
        )
    if found(RemoteEntryNotFoundError):
        return None
    if refused := found(HfHubHTTPError):
        status = refused.response.status_code
        if status == 401:
            return (
                f"{path}: the hub refuses the token; set HF_TOKEN to a valid one, or take it away "
                "(also that of `hf auth login`) for a public model"
            )
        return f"{path}: the hub answers {status}; run again later, or name a folder that holds it"
    if found(LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            unreachable() or "HF_HUB_OFFLINE is set, as it is for jobs where a run found no hub"
        )
        return (
            f"{path}: no such folder, and the hub cannot be reached ({reason}); fetch it where "
            f"there is a network (`hf download {path}`; one that is gated asks for HF_TOKEN), or "
            "name a folder that holds it"
        )
    return None


def commit(path: str | Path, revision: str | None) -> str | None:
    """The commit that a hub name was last opened at on this machine; None: none was, or `path` is a
    folder."""
    if Path(path).is_dir():
        return None
    for name in _KNOWN:
        try:
            file = try_to_load_from_cache(str(path), name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(file, str):
            return Path(file).parent.name
    return None
