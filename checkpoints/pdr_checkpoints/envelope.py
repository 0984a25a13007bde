"""Stored blobs: compressed, checked and optionally encrypted, as the package's docstring shows.

Compression comes before encryption, since ciphertext does not compress. A CRC finds accidents, not
forgery: only encryption stops someone who can write to Redis.

Encryption is AES-256-GCM with keys that can be rotated. The first key writes, every key reads. A
blob names its key by four bytes of the key's hash, so that a new key needs no pause: put it first,
and keep the old one until `reseal_thread` has sealed what is stored anew.

With keys, only what they authenticate is read, in its thread and its field. A plain blob is
refused, and so is one of an early release, which did not bind a blob to its thread.

Not covered: thread ids, namespaces, channel names, task ids and the sizes of values stay readable.
Whoever can write to Redis can delete blobs, or put back what its field held before.
Nonces are random: rotate a key before it has written 2^32 blobs (NIST SP 800-38D, 8.3).
"""

import hashlib
import hmac
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import ormsgpack
import zstandard

from pdr_checkpoints.errors import (
    CorruptCheckpointError,
    DecryptionError,
    FormatVersionError,
    MissingDependencyError,
    StoreConfigError,
    TooLargeError,
)
from pdr_checkpoints.keys import decode, encode
from pdr_checkpoints.serde import MAX_CHECKPOINT_BYTES, Allowance

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Compression = Literal["none", "zlib", "zstd"]

ENVELOPE_VERSION: Final = 1
"""Version of plain blobs, and of encrypted blobs that are not bound to a thread."""
SEALED_VERSION: Final = 2
"""Version of encrypted blobs that are bound to a thread."""
COMPRESSIONS: Final[tuple[Compression, ...]] = ("none", "zlib", "zstd")
"""Position is the number in the header: append only."""
ENCRYPTED: Final = 16
COMPRESS_FROM: Final = 200
"""Bytes. In shorter bodies the frame takes what compression saves."""
LEVEL: Final = 1
"""On 32 kB of prose zstd 3 is 4 % smaller than zstd 1 and takes 1.3 times as long."""
WINDOW: Final = 1 << 23
"""Bytes of memory for a frame of zstd that declares no size: what its RFC 8878 asks for."""
DIGEST_BYTES: Final = 16
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
NONCE_BYTES: Final = 12
HEAD_BYTES: Final = 2 + KEY_ID_BYTES
"""First bytes of a blob, which show how it is sealed."""

PLAIN: Final = "plain"
EARLY: Final = "early"
"""Sealed by an early release, not bound to a thread."""


class Keyring:
    """One key that writes and any number that read."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if len(key) != KEY_BYTES:
                raise StoreConfigError(
                    f"an encryption key has {len(key)} bytes, AES-256 takes {KEY_BYTES}"
                )
        self._ciphers = {_key_id(key): _cipher(key) for key in keys}
        self._writing = _key_id(keys[0])
        # A plain hash of a value would tell a reader of Redis that two values are equal, or that
        # one equals a guess. The key of the hash is not the cipher's.
        self._digest_key = hashlib.sha256(b"digest" + keys[0]).digest()

    @property
    def name(self) -> str:
        """The key that writes, by the part of its hash that its blobs carry."""
        return self._writing.hex()

    @property
    def names(self) -> frozenset[str]:
        """The same of all keys."""
        return frozenset(key_id.hex() for key_id in self._ciphers)

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """Encrypt bytes, and authenticate them together with their place."""
        nonce = os.urandom(NONCE_BYTES)
        body = self._ciphers[self._writing].encrypt(nonce, plain, place)
        return self._writing + nonce + body

    def unseal(self, sealed: bytes, place: bytes, what: str) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            DecryptionError: No key matches, or the bytes were altered, cut or moved.
        """
        # A keyring exists only where the package is installed.
        from cryptography.exceptions import InvalidTag

        key_id, rest = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES:]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise DecryptionError(
                what,
                f"it is encrypted with key {key_id.hex()}, which is not in encryption_keys: add "
                "the key",
            )
        try:
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], place)
        except (InvalidTag, ValueError) as error:
            raise DecryptionError(
                what,
                f"key {key_id.hex()} does not authenticate it: the bytes were altered, "
                "or are those of another field or thread",
            ) from error

    def digest(self, plain: bytes) -> bytes:
        """Return a keyed hash."""
        return hmac.digest(self._digest_key, plain, "sha256")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"id" + key).digest()[:KEY_ID_BYTES]


def _cipher(key: bytes) -> "AESGCM":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingDependencyError("checkpoint encryption", "cryptography") from error
    return AESGCM(key)


class Envelope:
    """Compresses, checks and optionally encrypts stored bytes, of any thread."""

    def __init__(
        self,
        compression: Compression = "zstd",
        encryption_keys: Sequence[bytes] = (),
        *,
        read_older: bool = False,
        max_bytes: int = MAX_CHECKPOINT_BYTES,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise StoreConfigError(
                f"compression is {compression!r}, it can be {', '.join(COMPRESSIONS)}"
            )
        self.compression = compression
        self.keyring = Keyring(encryption_keys) if encryption_keys else None
        self.read_older = read_older
        """With keys: whether to read blobs that no key binds to their thread."""
        self.max_bytes = max_bytes
        """Memory that the values of one checkpoint may take when they are read."""
        # A zstd context is 1.4 MB to allocate and belongs to one thread at a time.
        self._contexts = threading.local()

    def of(self, thread_id: str) -> "ThreadEnvelope":
        """Return the envelope of a thread's blobs."""
        return ThreadEnvelope(self, encode(thread_id))

    def seal_of(self, head: bytes) -> str:
        """Say how a blob is sealed, by its first bytes: `plain`, `early`, or the key's name."""
        if len(head) < HEAD_BYTES or not head[1] & ENCRYPTED:
            return PLAIN
        return head[2:HEAD_BYTES].hex() if head[0] >= SEALED_VERSION else EARLY

    @property
    def seal_name(self) -> str:
        """How this envelope seals, as `seal_of` says it."""
        return PLAIN if self.keyring is None else self.keyring.name

    def digest(self, body: bytes) -> bytes:
        """Name a body by 16 bytes of its hash, which is keyed where bodies are encrypted."""
        whole = self.keyring.digest(body) if self.keyring else hashlib.sha256(body).digest()
        return whole[:DIGEST_BYTES]

    def compress(self, body: bytes) -> tuple[bytes, int]:
        """Return a body that may be smaller, and the number of the method."""
        if len(body) < COMPRESS_FROM or self.compression == "none":
            return body, 0
        smaller = self._smaller(body)
        if len(smaller) >= len(body):
            return body, 0
        return smaller, COMPRESSIONS.index(self.compression)

    def _smaller(self, body: bytes) -> bytes:
        if self.compression == "zlib":
            return zlib.compress(body, LEVEL)
        context = getattr(self._contexts, "compressor", None)
        if context is None:
            context = self._contexts.compressor = zstandard.ZstdCompressor(level=LEVEL)
        smaller: bytes = context.compress(body)
        return smaller

    def allowance(self) -> Allowance:
        """Return the memory that one reading may take."""
        return Allowance(self.max_bytes)

    def decompress(self, method: int, body: bytes, place: bytes, most: int) -> bytes:
        """Undo `compress`.

        Args:
            method: Number of the compression.
            body: What it made.
            place: The field, for messages.
            most: Bytes that may come out.

        Raises:
            CorruptCheckpointError: It is cut or altered.
            _LongerError: More than `most` bytes would come out; no more are ever produced.
        """
        try:
            if method == 0:
                return body
            if method == 1:
                return _inflated(body, most)
            if method == 2:
                return self._expanded(body, most)
        except (zlib.error, zstandard.ZstdError) as error:
            raise CorruptCheckpointError(
                describe(place), f"it does not decompress: {error}"
            ) from error
        raise CorruptCheckpointError(describe(place), f"its compression {method} is unknown")

    def _expanded(self, body: bytes, most: int) -> bytes:
        # The frame declares its size, which zstd holds it to; all that we wrote does.
        size = zstandard.frame_content_size(body)
        if size > most:
            raise _LongerError(size)
        if size >= 0:
            context = getattr(self._contexts, "decompressor", None)
            if context is None:
                context = self._contexts.decompressor = zstandard.ZstdDecompressor()
            whole: bytes = context.decompress(body)
            return whole
        with zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(body) as reader:
            pieces: bytes = reader.read(most + 1)
        if len(pieces) > most:
            raise _LongerError(len(pieces))
        return pieces


class _LongerError(Exception):
    """More bytes would come out than are allowed."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(size)


def _inflated(body: bytes, most: int) -> bytes:
    # zlib declares no size.
    stream = zlib.decompressobj()
    whole = stream.decompress(body, most + 1)
    if len(whole) > most:
        raise _LongerError(len(whole))
    if not stream.eof:
        raise zlib.error("incomplete or truncated stream")
    return whole


@dataclass(frozen=True, slots=True)
class ThreadEnvelope:
    """Wraps the blobs of one thread. A place is a blob's field name."""

    envelope: Envelope
    thread: bytes

    def wrap(self, body: bytes, place: bytes) -> bytes:
        """Make the blob that is stored under `place`."""
        body, method = self.envelope.compress(body)
        if (keyring := self.envelope.keyring) is not None:
            header = bytes((SEALED_VERSION, method | ENCRYPTED))
            return header + keyring.seal(body, self._bound(header, place))
        header = bytes((ENVELOPE_VERSION, method))
        return header + _check(header + place, body) + body

    def unwrap(self, blob: bytes | None, place: bytes, allowance: Allowance | None = None) -> bytes:
        """Return the body of a blob; None stands for a blob that the server does not have.

        Its length is taken from the allowance; None allows the blob alone what a checkpoint may
        take.

        Raises:
            TooLargeError: There is no room for it.
            FormatVersionError: A later release wrote it.
            DecryptionError: It is encrypted and no key opens it, or there are keys and it is not
                bound to its thread by one.
            CorruptCheckpointError: It is missing, cut or altered.
        """
        if blob is None:
            raise CorruptCheckpointError(self.describe(place), "it is missing")
        if len(blob) < 2:
            raise CorruptCheckpointError(
                self.describe(place), f"only {len(blob)} bytes are left of it"
            )
        header, version, flags = blob[:2], blob[0], blob[1]
        known = SEALED_VERSION if flags & ENCRYPTED else ENVELOPE_VERSION
        if not ENVELOPE_VERSION <= version <= known:
            raise FormatVersionError(self.describe(place), version, known)
        keyring = self.envelope.keyring
        if keyring is not None and version < SEALED_VERSION and not self.envelope.read_older:
            what = "was encrypted by an early release" if flags & ENCRYPTED else "is not encrypted"
            raise DecryptionError(
                self.describe(place),
                f"it {what}, so that encryption_keys do not show that it belongs to this thread: "
                "if it is older than the keys or than this release, and you trust where it comes "
                "from, `pdr-graph reseal --read-older` seals it in the store and `pdr-graph "
                "threads --import FILE --read-older` from a file; in Python, open it with "
                "read_older=True",
            )
        if flags & ENCRYPTED:
            if keyring is None:
                raise DecryptionError(
                    self.describe(place),
                    "it is encrypted and encryption_keys is not set: name a file that holds the "
                    "key by --encryption-key-file / PDR_ENCRYPTION_KEY_FILE",
                )
            bound = self._bound(header, place) if version == SEALED_VERSION else header + place
            body = keyring.unseal(blob[2:], bound, self.describe(place))
        else:
            body = blob[6:]
            if blob[2:6] != _check(header + place, body):
                raise CorruptCheckpointError(
                    self.describe(place), "its checksum differs: cut or altered bytes"
                )
        allowance = allowance or self.envelope.allowance()
        try:
            whole = self.envelope.decompress(flags & ~ENCRYPTED, body, place, allowance.left)
        except _LongerError as longer:
            size = longer.size + allowance.limit - allowance.left
            raise TooLargeError(self.describe(place), size, allowance.limit) from None
        allowance.left -= len(whole)
        if allowance.left < 0:
            size = allowance.limit - allowance.left
            raise TooLargeError(self.describe(place), size, allowance.limit)
        return whole

    def pack(self, content: list[Any], place: bytes) -> bytes:  # Any: plain data of mixed types
        """Make the blob of a list of plain data."""
        return self.wrap(ormsgpack.packb(content), place)

    def unpack(
        self, blob: bytes | None, place: bytes, allowance: Allowance | None = None
    ) -> list[Any]:  # Any: checked by the caller
        """Undo `pack`; raises what `unwrap` does."""
        allowance = allowance or self.envelope.allowance()
        packed = self.unwrap(blob, place, allowance)
        if not allowance.surely_takes(packed):
            allowance.take_value(packed, self.describe(place))
        try:
            content = ormsgpack.unpackb(packed)
        except ormsgpack.MsgpackDecodeError as error:
            raise CorruptCheckpointError(
                self.describe(place), f"it is not msgpack: {error}"
            ) from error
        if not isinstance(content, list):
            raise unknown_shape(place)
        return content

    def moved(self, blob: bytes, place: bytes, target: "ThreadEnvelope") -> bytes:
        """Return a blob for the same place of a thread, the same or another.

        With keys, a blob that no key opens is refused, and a blob that is not bound is sealed anew.
        Raises the errors of `unwrap`.
        """
        is_bound, stays = blob[:1] == bytes((SEALED_VERSION,)), self.thread == target.thread
        if self.envelope.keyring is None and (stays or not is_bound):
            return blob
        body = self.unwrap(blob, place)
        return blob if is_bound and stays else target.wrap(body, place)

    def describe(self, place: bytes) -> str:
        """Name a field and its thread in a message."""
        return f"{describe(place)} of thread {decode(self.thread)!r}"

    def _bound(self, header: bytes, place: bytes) -> bytes:
        return header + len(self.thread).to_bytes(4, "big") + self.thread + place


def describe(place: bytes) -> str:
    """Name a field in a message."""
    kind, _, rest = place.partition(b"\0")
    names = {b"c": "checkpoint", b"v": "channel value", b"w": "pending write"}
    if kind in names:
        return f"{names[kind]} {rest.replace(bytes(1), b' / ').decode('utf-8', 'replace')!r}"
    return f"part {place[1:].hex()}"


def unknown_shape(place: bytes) -> CorruptCheckpointError:
    """Return the error for a blob whose content has another form than its field says."""
    return CorruptCheckpointError(describe(place), "it has an unknown shape")


def _check(head: bytes, body: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big")
