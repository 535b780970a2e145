"""What is saved as a folder, on the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import Any


class Pushed:
    """For what has a `save_pretrained`."""

    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Writes it to the hub, into a repository that is made if there is none; the commit's address.

        `token` is the hub's; None is the one that `HF_TOKEN` or `hf auth login` set. Raises the hub client's errors.
        """
        from huggingface_hub import HfApi  # only who pushes waits for this import

        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder))
            message = commit_message or f"Upload {type(self).__name__}"
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
            )
        return str(commit.commit_url)
