"""vLLM and a trainer in one process: `python -m tests.vllm.colocated SITE FOLDER tied|untied|lora`.

SITE is the folder of packages of vLLM's environment, which has the same torch: its packages are
found after the trainer's own. Prints what was found as JSON.
"""

import contextlib
import json
import random
import sys
from pathlib import Path


def main(site: str, folder: Path, kind: str) -> None:
    """Train three steps with every push, then as many with the later ones withheld."""
    sys.path.append(site)
    # What the libraries print is no part of the result.
    with contextlib.redirect_stdout(sys.stderr):
        found = _found(folder, kind)
    print(json.dumps(found))  # noqa: T201


def _found(folder: Path, kind: str) -> dict[str, object]:
    # Here, for they are found only now.
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    from pdr_graph.train.push import ColocatePush
    from pdr_graph.train.steps import DriftError
    from tests.policy.tiny_model import write_tiny_model
    from tests.vllm.served_policy import SHAPE, Withheld, train

    path = write_tiny_model(folder / "model", tie_word_embeddings=kind != "untied", **SHAPE)
    engine = LLM(
        model=str(path),
        dtype="float32",
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_model_len=256,
        max_num_seqs=8,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
    )

    def model():
        opened = AutoModelForCausalLM.from_pretrained(path)
        if kind != "lora":
            return opened
        return get_peft_model(opened, LoraConfig(r=4, target_modules="all-linear"))

    push = ColocatePush(engine)
    figures = train(folder / "pushed", model(), FromTheEngine(engine), push)
    found: dict[str, object] = {
        "versions": [each["policy_version"] for each in figures],
        "largest": max(each["drift/largest"] for each in figures),
    }
    try:
        train(folder / "withheld", model(), FromTheEngine(engine), Withheld(push, last=0))
    except DriftError as error:
        found |= {"tripped_at": error.policy_version, "withheld": error.drift.largest}
    return found


class FromTheEngine:
    """A collector that draws rows from an engine; even tokens earn a reward."""

    def __init__(self, engine) -> None:
        self.engine = engine

    def __call__(self, problems, plans, *, seed: int, policy_version: int):
        """Draw the rows of some problems, side by side."""
        from vllm import SamplingParams

        from pdr_graph.train.rollouts import Rollouts
        from pdr_graph.train.rows import TrainRow
        from pdr_graph.train.trajectory import Call

        asked = [
            (problem, role, f"{seed}:{problem.id}:{role}:{index}")
            for problem, plan in zip(problems, plans, strict=True)
            for role, number in plan.rows.items()
            for index in range(number)
        ]
        prompts = [[10 + int(problem.id[1:]), 11, *[20] * len(role)] for problem, role, _ in asked]
        replies = self.engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                SamplingParams(max_tokens=8, seed=random.Random(name).getrandbits(31), logprobs=0)
                for _, _, name in asked
            ],
            use_tqdm=False,
        )
        rows: dict[str, list[TrainRow]] = {problem.id: [] for problem in problems}
        for (problem, role, name), prompt, reply in zip(asked, prompts, replies, strict=True):
            drawn = reply.outputs[0]
            reward = 1.0 if sum(drawn.token_ids) % 2 == 0 else -1.0
            call = Call(
                role=role,
                round=0,
                rollout=name,
                prompt_ids=tuple(prompt),
                token_ids=tuple(drawn.token_ids),
                logprobs=tuple(
                    each[token].logprob
                    for each, token in zip(drawn.logprobs, drawn.token_ids, strict=True)
                ),
                text="",
                finish_reason=drawn.finish_reason,
                seed=0,
                policy_version=policy_version,
                reward=reward,
            )
            rows[problem.id].append(TrainRow(problem.id, call, reward))
        return Rollouts(list(rows.values()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
