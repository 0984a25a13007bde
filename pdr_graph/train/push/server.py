"""Requests that change what a vLLM server serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from pdr_graph.train.push.protocol import PushError

TIMEOUT_S = 600.0
"""A large model takes minutes to load."""


@dataclass(frozen=True, slots=True)
class Server:
    """A vLLM server, as one who administers it calls it."""

    base_url: str
    """Its OpenAI endpoint, with `/v1`."""
    api_key: str | None = None

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def post(self, path: str, body: Mapping[str, Any], *, needs: str) -> dict[str, Any]:
        """Send a request and return the reply, empty where it is no JSON object.

        Args:
            path: Below the address, with its slash.
            body: Sent as JSON.
            needs: How a server has to be started that knows this path.

        Raises:
            PushError: no server answers, it does not know the path, or it refuses.
        """
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            reply = httpx2.post(
                f"{self.root}{path}", json=dict(body), headers=headers, timeout=TIMEOUT_S
            )
        except httpx2.HTTPError as error:
            raise PushError(
                f"the server at {self.root} does not take weights: {error or type(error).__name__}"
                "; is it up?"
            ) from None
        if reply.status_code == 404 and "not found" in reply.text.lower()[:40]:
            raise PushError(f"the server at {self.root} has no {path}; start it with {needs}")
        if not reply.is_success:
            raise PushError(
                f"the server at {self.root} refuses {path}: HTTP {reply.status_code}: "
                f"{' '.join(reply.text.split())[:300]}"
            )
        try:
            value = reply.json()
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}
