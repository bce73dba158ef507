"""Finished replies, kept under the hash of their request so that the same request gets the same bytes free."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fedmedgen.federation.egress import Reply
from fedmedgen.privacy.chain import sync_folder
from fedmedgen.training.checkpoints import load_arrays, save_arrays

KEPT = 3


@dataclass(frozen=True)
class ReplyStore:
    """The last few replies of a site; an older request is a new spend."""

    folder: Path

    def find(self, digest: str) -> Reply | None:
        words, arrays = self._files(digest)
        if not (words.is_file() and arrays.is_file()):
            return None
        head = json.loads(words.read_text())
        return Reply(
            config=head["config"],
            metrics=head["metrics"],
            arrays={key: value.numpy() for key, value in load_arrays(arrays).items()},
        )

    def store(self, digest: str, reply: Reply) -> None:
        """Write arrays, then the words that make the reply findable; both reach the disk before this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words, arrays = self._files(digest)
        save_arrays(arrays, {key: torch.from_numpy(value) for key, value in reply.arrays.items()})
        draft = words.with_suffix(".draft")
        with draft.open("w") as file:
            json.dump({"config": dict(reply.config), "metrics": dict(reply.metrics)}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(words)
        sync_folder(self.folder)
        self._forget_old()

    def hash_of(self, digest: str) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in self._files(digest))).hexdigest()

    def _files(self, digest: str) -> tuple[Path, Path]:
        return self.folder / f"{digest}.json", self.folder / f"{digest}.safetensors"

    def _forget_old(self) -> None:
        newest = sorted(self.folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for words in newest[KEPT:]:
            words.unlink()
            words.with_suffix(".safetensors").unlink(missing_ok=True)
