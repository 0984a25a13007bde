"""A session does what is left of a run, tells what it does, and stops where it is told to."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.models import last_checkpoint, update_of, uses_cpu
from pdr_graph.train.preparation import prepare
from pdr_graph.train.run_folder import (
    Line,
    Stage,
    TrainFolder,
    header_of,
    read_header,
    refuse_changes,
)
from pdr_graph.train.session import TrainSession
from pdr_graph.train.settings import load_train_settings
from tests.train.toy_run import Toy, write_toy

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries below


@dataclass
class Watching:
    """Remembers what it was told, and asks to stop after some updates."""

    stop_after: int = 1_000
    phases: list[str] = field(default_factory=list)
    begun: list[tuple[Stage, int, int]] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)

    def phase(self, what: str) -> None:
        self.phases.append(what)

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        self.begun.append((stage, update, total))

    def told(self, line: Line) -> None:
        self.updates.append(line["update"])

    def stop_asked(self) -> bool:
        return len(self.updates) >= self.stop_after


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    """A tiny model, and what it is trained on."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def session_of(toy: Toy, out: Path, watching: Watching, *overrides: str) -> TrainSession:
    """Return a session in a folder."""
    prepared = prepare(load_train_settings(toy.config, {}, ["steps=2", *overrides]))
    return TrainSession(prepared, TrainFolder(out), watching, watching.stop_asked)


def test_it_stops_after_an_update_and_goes_on(toy, tmp_path):
    """With a checkpoint of that very update, in the middle of a step as well."""
    first = Watching(stop_after=2)  # figures come when the next update is under way
    assert session_of(toy, tmp_path, first).run() is False
    assert update_of(last_checkpoint(tmp_path)) == 3
    assert first.begun == [("rl", 0, 4)]
    second = Watching()
    assert session_of(toy, tmp_path, second).run() is True
    assert second.begun == [("rl", 3, 4)]
    assert second.updates == [4]
    assert TrainFolder(tmp_path).finished


def test_trajectories_are_kept_if_asked_for(toy, tmp_path):
    """Otherwise there is no file of them."""
    assert session_of(toy, tmp_path, Watching(), "rollouts.record=false", "steps=1").run()
    assert not (tmp_path / "trajectories.jsonl").exists()


def test_a_model_that_cannot_be_opened_is_named(toy, tmp_path):
    """Weights that are not there, or damaged, are one sentence."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in toy.model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError, match=r"model in '.*broken' cannot be opened: "):
        session_of(toy, tmp_path / "run", Watching(), f"model={str(broken)!r}").run()


def test_a_model_whose_weights_are_not_whole_is_named(toy, tmp_path):
    """The library would fill what is missing with noise, and train that."""
    broken = tmp_path / "broken"
    shutil.copytree(toy.model, broken)
    config = json.loads((broken / "config.json").read_text())
    layers = config["num_hidden_layers"] + 1
    kinds = {"layer_types": ["full_attention"] * layers} if config.get("layer_types") else {}
    deeper = {**config, "num_hidden_layers": layers, **kinds}
    (broken / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ConfigError, match=r"are not those of its config.json: .*missing or of"):
        session_of(toy, tmp_path / "run", Watching(), f"model={str(broken)!r}").run()


def test_shards_on_cpus_are_refused(toy, tmp_path):
    """Accelerate would train whole copies, and say nothing."""
    if not uses_cpu():
        pytest.skip("there is an accelerator here")
    warm = (f"warm_start.data={str(toy.supervised)!r}", "steps=0", "devices.sharded=true")
    with pytest.raises(ConfigError, match="Accelerate does not shard on CPUs; leave it out"):
        session_of(toy, tmp_path, Watching(), *warm).run()


def test_a_folder_is_claimed_by_one_and_keeps_what_was_asked(toy, tmp_path):
    """The header is written once; a second claim is refused; other data is named."""
    settings = load_train_settings(toy.config, {})
    prepared = prepare(settings)
    header = header_of(settings, prepared.rl.problems)
    folder = TrainFolder(tmp_path / "run")
    with folder.claimed(header):
        assert read_header(folder.path) == header
        with pytest.raises(ConfigError, match="another process trains in"), folder.claimed(header):
            pass
    with folder.claimed({**header, "created": "later"}):
        assert read_header(folder.path) == header
    refuse_changes(folder.path, header)
    other = {**header, "data": {**header["data"], "sha256": "0"}}
    with pytest.raises(ConfigError, match="holds a run with another content of its data"):
        refuse_changes(folder.path, other)
    (folder.path / "train.json").write_text("{")
    with pytest.raises(ConfigError, match=r"train.json' is damaged"):
        refuse_changes(folder.path, header)
