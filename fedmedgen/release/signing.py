"""The project's Ed25519 key: made once, kept to its owner, and what it signs."""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedmedgen.errors import ReleaseError

VARIABLE = "FEDMEDGEN_KEY"
RAW = serialization.Encoding.Raw


@dataclass(frozen=True)
class ProjectKey:
    """The key and where it lies; `made`: it is new."""

    private: Ed25519PrivateKey
    path: Path
    made: bool = False

    @property
    def public(self) -> str:
        """The public key's 32 bytes in base64."""
        return base64.b64encode(_bytes(self.private.public_key())).decode()

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.public)

    def sign(self, message: bytes) -> str:
        return base64.b64encode(self.private.sign(message)).decode()


def project_key(path: Path | None = None) -> ProjectKey:
    """The key named, or of the environment's FEDMEDGEN_KEY, or of the user's configuration, made there at first use.

    **Raises** `ReleaseError` if a file that was named isn't there, others can read it, or it is no Ed25519 key.
    """
    named = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        return ProjectKey(_load(named), named)
    own = default_path()
    if own.is_file():
        return ProjectKey(_load(own), own)
    return ProjectKey(_make(own), own, made=True)


def default_path() -> Path:
    """Where the user's key lies."""
    root = os.environ.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "fedmedgen" / "project.key"


def public_beside(path: Path) -> Path:
    """Where the public half of a key that was made here lies, to be handed to who verifies."""
    return path.with_suffix(".pub")


def read_public(path: Path) -> str:
    """The public key of a PEM file, in base64.

    **Raises** `ReleaseError` if there is none.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ReleaseError(f"expected a public key as PEM at {path}: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ReleaseError(f"expected an Ed25519 public key at {path}; got {type(key).__name__}")
    return base64.b64encode(_bytes(key)).decode()


def fingerprint_of(public: str) -> str:
    """SHA-256 of the public key's bytes."""
    return hashlib.sha256(base64.b64decode(public, validate=True)).hexdigest()


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Whether the key signed these very bytes; nonsense instead of a key or a signature is no."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(base64.b64decode(signature.strip(), validate=True), message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ReleaseError(f"the key at {path} must be readable by its owner only; its mode is {mode:o}: chmod 600")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ReleaseError(f"expected an Ed25519 private key as PEM, without a password, at {path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ReleaseError(f"expected an Ed25519 private key at {path}; got {type(key).__name__}")
    return key


def _make(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        public_beside(path).write_bytes(public)
    except OSError as error:
        raise ReleaseError(f"the project's key can't be made at {path}: {error}; name one by --key") from error
    return key


def _bytes(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(RAW, serialization.PublicFormat.Raw)
