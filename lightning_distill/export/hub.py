"""Upload to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from lightning_distill.errors import ConfigError, one_line
from lightning_distill.storage.artifacts import MANIFEST


def check_repository(name: str) -> None:
    """Raises ConfigError if the name is not valid or this machine is not logged in."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"export.push={name} is not the name of a model on the hub, such as me/my-student: "
            f"{one_line(error)}"
        ) from error
    if not get_token():
        raise ConfigError(f"export.push={name} needs a login: `hf auth login`, or set HF_TOKEN.")


def upload(folder: Path, name: str, private: bool) -> str:
    """Uploads the folder and returns its URL. private: of a repository that is created now.

    Raises ConfigError, without the token, if the hub rejects it.
    """
    token = get_token() or ""
    try:
        api = HfApi()
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Upload a student of lightning_distill",
            ignore_patterns=[MANIFEST],
        )
    except Exception as error:  # the hub's client raises many types
        message = one_line(error) or repr(error)
        message = message.replace(token, "***") if token else message
        raise ConfigError(
            f"export.push={name}: the hub rejected {folder}, which is complete: {message[:300]}"
        ) from error
    return str(repository)
