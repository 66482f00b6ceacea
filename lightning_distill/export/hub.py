"""The finished folder, on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from lightning_distill.errors import ConfigError, one_line
from lightning_distill.storage.artifacts import MANIFEST


def check(name: str) -> None:
    """Raises ConfigError, before anything is written, where it could not be pushed to."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = one_line(error)
        raise ConfigError(
            f"export.push={name} is no name of a model on the hub, as in me/my-student: {reason}"
        ) from error
    if not get_token():
        raise ConfigError(f"export.push={name} needs a login: `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads the folder. Returns where it is. private: where the model is not there yet."""
    token = get_token() or ""
    try:
        api = HfApi()
        repo = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message="A student of lightning_distill",
            ignore_patterns=[MANIFEST],
        )
    except Exception as error:  # a token refused, a hub away, a model of others: of many kinds
        said = " ".join((str(error) or repr(error)).split())
        said = said.replace(token, "***") if token else said
        raise ConfigError(
            f"export.push={name}: the hub did not take {folder}, which is complete: {said[:300]}"
        ) from error
    return str(repo)
