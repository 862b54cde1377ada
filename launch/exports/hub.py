"""Uploading a model to the Hugging Face hub: checked before a run starts, and never the end of one that is done."""

import re
from pathlib import Path

from actors.config import UserError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}")
_LONGEST = 96  # the hub's own limit


def hub_id_problem(name: str) -> str | None:
    """Why this cannot be the id of a model on the hub; None when it can."""
    if len(name) > _LONGEST:
        return f"must be of at most {_LONGEST} characters"
    if not _ID.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        return "must be OWNER/NAME, of letters, digits, single - and ., and _"
    return None


def check_can_push(field: str, name: str) -> None:
    """Raise UserError unless this machine may upload to the hub, as far as it can know: there is a token."""
    if problem := hub_id_problem(name):
        raise UserError(f"{field}: {problem}, got {name}")
    from huggingface_hub import constants, get_token  # takes a third of a second

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{field}: needs the hub, which HF_HUB_OFFLINE forbids, got {name}")
    if not get_token():
        raise UserError(f"{field}: needs a token of the hub (HF_TOKEN, or `hf auth login`), got {name} without one")


def push(directory: Path, name: str, *, private: bool) -> str:
    """Upload a model directory, into a repository that is made when there is none; returns its address.

    Raises:
        ConnectionError: whatever has failed, in one line without the token; also a repository that is there already and
            public where a private one is wanted, of which nothing is uploaded.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        api = HfApi()
        # None, not False: an organisation may make new ones private by default.
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and api.repo_info(name).private is not True:  # what is there already keeps what it is
            raise ValueError("the repository is there already, and it is public: make it private, or take another name")
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Upload by Tandem")
    except Exception as error:  # the hub client's own types change with its versions; any cause is reported
        text = " ".join(str(error).split()) or type(error).__name__
        if token := get_token():
            text = text.replace(token, "***")  # a client's error may quote the request that failed
        raise ConnectionError(text[:500]) from None
    return f"{constants.ENDPOINT}/{name}"


def push_model(path: str, name: str, *, private: bool, adapter: bool) -> None:
    """Upload what `export` gives of a run, or a model directory; raises UserError with what has failed."""
    from launch.exports.links import check_public
    from launch.verbs.chat import model_directory

    directory = model_directory(path)
    directory = directory / "adapter" if adapter else directory
    check_public(directory, "--push", Path(path))
    try:
        print(push(directory, name, private=private))
    except ConnectionError as error:
        raise UserError(f"--push: the model was not uploaded ({error}), got {name}") from None


def push_export(directory: Path, name: str, *, private: bool) -> str | None:
    """Upload the model of a run that is done; returns None, or a warning that says how to try again."""
    from launch.exports.links import check_public

    try:
        check_public(directory / "export", "run.hub_model_id", directory)
        address = push(directory / "export", name, private=private)
    except (UserError, ConnectionError, KeyboardInterrupt) as cause:
        error = "interrupted" if isinstance(cause, KeyboardInterrupt) else cause
        again = f"tandem export {directory} --push {name}{' --private' * private}"
        return f"run.hub_model_id: the model was not uploaded ({error}); try again with `{again}`"
    print(f"hub:     {address}")
    return None
