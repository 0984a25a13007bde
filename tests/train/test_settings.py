"""A run's settings: read from TOML, overridden, and refused where they cannot work."""

import json
import tomllib
from pathlib import Path

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.train.estimate import read_shape
from pdr_graph.train.preparation import Launch, check_launch, check_settings, prepare, push_of
from pdr_graph.train.settings import (
    HOW_ONLY,
    TrainSettings,
    load_train_settings,
    reference_configs,
)
from pdr_graph.validation import differences

SMALL = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}


def write_model(folder: Path, **fields: object) -> Path:
    """Write what is read of a model before its weights are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL | fields))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder without weights."""
    return write_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path) -> Path:
    """A file of twelve problems."""
    file = tmp_path / "problems.jsonl"
    rows = [
        {"id": f"q{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings_of(model: Path, *overrides: str, **given: object) -> TrainSettings:
    """Read settings without a file."""
    return load_train_settings(None, {"model": model, **given}, overrides)


def test_what_is_given_comes_before_the_file(tmp_path, model):
    """An option beats the file, and `--set` beats both; values are read as TOML, else as text."""
    file = tmp_path / "run.toml"
    file.write_text('model = "other"\nsteps = 7\nseed = 1\n[optimiser]\nlearning_rate = 1e-4\n')
    settings = load_train_settings(
        file, {"model": model, "seed": 2}, ["optimiser.learning_rate=3e-4", "policy.push=none"]
    )
    assert (settings.model, settings.steps, settings.seed) == (model, 7, 2)
    assert (settings.optimiser.learning_rate, settings.policy.push) == (3e-4, "none")


def test_a_table_is_made_by_an_option(model):
    """`--set lora.rank=4` trains adapters, `--warm-start` begins with a warm start."""
    settings = settings_of(model, "lora.rank=4", **{"warm_start.data": Path("sft.jsonl")})
    assert settings.lora is not None
    assert settings.lora.rank == 4
    assert settings.warm_start is not None
    assert settings.warm_start.data == Path("sft.jsonl")


def test_the_strategy_admits_all_drafts(model):
    """Without a word on it, every draft goes into the workspace and no call is spent on that."""
    settings = settings_of(model, "rollouts.num_drafts=3")
    assert (settings.config.distiller, settings.config.k, settings.config.widths) == (
        "top_k",
        3,
        (3,),
    )


REFUSED = {
    "unknown setting": (["optimiser.learning_rat=1"], "unknown setting 'learning_rat' in "),
    "unknown table": (["optimizer.alpha=1"], "unknown setting 'optimizer'; perhaps 'optimiser'"),
    "no setting": (["optimiser"], "is no TABLE.FIELD=VALUE"),
    "a setting as a table": (["seed.x=1"], "seed {'x': 1}: input should be a valid"),
    "a wrong type": (["steps=many"], "steps 'many': input should be a valid integer"),
    "the push that was removed": (
        ["policy.push=nccl"],
        "policy.push 'nccl': this push was never run and was removed; set 'auto', and the table",
    ),
    "a negative number": (["steps=-1"], "steps -1: input should be greater than or equal to 0"),
    "an unknown policy": (["policy.kind=sglang"], "policy.kind 'sglang': input should be "),
    "an unknown strategy field": (
        ["strategy.kapa=3"],
        "unknown setting 'kapa'; perhaps 'kappa'; kno",
    ),
    "a field of training's": (["strategy.widths=[4]"], "strategy.widths is set by training itself"),
    "an early end": (["strategy.stop_on_consensus=0.5"], "strategy.stop_on_consensus is set by"),
    "a quorum": (["strategy.quorum=0.5"], "strategy.quorum is set by training itself"),
    "a budget of tokens": (["strategy.max_total_tokens=9"], "strategy.max_total_tokens is set by"),
    "tokens that nobody drew": (
        ["strategy.thinking_token_budget=8"],
        "strategy.thinking_token_budget is set by training itself",
    ),
    "a verifier": (["strategy.verifier=judge"], "strategy.verifier is set by training itself"),
    "a small kappa": (["strategy.kappa=2"], "kappa 2: a workspace must hold at least one line"),
    "rounds that do not fit": (
        ["rollouts.operator_plan=rounds", "rollouts.num_drafts=4", "rollouts.rows_per_problem=8"],
        "plan 'rounds' spends 5 rows on each run (4 drafts and a refinement), and 8 is not that "
        "times 2 or more; use 10",
    ),
    "too few rows for a workspace": (
        ["rollouts.num_drafts=4", "rollouts.rows_per_problem=5"],
        "leaves 1 of 5 rows to refinements after 4 drafts, which have nothing to compare; use 6",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_run_could_be_is_refused(model, case):
    """Each is one sentence that names the setting and the remedy."""
    overrides, sentence = REFUSED[case]
    with pytest.raises(ConfigError) as raised:
        settings_of(model, *overrides)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    """Absent, no TOML, no text: the sentence names the file."""
    with pytest.raises(ConfigError, match=r"nowhere.toml' cannot be read: No such file.*cpu_smoke"):
        load_train_settings(tmp_path / "nowhere.toml", {})
    (tmp_path / "bad.toml").write_text("steps = = 3\n")
    with pytest.raises(ConfigError, match=r"bad.toml' is no TOML: .*line 1"):
        load_train_settings(tmp_path / "bad.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"model = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_train_settings(tmp_path / "bytes.toml", {})
    with pytest.raises(ConfigError, match="no model is named; set model in the file, or --model"):
        load_train_settings(None, {})


IMPOSSIBLE = {
    "no steps and no warm start": (["steps=0"], "steps 0 leaves nothing to do without a warm sta"),
    "no problems": ([], "no problems are named; set data in the file, or --data SOURCE"),
    "cut sampling": (["data=x", "strategy.top_p=0.9"], "strategy.top_p 0.9: training draws from "),
    "greedy sampling": (["data=x", "strategy.temperature=0"], "strategy.temperature 0: training "),
    "outcome credit with one workspace": (
        ["data=x", "objective.draft_credit=outcome"],
        "'outcome' does not tell apart the drafts of one workspace; set 'own' or 'none', or "
        "rollouts.operator_plan 'rounds'",
    ),
    "a workspace each": (["data=x", "strategy.distiller=random_k"], "makes a workspace for each"),
    "a push that does not reach": (
        ["data=x", "policy.push=disk"],
        "policy.push 'disk' does not reach policy 'transformers'; set 'none', or 'auto'",
    ),
    "adapters that are not there": (
        ["data=x", "policy.kind=vllm-http", "policy.base_url=http://h/v1", "policy.push=lora"],
        "policy.push 'lora' sends adapters, and there are none; add the table [lora]",
    ),
    "adapters by disk": (
        ["data=x", "policy.kind=vllm-http", "lora.rank=4", "policy.push=disk"],
        "policy.push 'disk' sends whole weights, and [lora] trains adapters",
    ),
    "a server without an address": (
        ["data=x", "policy.kind=vllm-http"],
        "policy 'vllm-http' needs the server's address; set policy.base_url, or --base-url",
    ),
    "an address for nobody": (
        ["data=x", "policy.base_url=http://h/v1"],
        "policy.base_url 'http://h/v1' is for policy 'vllm-http'",
    ),
    "RL in shards": (
        ["data=x", "devices.sharded=true", "devices.processes=2"],
        "devices.sharded spreads the weights, and RL hands over those of one process; set steps 0",
    ),
    "several engines": (
        ["data=x", "policy.kind=vllm-colocate", "devices.processes=2"],
        "policy 'vllm-colocate' runs in one process, and devices.processes is 2; set policy.kind",
    ),
    "problems that do not divide": (
        ["data=x", "devices.processes=3"],
        "rollouts.problems_per_step 8 cannot be spread over 3 processes; use 9",
    ),
    "updates that do not divide": (
        ["data=x", "optimiser.updates_per_step=7"],
        "optimiser.updates_per_step 7 does not divide the 64 rows that a process has in a step",
    ),
    "micro-batches that do not divide": (
        ["data=x", "optimiser.micro_batch_rows=24"],
        "optimiser.micro_batch_rows 24 does not divide the 64 rows that a process has in an "
        "update; use 16",
    ),
    "a warm start on nothing": (
        ["warm_start.data=nowhere.jsonl"],
        "warm-start data 'nowhere.jsonl' is no file; `pdr-graph train-data RUN --out nowhere.json",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_work_is_refused_before_anything_is_loaded(model, case):
    """Each is one sentence that names the setting, its value and what would do."""
    overrides, sentence = IMPOSSIBLE[case]
    settings = settings_of(model, *overrides)
    with pytest.raises(ConfigError) as raised:
        check_settings(settings, read_shape(model))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tied_model_is_not_reloaded_from_the_disk(tmp_path):
    """Its head would keep the old weights while every call answers."""
    tied = write_model(tmp_path / "tied", tie_word_embeddings=True)
    overrides = ["policy.kind=vllm-http", "policy.base_url=http://h/v1", "policy.push=disk"]
    settings = settings_of(tied, *overrides, data="x")
    with pytest.raises(ConfigError, match=r"tied to the embedding.*train adapters by \[lora\]"):
        check_settings(settings, read_shape(tied))
    untied = write_model(tmp_path / "untied")
    check_settings(settings_of(untied, *overrides, data="x"), read_shape(untied))


@pytest.mark.parametrize(
    ("overrides", "push"),
    [
        ([], "none"),
        (["policy.kind=vllm-colocate"], "colocate"),
        (["policy.kind=vllm-http", "lora.rank=4"], "lora"),
        (["policy.kind=vllm-http"], "disk"),
        (["policy.kind=vllm-http", "policy.push=disk"], "disk"),
    ],
)
def test_the_push_that_fits_is_found(model, overrides, push):
    """`auto` is the way that reaches the policy with what is trained."""
    assert push_of(settings_of(model, *overrides)) == push


def test_models_that_are_none_are_refused(tmp_path, data):
    """No folder, no config, an adapter, no tokenizer, no template: each has its own remedy."""
    (tmp_path / "empty").mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    bare = write_model(tmp_path / "bare")
    (bare / "tokenizer_config.json").unlink()
    untold = write_model(tmp_path / "untold")
    (untold / "tokenizer_config.json").write_text("{}")
    odd = write_model(tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    for folder, sentence in {
        tmp_path / "nowhere": "does not exist; download the model there",
        tmp_path / "empty": "holds no config.json; name a folder that transformers saved",
        adapter: "holds an adapter and no whole model; merge it into its base",
        bare: "has no tokenizer; copy tokenizer.json into it",
        untold: "has no chat template; train an instruct model",
        odd: "has no 'num_attention_heads', which a decoder of the Llama family has",
    }.items():
        with pytest.raises(ConfigError) as raised:
            prepare(settings_of(folder, data=str(data)))
        assert sentence in str(raised.value)


def test_problems_that_do_not_suffice_are_refused(model, data):
    """Fewer than a step has; a source that is none is refused as by `pdr-graph eval`."""
    with pytest.raises(
        ConfigError, match=r"holds 12 problems, and rollouts.problems_per_step is 16"
    ):
        prepare(settings_of(model, "rollouts.problems_per_step=16", data=str(data)))
    with pytest.raises(ConfigError, match=r"holds 4 problems"):
        prepare(settings_of(model, "limit=4", data=str(data)))
    with pytest.raises(ConfigError, match="data file 'nowhere' cannot be read"):
        prepare(settings_of(model, data="nowhere"))


def test_calls_that_cannot_fit_the_window_are_refused(model, data):
    """Where a tokenizer counts them; an estimate is no ground to refuse a run."""
    tokenizers = pytest.importorskip("tokenizers")
    long = settings_of(model, "strategy.max_tokens=4000", data=str(data))
    assert prepare(long).rl is not None
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole.save(str(model / "tokenizer.json"))
    with pytest.raises(ConfigError) as raised:
        prepare(long)
    assert "the model's window is 4096; lower strategy.max_tokens or strategy.kappa" in str(
        raised.value
    )
    assert prepare(settings_of(model, "strategy.max_tokens=1000", data=str(data))).rl is not None


def test_the_launcher_and_the_settings_agree(model):
    """The number of processes and the sharding are those of the settings, or the run is refused."""
    two = settings_of(model, "devices.processes=2")
    with pytest.raises(ConfigError, match="is 2 and 1 was started; use `accelerate launch --num_p"):
        check_launch(Launch(world_size=1), two)
    # It starts one where there is no second GPU, without a word.
    with pytest.raises(ConfigError, match="without a second GPU; use `torchrun --nproc_per_node 2"):
        check_launch(Launch(world_size=1, accelerate_mixed_precision="no"), two)
    check_launch(Launch(world_size=2), two)
    sharded = settings_of(model, "devices.processes=2", "devices.sharded=true")
    with pytest.raises(ConfigError, match=r"devices.sharded needs FSDP: `accelerate"):
        check_launch(Launch(world_size=2), sharded)
    with pytest.raises(ConfigError, match="the launcher shards the model"):
        check_launch(Launch(world_size=2, accelerate_use_fsdp=True), two)
    check_launch(Launch(world_size=2, accelerate_use_fsdp=True), sharded)
    with pytest.raises(ConfigError, match=r"launcher uses DeepSpeed, which .*--multi_gpu"):
        check_launch(Launch(world_size=2, accelerate_use_deepspeed=True), sharded)


def test_a_difference_is_named_with_both_values(model):
    """What only changes how a run is carried out is none."""
    was = settings_of(model, "optimiser.learning_rate=1e-5").model_dump(mode="json")
    same = settings_of(model, "optimiser.learning_rate=1e-5", "policy.max_in_flight=3")
    now = settings_of(model, "optimiser.learning_rate=2e-5", "lora.rank=4")
    assert differences(was, same.model_dump(mode="json"), free=HOW_ONLY) == []
    found = list(map(str, differences(was, now.model_dump(mode="json"), free=HOW_ONLY)))
    assert "optimiser.learning_rate (1e-05, now 2e-05)" in found
    assert "lora.rank (None, now 4)" in found


SHAPES = {
    "paper": {"hidden_size": 4096, "num_hidden_layers": 36, "max_position_embeddings": 40_960},
    "one_gpu": {"hidden_size": 1536, "tie_word_embeddings": True, "vocab_size": 151_936},
    "cpu_smoke": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_configs_that_come_with_the_package_are_possible(tmp_path, data, name):
    """Each is read by its name, and all of it is checked but for the number of problems."""
    model = write_model(tmp_path / name, **SHAPES[name])
    processes = load_train_settings(Path(name), {}).devices.processes
    settings = load_train_settings(
        Path(name), {"model": model, "data": str(data)}, [f"rollouts.problems_per_step={processes}"]
    )
    prepared = prepare(settings)
    assert prepared.rl is not None
    assert prepared.rl.estimate.memory.peak > 0


def test_the_papers_config_is_the_papers():
    """M = 4, 16k tokens, 32 problems of 32 rollouts, 4 updates, alpha 0.1, half and half."""
    paper = load_train_settings(Path("paper"), {})
    rollouts, optimiser = paper.rollouts, paper.optimiser
    assert (rollouts.problems_per_step, rollouts.rows_per_problem, rollouts.num_drafts) == (
        32,
        32,
        4,
    )
    assert (rollouts.operator_fraction, optimiser.updates_per_step) == (0.5, 4)
    assert (paper.objective.alpha, paper.objective.epsilon_max) == (0.1, 5.0)
    assert (paper.config.max_tokens, paper.config.kappa) == (16_384, 4 * 2048)


def test_every_file_among_the_configs_is_tested():
    """The names that `--config` knows are those above, and each is TOML of tables that exist."""
    assert set(reference_configs()) == set(SHAPES)
    for file in reference_configs().values():
        tomllib.loads(file.read_text("utf-8"))
