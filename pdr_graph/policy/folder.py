"""Opens a model folder in this process: a whole model of transformers, or a LoRA adapter.

For small models and studies; larger ones are served. An adapter is added to the weights of its
base, whose folder its `adapter_config.json` names. Nothing is ever downloaded.

    opened = open_folder(Path("runs/mine/model"))
    drawn = await opened.policy.draw(prompt_ids, sampling)
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdr_graph.errors import ConfigError, install_command

if TYPE_CHECKING:
    from pdr_graph.policy.transformers_policy import TransformersPolicy

TOKENIZER = "tokenizer_config.json"
_PLAIN = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""Classes that do what `tokenizer.json` says, and nothing else."""


def tokenizer_of(folder: Path) -> Any:  # Any: transformers has no types
    """Open the tokenizer that a folder holds; for a Qwen2 model AutoTokenizer would make Qwen2's.

    Raises:
        ImportError: transformers is not installed.
        OSError, ValueError, KeyError: the folder has none that can be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / TOKENIZER
    says = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kind = PreTrainedTokenizerFast if says.get("tokenizer_class") in _PLAIN else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


CONFIG, ADAPTER = "config.json", "adapter_config.json"
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class OpenedFolder:
    """A model that is ready to draw."""

    policy: "TransformersPolicy"
    tokenizer: Any  # Any: transformers has no types
    name: str
    """Name of the folder."""

    @property
    def num_parameters(self) -> int:
        """Return how many weights the model has."""
        return sum(weight.numel() for weight in self.policy.model.parameters())


def open_folder(folder: Path, *, device: str | None = None) -> OpenedFolder:
    """Load a model and its tokenizer.

    Args:
        folder: Holds `config.json` and weights, or `adapter_config.json` and an adapter's.
        device: Named as in torch; None is the accelerator, or else the CPU. On a CPU the weights
            are in float32, elsewhere as in the folder.

    Raises:
        ConfigError: torch is not installed, or the folder or the base of its adapter is not
            complete; one sentence says what is missing.
    """
    folder = folder.expanduser()
    base = _base_of(folder)
    try:
        import torch

        from pdr_graph.policy.transformers_policy import TransformersPolicy
    except ImportError:
        raise ConfigError(
            f"a model folder ({str(folder)!r}) is run in this process by torch; serve it and set "
            f"--base-url / PDR_BASE_URL, or install torch: {install_command('train')}"
        ) from None
    if device is None:
        device = str(torch.accelerator.current_accelerator() or "cpu")
    with quiet():
        model = _model(base or folder, device)
        if base is not None:
            model = _adapted(model, folder)
        where = folder if (folder / TOKENIZER).is_file() else base or folder
        with readable("tokenizer", where):
            tokenizer = tokenizer_of(where)
    model.eval()
    return OpenedFolder(TransformersPolicy(model, tokenizer), tokenizer, folder.resolve().name)


def refuse_missing(found: Mapping[str, Any], folder: Path) -> None:  # Any: the library's own
    """Refuse incomplete weights, by what transformers reports of their loading.

    Raises:
        ConfigError: some are missing, or of another shape.
    """
    # The library fills missing weights with noise, and says so only in its log.
    missing = sorted(found["missing_keys"]) + [each[0] for each in found["mismatched_keys"]]
    if missing:
        raise ConfigError(
            f"the weights in {str(folder)!r} are not those of its {CONFIG}: {missing[0]!r} "
            f"{'and others are' if len(missing) > 1 else 'is'} missing or of another shape"
        )


def cpu_dtype() -> str:
    """Return the number format in which a CPU reads and trains fastest, named as in torch.

    It is bfloat16 where the CPU multiplies that: reading then takes a quarter to a third of the
    time.
    """
    import torch

    return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"


def _base_of(folder: Path) -> Path | None:
    """Return the folder of the model that an adapter is for, None for a whole model.

    Raises:
        ConfigError: the folder is neither, or the base is not on this machine.
    """
    if not folder.is_dir():
        raise ConfigError(f"model folder {str(folder)!r} does not exist")
    file = folder / ADAPTER
    if not file.is_file():
        if (folder / CONFIG).is_file():
            return None
        raise ConfigError(
            f"folder {str(folder)!r} holds no model: it has neither {CONFIG} nor {ADAPTER}"
        )
    try:
        named = str(json.loads(file.read_text("utf-8"))["base_model_name_or_path"])
        places = [Path(named), folder / named]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(file)!r} does not name the adapter's base: {error!r}") from None
    for place in places:
        if (place / CONFIG).is_file():
            return place
    raise ConfigError(
        f"the adapter in {str(folder)!r} is for the model {named!r}, which is no folder here; put "
        f"the model there, or name its folder as base_model_name_or_path in {str(file)!r}"
    )


def _model(folder: Path, device: str) -> Any:  # Any: transformers has no types
    import torch
    from transformers import AutoModelForCausalLM

    with readable("model", folder):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if device == "cpu" else "auto",
            local_files_only=True,
            output_loading_info=True,
        )
    refuse_missing(found, folder)
    return model.to(device)


def _adapted(model: Any, folder: Path) -> Any:  # Any: as above
    from peft import PeftModel

    with readable("adapter", folder), warnings.catch_warnings():
        # peft may be a version behind transformers. It would fill missing keys with zeros.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


@contextmanager
def readable(what: str, folder: Path) -> Iterator[None]:
    """Say in one sentence what could not be read.

    Raises:
        ConfigError: in place of whatever the libraries raise.
    """
    try:
        yield
    # The libraries raise all that their parsers do: OSError, ValueError, KeyError, SafetensorError.
    except Exception as error:
        said = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise ConfigError(f"the {what} in {str(folder)!r} cannot be read: {said}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and notes off the terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
