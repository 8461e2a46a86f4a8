"""Uploading an exported folder to the Hugging Face hub."""

from pathlib import Path

from qam_lightning.export.folder import CARD, check_files, read_config
from qam_lightning.runtime import CONFIG
from qam_lightning.util.errors import ArgumentError, UserError, reason_of, shown
from qam_lightning.util.hub import FORM, Address, address, client


def check_push(url: str) -> Address:
    """Check what can be known before there is anything to push; return the place.

    Raises:
        ArgumentError: the URL has another form.
        UserError: the client is not installed, or knows no token.
    """
    where = address(url, "models")
    if where is None:
        raise ArgumentError("push", "push", f"is {shown(url)}, expected {FORM}")
    if client().get_token() is None:
        raise UserError("the hub takes files only with a token; run hf auth login, or set HF_TOKEN")
    return where


def push(folder: Path, url: str, public: bool = False) -> str:
    """Upload an exported folder: its description, the files that this names, and the model card.

    A repository or a branch that does not exist is created. Other files in the repository stay.

    Args:
        folder: the folder; it stays as it is.
        url: ``hf://owner/name``, perhaps with a branch and a folder.
        public: everybody may see the repository. If False, a new repository is private, and a
            public one is refused.

    Returns:
        The address of the commit, and who may see it.

    Raises:
        ArgumentError: see `check_push`.
        UserError: the folder is damaged, or the hub does not take it.
    """
    where, hub = check_push(url), client()
    config = read_config(folder)
    check_files(folder, config)
    api = hub.HfApi()
    try:
        if not api.repo_exists(where.repo):
            api.create_repo(where.repo, private=not public)
        private = bool(api.model_info(where.repo).private)
        if not (private or public):
            raise UserError("everybody may see that repository; add --public, or name another one")
        if where.revision:
            api.create_branch(where.repo, branch=where.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=where.repo,
            folder_path=folder,
            path_in_repo=where.folder or None,
            revision=where.revision,
            allow_patterns=[CONFIG, CARD, *config.files],
            commit_message=f"Policy of {config.method}, exported by qam_lightning",
        )
    except Exception as error:
        problem = f"cannot be pushed to {shown(url)}: {reason_of(error)}"
        raise UserError(f"{folder}: {problem}") from None
    return f"{done.commit_url}, {'private' if private else 'public'}"
