"""What an ideal prefix cache would share: the bound that a real one is compared with.

vLLM shares whole blocks from the start of a prompt, and always computes its last token anew
(https://docs.vllm.ai/en/latest/design/prefix_caching.html). The reference keeps every block
forever, from the moment when the request comes: of M equal prompts sent at once, all but one
share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class PrefixReference:
    """Remembers the blocks of all prompts so far."""

    block_size: int
    """Tokens in a block."""
    _blocks: set[int] = field(default_factory=set)
    _prefixes: set[int] = field(default_factory=set)

    def shareable(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Count the tokens that a prompt shares with those before it, and remember the prompt.

        Args:
            prompt: Its token ids, chat template included.

        Returns:
            Tokens in whole shared blocks, which a cache can serve; and all tokens of the common
            prefix, of which the last ones may not fill a block.
        """
        size, blocks, tokens = self.block_size, 0, 0
        limit = len(prompt) - 1
        chain = 0
        for index, token in enumerate(prompt):
            chain = hash((chain, token))
            length = index + 1
            if length <= limit and chain in self._prefixes and tokens == index:
                tokens = length
            if length % size == 0:
                if length <= limit and chain in self._blocks and blocks == length - size:
                    blocks = length
                self._blocks.add(chain)
            self._prefixes.add(chain)
        return blocks, tokens
