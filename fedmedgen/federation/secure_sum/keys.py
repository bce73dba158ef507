"""Keys of the secure sum: a site's identity, which others pin; fresh pairs for each sum; what two of them agree on.

**Source** RFC 7748 (X25519), RFC 8032 (Ed25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305).
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmedgen.errors import PolicyError

KEY_BYTES = 32
ONE_USE = bytes(12)  # the nonce of a key that seals one message


def identity_of(path: Path) -> bytes:
    """The private half of a site's identity.

    **Raises** `PolicyError` where it isn't there, others can read it, or it is no key.
    """
    if not path.is_file():
        raise PolicyError(f"a secure sum needs the site's identity key, and {path} isn't there: see the site's kit")
    if path.stat().st_mode & 0o077:
        raise PolicyError(f"{path} must be readable by its owner only: chmod 600 it")
    try:
        key = bytes.fromhex(path.read_text().strip())
        public_of(key)
    except ValueError as error:
        raise PolicyError(f"{path} must hold an identity key, {2 * KEY_BYTES} hexadecimal digits") from error
    return key


def write_identity(path: Path) -> str:
    """A new identity, readable by its owner only; its public half, as policies of other sites have it."""
    key = os.urandom(KEY_BYTES)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(key.hex() + "\n")
    return public_of(key).hex()


def public_of(identity: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(identity).public_key().public_bytes_raw()


def sign(identity: bytes, *words: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(identity).sign(joined(*words))


def is_signed(public: bytes, signature: bytes, *words: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, joined(*words))
    except (InvalidSignature, ValueError):
        return False
    return True


def fresh() -> tuple[bytes, bytes]:
    """A private key from the operating system's entropy, and its public half."""
    key = os.urandom(KEY_BYTES)
    return key, exchange_public(key)


def exchange_public(key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def agreed(key: bytes, public: bytes, *purpose: bytes) -> bytes:
    """What both sides derive for one purpose.

    **Raises** `PolicyError` for a public key that makes everybody agree on the same.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(key).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise PolicyError(f"a site's key is none to agree with: {error}") from error
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=joined(*purpose)).derive(secret)


def seal(key: bytes, content: bytes) -> bytes:
    """Content that only who has the key can read or change; a key seals once."""
    return ChaCha20Poly1305(key).encrypt(ONE_USE, content, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """**Raises** `PolicyError` where it was changed, or sealed by or for somebody else."""
    try:
        return ChaCha20Poly1305(key).decrypt(ONE_USE, sealed, None)
    except InvalidTag as error:
        raise PolicyError("a sealed share was changed on its way, or is another's") from error


def joined(*words: bytes) -> bytes:
    """Words as bytes that no other words give."""
    return b"".join(len(word).to_bytes(4, "big") + word for word in words)
