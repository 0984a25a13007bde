"""Hidden states of a model of transformers in this process, for a judge that looks at them.

Only the layers that are needed are run. The drafts of one problem share its prompt, which is read
once and kept for a while; those that wait at the same time are read side by side. All of it runs in
a thread of its own, so that the event loop goes on.
"""

import asyncio
import copy
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.judge import Layers, Turns, UnweighedError
from pdr_graph.llm.tokens import estimate_tokens
from pdr_graph.llm.usage import Spent, Usage
from pdr_graph.policy import CallBatcher, Ticket
from pdr_graph.policy.folder import CONFIG, cpu_dtype, quiet, readable, refuse_missing, tokenizer_of

MOST_THREADS = 4
"""Of the CPU: a judge works beside whatever else the process does."""
MOST_TOKENS = 8192
"""Tokens that are read side by side, padding included."""
KEPT_PROMPTS = 4
"""Problems whose prompts stay read; their drafts come within one round."""


@dataclass(frozen=True, slots=True)
class StateRequest:
    """A conversation, and the layers behind which its end is looked at."""

    turns: Turns
    layers: Layers


@dataclass(frozen=True, slots=True)
class _StatesRead:
    """What came of a request."""

    states: list[list[float]]
    """One for each layer asked for."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Row:
    """A request as tokens."""

    index: int
    """Its place in the batch."""
    ids: tuple[int, ...]
    """What comes after the shared prompt."""
    layers: Layers


_Answer = _StatesRead | UnweighedError


class TransformersStates:
    """Reads conversations with a model folder or a GGUF file."""

    def __init__(
        self,
        weights: Path,
        *,
        threads: int | None = None,
        device: str = "cpu",
        dtype: str | None = None,
    ) -> None:
        """Name the weights; they are loaded at the first read.

        Args:
            weights: A folder of transformers, or a .gguf file.
            threads: Of the CPU; None takes those that torch would, at most `MOST_THREADS`.
            device: Named as in torch.
            dtype: Of the weights, named as in torch. None takes the model's own on a device, and
                on a CPU bfloat16 where it multiplies that, else float32. On such a CPU bfloat16
                takes a quarter to a third of the time, and a state's cosine with the one in float32
                was above 0.9998.

        Raises:
            ConfigError: there is no model, or a library is missing.
        """
        self._weights = weights.expanduser().resolve()
        self._is_gguf = self._weights.suffix == ".gguf"
        file = self._weights if self._is_gguf else self._weights / CONFIG
        if not file.is_file():
            raise ConfigError(
                f"{str(weights)!r} holds no model to read hidden states of: {file.name} is missing"
            )
        for package, remedy in (
            ("torch", install_command("train")),
            ("transformers", install_command("train")),
            *([("gguf", "pip install gguf")] if self._is_gguf else []),
        ):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"hidden states of {str(weights)!r} are read in this process by {package}, "
                    f"which is not installed: {remedy}; or serve the model, and name "
                    "its endpoint by --judge-url"
                )
        self._threads = threads
        self._device = device
        self._dtype = dtype
        self._reader: _Reader | UnweighedError | None = None
        self._loading = threading.Lock()
        self._batcher: CallBatcher[StateRequest, _Answer] = CallBatcher(self._work, settle_s=0.01)

    @property
    def place(self) -> str:
        """As in `StateReader`."""
        return f"transformers, {self._weights.name}"

    async def read(self, turns: Turns, layers: Layers, spent: Spent) -> list[list[float]]:
        """As in `StateReader`."""
        began = perf_counter()
        spent.requests += 1
        try:
            answer = await self._batcher.ask(StateRequest(turns, layers))
        except asyncio.CancelledError:
            spent.aborted += 1
            guess = sum(estimate_tokens(text) for _, text in turns)
            spent.usage.append(Usage(prompt=guess, estimated=True))
            raise
        finally:
            spent.seconds += perf_counter() - began
        if isinstance(answer, UnweighedError):
            spent.failed += 1
            raise UnweighedError(str(answer))
        spent.usage.append(answer.usage)
        return answer.states

    async def num_layers(self) -> int:
        """Return how many layers the model has.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return (await asyncio.to_thread(self._loaded)).num_layers
        except UnweighedError as error:
            raise ConfigError(str(error)) from None

    def _loaded(self) -> "_Reader":
        with self._loading:
            if self._reader is None:
                try:
                    self._reader = _Reader.of(
                        self._weights, self._threads, self._device, self._dtype
                    )
                except ConfigError as error:
                    self._reader = UnweighedError(str(error))  # for all that come: it takes long
        if isinstance(self._reader, UnweighedError):
            raise UnweighedError(str(self._reader))
        return self._reader

    def _work(self, tickets: Sequence[Ticket[StateRequest, _Answer]]) -> Sequence[_Answer]:
        """Answer a batch, in the thread of the batcher."""
        try:
            return self._loaded().answers([ticket.request for ticket in tickets])
        except UnweighedError as error:
            return [error] * len(tickets)


class _Reader:
    """A loaded model."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:  # Any: of transformers
        self.model = model
        self.tokenizer = tokenizer
        self._device = device
        self._all_layers = getattr(model, "layers", None)
        self._norm = getattr(model, "norm", None)
        from pdr_graph.policy.transformers_policy import ForwardNames

        self._cache_name = ForwardNames.of(model).cache
        self._prompts: OrderedDict[tuple[tuple[int, ...], int | None], Any] = OrderedDict()

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        if self._all_layers is None:
            return int(self.model.config.num_hidden_layers)
        return len(self._all_layers)

    @classmethod
    def of(cls, weights: Path, threads: int | None, device: str, dtype: str | None) -> "_Reader":
        """Load a model and its tokenizer.

        Raises:
            ConfigError: they cannot be read.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads or min(torch.get_num_threads(), MOST_THREADS))
        if dtype is None:
            dtype = "auto" if device != "cpu" else cpu_dtype()
        is_gguf = weights.suffix == ".gguf"
        folder = weights.parent if is_gguf else weights
        named = {"gguf_file": weights.name} if is_gguf else {}
        with quiet():
            with readable("model", weights):
                model, found = AutoModel.from_pretrained(
                    folder,
                    dtype=dtype,
                    local_files_only=True,
                    output_loading_info=True,
                    **named,
                )
            refuse_missing(found, weights)
            with readable("tokenizer", weights):
                tokenizer = (
                    AutoTokenizer.from_pretrained(folder, **named)
                    if is_gguf
                    else tokenizer_of(folder)
                )
        if not tokenizer.chat_template:
            raise ConfigError(f"the tokenizer of {str(weights)!r} has no chat template")
        return cls(model.to(device).eval(), tokenizer, device)

    def answers(self, requests: Sequence[StateRequest]) -> list[_Answer]:
        """Answer requests in their order."""
        import torch

        found: list[_Answer] = [UnweighedError("it was not read")] * len(requests)
        groups: dict[tuple[tuple[int, ...], int | None], list[_Row]] = {}
        for index, request in enumerate(requests):
            try:
                prompt, rest = self._ids(request)
                depth = self._depth(request.layers)
            except UnweighedError as error:
                found[index] = error
            else:
                groups.setdefault((prompt, depth), []).append(_Row(index, rest, request.layers))
        with torch.inference_mode():
            for (prompt, depth), rows in groups.items():
                self._set_depth(depth)
                cache, is_new = self._prompt(prompt, depth)
                for part in _parts(sorted(rows, key=lambda row: len(row.ids))):
                    for row, states in zip(part, self._states(part, cache), strict=True):
                        shared = len(prompt) if cache is not None else 0
                        cached, is_new = (0 if is_new else shared), False
                        usage = Usage(prompt=len(prompt) + len(row.ids), cached=cached)
                        found[row.index] = _StatesRead(states, usage)
        return found

    def _ids(self, request: StateRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of the first turn, as a draft's prompt has them, and of the rest.

        Raises:
            UnweighedError: the model's window is smaller, or its template takes no such turns.
        """
        messages = [{"role": role, "content": text} for role, text in request.turns]
        try:
            first, whole = (
                self.tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
                for each in (messages[:1], messages)
            )
        # A template is a program of the model's: it may raise anything.
        except Exception as error:  # noqa: BLE001
            raise UnweighedError(f"the model's chat template refuses the turns: {error}") from None
        if not whole.startswith(first):
            first = ""  # templates of thinking models write a finished turn otherwise
        prompt, rest = (
            tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (first, whole[len(first) :])
        )
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is not None and len(prompt) + len(rest) > window:
            raise UnweighedError(
                f"a draft with its question has {len(prompt) + len(rest)} tokens, and the judge's "
                f"model reads {window}"
            )
        return prompt, rest

    def _depth(self, layers: Layers) -> int | None:
        """Return how many layers have to be run; None is all, and the final norm.

        Raises:
            UnweighedError: the model has fewer.
        """
        total = self.num_layers
        known = [layer for layer in layers if layer is not None]
        if known and max(known) > total:
            raise UnweighedError(f"the judge's model has {total} layers, not {max(known)}")
        return None if None in layers else max(known)

    def _set_depth(self, depth: int | None) -> None:
        if self._all_layers is None or self._norm is None:
            return  # an unusual model runs whole
        import torch

        self.model.layers = self._all_layers[:depth]
        self.model.config.num_hidden_layers = len(self.model.layers)
        self.model.norm = self._norm if depth is None else torch.nn.Identity()

    def _prompt(self, prompt: tuple[int, ...], depth: int | None) -> tuple[Any, bool]:
        """Return the cache of a prompt that has been read, and whether that was now."""
        import torch
        from transformers import DynamicCache

        if not prompt:
            return None, False
        key = prompt, depth
        if (cache := self._prompts.get(key)) is not None:
            self._prompts.move_to_end(key)
            return cache, False
        ids = torch.tensor([prompt], device=self._device)
        out = self.model(input_ids=ids, use_cache=True)
        cache = out.get(self._cache_name, out.get("past_key_values"))
        if not isinstance(cache, DynamicCache):
            raise UnweighedError("the judge's model keeps no cache that can be shared")
        self._prompts[key] = cache
        while len(self._prompts) > KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        return cache, True

    def _states(self, rows: Sequence[_Row], prompt: Any) -> Iterator[list[list[float]]]:
        """Yield the states of rows that are read side by side."""
        import torch

        longest = max(len(row.ids) for row in rows)
        # Padded behind: nothing looks ahead, so that what is there changes nothing before it.
        padded = [[*row.ids, *[0] * (longest - len(row.ids))] for row in rows]
        cache = copy.deepcopy(prompt)
        if cache is not None:
            cache.batch_repeat_interleave(len(rows))
        out = self.model(
            input_ids=torch.tensor(padded, device=self._device),
            use_cache=cache is not None,
            output_hidden_states=True,
            **({} if cache is None else {self._cache_name: cache}),
        )
        deepest = len(out.hidden_states) - 1
        for place, row in enumerate(rows):
            end = len(row.ids) - 1
            states = [
                out.last_hidden_state
                if layer is None or layer == deepest
                else out.hidden_states[layer]
                for layer in row.layers
            ]
            yield [state[place, end].float().tolist() for state in states]


def write_first_layers(weights: Path, layers: int, folder: Path) -> None:
    """Write the first layers of a model as a model of its own, for an engine to serve.

    Its final norm keeps the direction of a state, so that a judge which was fitted behind this
    layer reads the same there: it brings states to unit length.

    Args:
        weights: A folder of transformers, or a .gguf file.
        layers: How many layers to keep.
        folder: Where the copy goes, with the tokenizer.

    Raises:
        ConfigError: the model cannot be read, has fewer layers, or has a final norm that turns
            states whatever its weights are; or the folder cannot be written.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    reader = _Reader.of(weights.expanduser().resolve(), None, "cpu", "float32")
    base, norm = reader.model, getattr(reader.model, "norm", None)
    if norm is None or not 0 < layers <= reader.num_layers:
        raise ConfigError(
            f"{str(weights)!r} has {reader.num_layers} layers and "
            f"{'no final norm that is known' if norm is None else 'a final norm'}; its first "
            f"{layers} cannot be kept"
        )
    base.layers = base.layers[:layers]
    with torch.no_grad():
        sample = torch.randn(4, base.config.hidden_size)
        for plain in (1.0, 0.0):  # some norms add one to their weights
            norm.weight.fill_(plain)
            if (torch.cosine_similarity(norm(sample), sample) > 0.9999).all():
                break
        else:
            raise ConfigError(f"the final norm of {str(weights)!r} turns states; no copy is made")
    config = AutoConfig.for_model(**{**base.config.to_dict(), "num_hidden_layers": layers})
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
    head = {"lm_head.weight": base.get_input_embeddings().weight}
    own = {f"{whole.base_model_prefix}.{name}": each for name, each in base.state_dict().items()}
    whole.load_state_dict({**own, **head}, strict=False, assign=True)
    try:
        whole.save_pretrained(folder)
        reader.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be written: {error.strerror}") from None


def _parts(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """Yield rows, sorted by length, in parts that are read side by side."""
    part: list[_Row] = []
    for row in rows:
        if part and (len(part) + 1) * len(row.ids) > MOST_TOKENS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
