"""A model that FSDP spreads over two ranks is trained, saved and resumed as one that is whole."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from pdr_graph.errors import ConfigError
from pdr_graph.train.models import last_checkpoint, save_model, update_of
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.warm_start import Rows, WarmStartTrainer
from tests.policy.tiny_model import tiny_model, tiny_tokenizer
from tests.train.given_rows import SMALL
from tests.train.processes import exit_code, start_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries below, in this process

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
}
"""As `accelerate launch --use_fsdp --fsdp_version 2` sets them."""


class ShardingTrainer(WarmStartTrainer):
    """Shards on CPUs."""

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate shards on GPUs alone; what such ranks do over gloo is otherwise the same."""
        PartialState().distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def trainer_of(folder: Path, *, sharded: bool, processes: int) -> WarmStartTrainer:
    """Return a trainer of four rows, two updates an epoch on two ranks of one row each."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{index}+1="}],
            "completion": [{"role": "assistant", "content": str(index + 1)}],
        }
        for index in range(4)
    ]
    settings = TrainSettings(
        model="none",
        warm_start={
            "data": "none",
            "epochs": 2.0,
            "batch_rows": processes,
            "micro_batch_rows": 1,
            "learning_rate": 1e-2,
            "warmup_share": 0.0,
            "save_every": 1,
        },
        optimiser={"gradient_checkpointing": False},
        devices={"processes": processes, "sharded": sharded},
    )
    kind = ShardingTrainer if sharded else WarmStartTrainer
    return kind(tiny_model(**SMALL), tiny_tokenizer(), Rows(rows, 0), settings, folder)


def be_a_rank(folder: Path, sharded: bool) -> None:
    """Be one of two ranks that train to the end and save, whether or not each holds a part."""
    train(folder, sharded)
    # Not before the trainer is gone: torch may wait for ever for a thread of gloo's.
    torch.distributed.destroy_process_group()


def train(folder: Path, sharded: bool) -> None:
    """Train to the end and save."""
    trainer = trainer_of(folder, sharded=sharded, processes=2)
    trainer.go_on()
    shards = {isinstance(each, DTensor) for each in trainer.model.parameters()}
    (folder / f"shards-{trainer.accelerator.process_index}").write_text(str(shards))
    save_model(trainer, tiny_tokenizer(), folder / "model", lambda: "# A card")


def weights(folder: Path):
    """Return the weights of a saved model, without those that are tied to others."""
    found = load_file(folder / "model" / "model.safetensors")
    head = found.pop("lm_head.weight", None)
    assert head is None or torch.equal(head, found["model.embed_tokens.weight"])
    return found


def gap(one, other) -> float:
    """Return the largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_model_in_shards_ends_as_one_that_is_whole(tmp_path):
    """Its weights are gathered and saved; from a checkpoint of shards it ends the same."""
    sharded, resumed, whole = (tmp_path / name for name in ("sharded", "resumed", "whole"))
    for each in (sharded, resumed, whole):
        each.mkdir()
    assert [exit_code(each) for each in start_ranks(2, be_a_rank, whole, False)] == [0, 0]
    assert [exit_code(each) for each in start_shards(sharded)] == [0, 0]
    assert (sharded / "shards-0").read_text() == (sharded / "shards-1").read_text() == "{True}"
    assert update_of(last_checkpoint(sharded)) == 4
    (sharded / "checkpoint-3").rename(resumed / "checkpoint-3")
    assert [exit_code(each) for each in start_shards(resumed)] == [0, 0]
    before = dict(tiny_model(**SMALL).named_parameters())
    assert gap(weights(whole), {name: before[name] for name in weights(whole)}) > 1e-2
    assert gap(weights(sharded), weights(whole)) < 1e-4
    assert gap(weights(resumed), weights(sharded)) == 0.0


def start_shards(folder: Path):
    """Start two ranks that shard."""
    return start_ranks(2, be_a_rank, folder, True, **SHARDED)


def test_a_model_without_weights_is_not_saved(tmp_path):
    """A sharding that does not gather them leaves none; a model's place then stays empty."""
    trainer = trainer_of(tmp_path, sharded=False, processes=1)
    trainer.save_model = lambda folder: Path(folder).mkdir()
    with pytest.raises(ConfigError, match=r"no weights to write to .*the same command goes on"):
        save_model(trainer, tiny_tokenizer(), tmp_path / "model", lambda: "# A card")
    assert not (tmp_path / "model").exists()
