"""AES-256-GCM over stored bytes, with keys that can be rotated.

The first key writes; every key reads. A stored blob names its key by four bytes of the key's
hash, so a rotation needs no rewrite: put the new key first, keep the old one until its threads
are pruned. What the blob belongs to (its field name) is authenticated with it, so bytes moved to
another field do not decrypt.

Not covered: thread ids, namespaces, channel names, task ids and the sizes of values stay
readable. Nonces are random; rotate a key before it has written 2^32 blobs (NIST SP 800-38D, 8.3).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from checkpoints.errors import DecryptionError, MissingDependencyError, StoreConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
KEY_ID_BYTES = 4
NONCE_BYTES = 12


class Keyring:
    """One key that writes and any number that read."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise StoreConfigError("encryption_keys is empty: give at least one key of 32 bytes")
        for key in keys:
            if len(key) != KEY_BYTES:
                raise StoreConfigError(
                    f"an encryption key has {len(key)} bytes, AES-256 takes {KEY_BYTES}"
                )
        self._ciphers = {_key_id(key): _cipher(key) for key in keys}
        self._writing = _key_id(keys[0])
        # A plain hash of a value would tell whoever can read Redis that two values are equal,
        # or that one equals a guess. The hash is keyed apart from the cipher.
        self._digest_key = hashlib.sha256(b"digest" + keys[0]).digest()

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """Encrypt and authenticate bytes that belong to a place."""
        nonce = os.urandom(NONCE_BYTES)
        body = self._ciphers[self._writing].encrypt(nonce, plain, place)
        return self._writing + nonce + body

    def unseal(self, sealed: bytes, place: bytes, what: str) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            DecryptionError: No key matches, or the bytes were altered, cut or moved.
        """
        # Imported here since whoever has a keyring has the package.
        from cryptography.exceptions import InvalidTag

        key_id, rest = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES:]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise DecryptionError(
                what, f"it is encrypted with key {key_id.hex()}, which is not in encryption_keys"
            )
        try:
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], place)
        except (InvalidTag, ValueError) as error:
            raise DecryptionError(
                what, f"key {key_id.hex()} does not authenticate it: the bytes were altered"
            ) from error

    def digest(self, plain: bytes) -> bytes:
        """Name a value by a keyed hash."""
        return hmac.digest(self._digest_key, plain, "sha256")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"id" + key).digest()[:KEY_ID_BYTES]


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingDependencyError(
            "checkpoint encryption", "cryptography", "encryption"
        ) from error
    return AESGCM(key)
