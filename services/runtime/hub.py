"""Locations of model files: a path, or a repository of the Hugging Face hub that was downloaded before."""

from __future__ import annotations

from pathlib import Path

from chorus_rpc.locations import HUB_SCHEME


def local_path(location: str, base: Path = Path()) -> Path:
    """Resolves a location to a file or folder on this machine. Downloads nothing: serving needs no network.

    Args:
        location: a path, "~" included, or `hf://owner/name[@revision][/path]`, as huggingface_hub writes it;
            the revision is a branch, a tag or a commit, by default "main".
        base: folder that a relative path starts from.

    Raises FileNotFoundError that names the command to fetch what is missing, ValueError for another kind of
    location.
    """
    if not location.startswith(HUB_SCHEME):
        path = base / Path(location).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        return path

    from huggingface_hub import parse_hf_uri, snapshot_download
    from huggingface_hub.errors import HfUriError, LocalEntryNotFoundError

    try:
        uri = parse_hf_uri(location)
    except HfUriError as error:
        raise ValueError(f"{location}: must be {HUB_SCHEME}owner/name[@revision][/path]: {error}") from error
    if uri.type != "model":
        raise ValueError(f"{location}: names a {uri.type}, not a model")
    revision = f" --revision {uri.revision}" if uri.revision else ""
    include = f" --include '{uri.path_in_repo}*'" if uri.path_in_repo else ""
    remedy = f"fetch it first: hf download {uri.id}{revision}{include}"
    try:
        # No pattern: the caller knows which of the files it needs.
        found = snapshot_download(uri.id, revision=uri.revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        raise FileNotFoundError(f"{location}: not in this machine's Hugging Face cache; {remedy}") from None
    path = Path(found) / uri.path_in_repo
    if not path.exists():
        raise FileNotFoundError(f"{path}: not among the files fetched from {uri.id}; {remedy}")
    return path
