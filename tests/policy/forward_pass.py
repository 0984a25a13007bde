"""What a model says of drawn tokens in one plain forward pass; run as a script, on a JSON file.

    python forward_pass.py MODEL CALLS.json TEMPERATURE

It imports nothing of the package, so that any environment with transformers can be asked.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def scored(
    model: Any, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float
) -> list[float]:
    """Return the log-probability of each token: no cache, no padding, no batch."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float()
    table = (logits / temperature).log_softmax(-1)
    return table[range(len(token_ids)), list(token_ids)].tolist()


def largest_difference(folder: Path, calls: Sequence[Any], temperature: float) -> float:
    """Return how far the calls' log-probabilities are from the model's in the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return max(
        abs(told - found)
        for call in calls
        for told, found in zip(
            call.logprobs,
            scored(model, call.prompt_ids, call.token_ids, temperature),
            strict=True,
        )
    )


if __name__ == "__main__":
    from types import SimpleNamespace

    given = [SimpleNamespace(**each) for each in json.loads(Path(sys.argv[2]).read_text())]
    sys.stdout.write(str(largest_difference(Path(sys.argv[1]), given, float(sys.argv[3]))))
