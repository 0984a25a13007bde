"""Roles as a user names them: `refiner=large@http://host:8000/v1`, and prices: `large=0.5/1.5`.

Nothing here imports a model, so that the command line can read it at once.
"""

import re
from dataclasses import dataclass
from math import isfinite

from pdr_graph.errors import keep_secrets_of
from pdr_graph.types import ROLES, Price


@dataclass(frozen=True, slots=True)
class RoleModel:
    """The model that a role is asked of."""

    role: str
    """One of `types.ROLES`."""
    name: str | None
    """None takes the only one that its endpoint serves."""
    base_url: str | None
    """None is the endpoint of the settings; without one there, `name` is a .gguf file or a model
    folder to run here."""

    @classmethod
    def parse(cls, text: str) -> "RoleModel":
        """Read ROLE=NAME[@URL].

        Raises:
            ValueError: it is none; the sentence says how it is written.
        """
        if url := re.search(r"https?://\S+", text):
            keep_secrets_of(url[0])
        role, equals, model = (part.strip() for part in text.partition("="))
        if not equals or not model:
            raise ValueError(
                "write it as ROLE=NAME[@URL], such as refiner=large@http://host:8000/v1"
            )
        if role not in ROLES:
            raise ValueError(f"there is no role {role!r}; known: {', '.join(ROLES)}")
        name, *urls = re.split(r"@(?=https?://)", model, maxsplit=1)
        # Names have an @ too, as in claude@20250219; an address without its scheme is a mistake.
        if not urls and re.match(r"https?://|.*@.*[:/]", name):
            raise ValueError(
                "an @ separates NAME and URL, which begins with http:// or https://, as in "
                f"{role}=large@http://host:8000/v1"
            )
        return cls(role, name or None, urls[0] if urls else None)

    @property
    def runs_here(self) -> bool:
        """Whether it is a file of weights, which no endpoint serves."""
        return self.base_url is None and (self.name or "").endswith(".gguf")


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The stated price of a model."""

    name: str
    price: Price

    @classmethod
    def parse(cls, text: str) -> "ModelPrice":
        """Read NAME=IN/OUT.

        Raises:
            ValueError: it is none; the sentence says how it is written.
        """
        name, _, prices = (part.strip() for part in text.rpartition("="))
        try:
            prompt, completion = (float(each) for each in prices.split("/"))
        except ValueError:
            prompt = completion = -1.0
        if not name or not all(isfinite(each) and each >= 0 for each in (prompt, completion)):
            raise ValueError(
                "write it as NAME=IN/OUT, the prices of a million prompt and completion tokens, "
                "such as large=0.5/1.5"
            )
        return cls(name, Price(prompt, completion))
