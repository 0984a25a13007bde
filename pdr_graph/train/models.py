"""Opens the model that is trained, and writes it to its place when it is.

A model that is trained whole is in fp32, whatever it computes in; under adapters it is in bf16
where that is asked for, and the adapters are in fp32.
"""

import shutil
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.policy.folder import refuse_missing, tokenizer_of
from pdr_graph.train.ranks import together
from pdr_graph.train.settings import LoraSettings, TrainSettings

try:
    import torch
    import transformers
    from datasets import disable_progress_bars
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, Trainer, set_seed
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


def quiet_libraries() -> None:
    """Keep bars and warnings of the libraries below off the terminal; ours say what happens."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()


def open_tokenizer(folder: Path) -> Any:  # Any: transformers has no types
    """Open the tokenizer of a model folder; what pads is what ends, if nothing else is named.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        tokenizer = tokenizer_of(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_broken("tokenizer", folder, error)) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_model(settings: TrainSettings, start: Path) -> Any:  # Any: as above
    """Open the model to train.

    Args:
        settings: Of the run; the order of random numbers is fixed by its seed.
        start: Folder of what to start from: a whole model, or the adapter of a warm start.

    Raises:
        ConfigError: it cannot be opened, or its weights are not whole; or it is to be spread over
            CPUs.
    """
    if settings.devices.sharded and uses_cpu():
        # It says nothing of it, and keeps a whole copy in each process.
        raise ConfigError(
            "devices.sharded is true and there is no accelerator here: Accelerate shards nothing "
            "on CPUs; leave it out"
        )
    set_seed(settings.seed)  # a fresh adapter is drawn
    narrow = settings.lora is not None and settings.devices.precision == "bf16"
    base = settings.model if settings.lora is not None else start
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            base.resolve(),
            dtype=torch.bfloat16 if narrow else torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        refuse_missing(found, base)
        if settings.lora is None:
            return model
        if start != settings.model:
            return PeftModel.from_pretrained(model, start, is_trainable=True)
        return get_peft_model(model, adapter_of(settings.lora))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(_broken("model", base, error)) from None


def adapter_of(lora: LoraSettings) -> LoraConfig:
    """Return peft's description of the adapters."""
    modules = lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def save_model(trainer: Trainer, tokenizer: Any, place: Path) -> None:
    """Write the trained model, or its adapter, to its place, whole or not at all.

    Called on every rank: shards are gathered.

    Raises:
        ConfigError: they were not, so that there are no weights.
    """
    part = place.with_name(f".{place.name}.part")
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:
        # Where checkpoints hold shards, it would write no weights, and say nothing of it.
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(part))
    together(lambda: _publish(part, place, tokenizer, accelerator.is_main_process), accelerator)


def _publish(part: Path, place: Path, tokenizer: Any, main: bool) -> None:
    if not main:
        return
    if not any(part.glob("*.safetensors")):
        raise ConfigError(
            f"there are no weights to put at {str(place)!r}: the launcher's sharding does not "
            "gather them (for DeepSpeed set zero3_save_16bit_model true); the last checkpoint has "
            "them, and the same command goes on from it"
        )
    tokenizer.save_pretrained(part)
    (part / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
    part.rename(place)


def uses_cpu() -> bool:
    """Return whether there is no accelerator to train on."""
    return not torch.accelerator.is_available()


def _broken(what: str, folder: Path, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{what} in {str(folder)!r} cannot be opened: {first}"
