"""vLLM in this process draws the tokens: a trainer's engine on the trainer's own device.

    engine = open_engine(Path("model"), gpu_memory_utilization=0.3)
    client = policy_client(VLLMPolicy(engine), engine.get_tokenizer())

With `VLLM_ENABLE_V1_MULTIPROCESSING=0` in the environment the engine is in this process, so that
weights can be handed over in memory; without, it is in a child process. For an engine behind an
endpoint use `ChatVLLM`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pdr_graph.errors import CallError, ConfigError, install_command
from pdr_graph.llm.client import Sampling
from pdr_graph.policy import CallBatcher, Drawn, Ticket, check_request

try:
    from vllm import LLM, SamplingParams
except ImportError:
    raise ConfigError(
        f"a policy in vLLM needs vLLM in this process: {install_command('vllm')}"
    ) from None

_Request = tuple[tuple[int, ...], Sampling]

NEEDED_MODE = "processed_logprobs"
"""Log-probabilities of the distribution that was drawn from, with its temperature."""


def open_engine(folder: Path, **options: Any) -> LLM:  # Any: vLLM's own options
    """Start an engine with the log-probabilities that training needs.

    Args:
        folder: The model.
        options: Further options of `vllm.LLM`; on a CPU, those that seeded draws need are set.

    Raises:
        ConfigError: vLLM cannot run the model here; the first line of its error follows.
    """
    from vllm.platforms import current_platform

    # On a CPU vLLM 0.31 crashes on a seeded request whose prompt is read in chunks, and compiling
    # takes longer than small models do.
    on_cpu = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
    own: dict[str, Any] = {  # Any: as above
        **(on_cpu if current_platform.is_cpu() else {}),
        "generation_config": "vllm",
        "logprobs_mode": NEEDED_MODE,
    }
    try:
        return LLM(model=str(folder), **{**own, **options})
    # The boundary to vLLM, which has many kinds of errors.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ConfigError(f"vLLM cannot run {str(folder)!r} in this process: {said}") from error


class VLLMPolicy:
    """Draws with an engine of this process, which gets concurrent calls together."""

    def __init__(self, llm: LLM, *, settle_s: float = 0.002) -> None:
        """Take an engine.

        Args:
            llm: Started by `open_engine`.
            settle_s: Calls are handed over when no further one has come for this long; if runs are
                known (`going_on`), when all of them wait.

        Raises:
            ConfigError: its log-probabilities are not of the distribution that is drawn from.
        """
        self.llm = llm
        self._config = llm.llm_engine.vllm_config.model_config
        mode = self._config.logprobs_mode
        if mode != NEEDED_MODE:
            raise ConfigError(
                f"vLLM's logprobs_mode is {mode!r}, which leaves the temperature out; start the "
                f"engine by open_engine, or with logprobs_mode={NEEDED_MODE!r}"
            )
        self._batcher: CallBatcher[_Request, Drawn] = CallBatcher(self._draw, settle_s=settle_s)

    @property
    def window(self) -> int | None:
        """Tokens that prompt and reply may have together."""
        return int(self._config.max_model_len)

    def going_on(self) -> AbstractContextManager[None]:
        """Make calls wait for those of a run, see `CallBatcher`."""
        return self._batcher.going_on()

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw one reply.

        Raises:
            ConfigError: the sampling is cut.
            ContextWindowError: prompt and reply do not fit the window.
            CallError: the engine did not finish the reply.
        """
        check_request(prompt_ids, sampling, self.window)
        return await self._batcher.ask((tuple(prompt_ids), sampling))

    def _draw(self, tickets: Sequence[Ticket[_Request, Drawn]]) -> list[Drawn]:
        # Sorted, since the order in which they came depends on timing.
        order = sorted(range(len(tickets)), key=lambda index: _order(tickets[index].request))
        asked = [tickets[index].request for index in order]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt_ids)} for prompt_ids, _ in asked],
            [_parameters(sampling) for _, sampling in asked],
            use_tqdm=False,
        )
        drawn = dict(zip(order, map(_drawn, outputs), strict=True))
        return [drawn[index] for index in range(len(tickets))]


def _order(request: _Request) -> tuple[object, ...]:
    prompt_ids, sampling = request
    return len(prompt_ids), prompt_ids, sampling.seed


def _parameters(sampling: Sampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        logprobs=0,  # of the drawn token alone
        detokenize=False,
    )


def _drawn(output: Any) -> Drawn:  # Any: vLLM is not installed where the types are checked
    reply = output.outputs[0]
    if reply.finish_reason not in ("stop", "length"):
        raise CallError(f"vLLM ended a reply unfinished: {reply.finish_reason}")
    logprobs = [
        float(each[token].logprob)
        for token, each in zip(reply.token_ids, reply.logprobs, strict=True)
    ]
    return Drawn(tuple(reply.token_ids), tuple(logprobs), reply.finish_reason)
