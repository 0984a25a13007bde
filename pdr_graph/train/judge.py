"""Trains a judge: a LoRA adapter that answers whether a solution is correct, by Yes or No.

It is a verifier of a model's own solutions, as that of Cobbe and others (arXiv 2110.14168). It
answers by a token of the vocabulary (2408.15240), so that a server of the model serves the adapter
too. Only that token is learnt. `train/judge_data.py` says from which drafts.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.judge_fit import Ballot, JudgeFit, judge_report
from pdr_graph.files import written_whole
from pdr_graph.judge import probability
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.policy.folder import cpu_dtype, refuse_missing
from pdr_graph.policy.transformers_policy import last_position
from pdr_graph.prompts import Prompts
from pdr_graph.self_check import NO, SELF_CHECK, YES, word_of
from pdr_graph.train.judge_data import (
    CheckedDraft,
    ProblemSplit,
    auc_within,
    balanced,
    calibrated,
    splits_of,
)
from pdr_graph.train.models import (
    WholeCheckpoints,
    last_checkpoint,
    open_tokenizer,
    quiet_libraries,
    staging,
    sweep,
    uses_cpu,
    writable,
)

try:
    import torch
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError
    from torch.nn import functional
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_callback import PrinterCallback
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

ADAPTER = "adapter"
"""Folder of the trained adapter, in the folder of the judge."""
_WORK = ".training"
"""Folder of checkpoints and margins while a judge is trained."""
LEAST_PROBLEMS = 8
"""Fewest problems with right and wrong drafts in the part that learns."""
_SCORED_ROWS = 8
"""Drafts that are scored at once."""


@dataclass(frozen=True, slots=True)
class JudgeTraining:
    """How an adapter is trained."""

    weights: Path
    """Folder of the model whose drafts are judged."""
    folds: int = 1
    """Parts of the problems, each judged by an adapter that has not seen it; a last adapter learns
    from all. 1 holds a quarter out, and trains once."""
    epochs: int = 4
    """Most epochs; training ends after two that are no better on the problems for stopping."""
    rank: int = 16
    """Rank of the adapter; vLLM serves up to 16 by default."""
    first_layer: int = 0
    """The layers before it get no adapter, which makes training cheaper."""
    learning_rate: float = 2e-4
    batch_rows: int = 16
    micro_batch_rows: int = 4
    """Rows that are computed at once."""
    max_tokens: int = 4096
    """Rows with longer prompts are left out of learning."""
    per_kind: int = 4
    """Most right drafts, and most wrong ones, that are learnt of one problem."""
    threads: int | None = None
    """Threads of torch on a CPU; None leaves their number as it is."""
    dtype: str | None = None
    """Number format of the model's frozen weights, named as in torch; the adapter's is float32.
    None is bfloat16 where the machine multiplies it, else float32."""
    seed: int = 0


class OnProgress(Protocol):
    """Receives a line on what is done."""

    def __call__(self, line: str, *, milestone: bool) -> None:
        """Take a line; a milestone is one that a reader wants to find again."""


def _silence(line: str, *, milestone: bool) -> None:
    """Tell nobody."""


# ---------------------------------------------------------------------------------- the model


@dataclass(slots=True)
class JudgeQuestion:
    """Asks a tokenizer's model whether a solution is correct, as `self_check` asks a server."""

    tokenizer: Any  # Any: transformers has no types
    prompts: Prompts
    yes: list[int] = field(init=False)
    """Tokens that mean it, the one that is learnt first."""
    no: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Find the tokens of both answers.

        Raises:
            ConfigError: the tokenizer has no chat template, or divides an answer.
        """
        if not self.tokenizer.chat_template:
            raise ConfigError("the model's tokenizer has no chat template; a judge is asked in one")
        self.yes, self.no = self._tokens("Yes", YES), self._tokens("No", NO)

    def _tokens(self, learnt: str, words: frozenset[str]) -> list[int]:
        ids = self.tokenizer.encode(learnt, add_special_tokens=False)
        if len(ids) != 1:
            raise ConfigError(
                f"the model's tokenizer writes {learnt!r} in {len(ids)} tokens, and a judge "
                "answers by one; an adapter cannot judge for this model"
            )
        found = {
            place for token, place in self.tokenizer.get_vocab().items() if word_of(token) in words
        }
        return [*ids, *sorted(found - set(ids))]

    def ids(self, draft: CheckedDraft) -> list[int]:
        """Return the tokens of the question, up to where the answer begins."""
        text = self.prompts.render(SELF_CHECK, problem=draft.problem, candidates=draft.solution)
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer.encode(rendered, add_special_tokens=False)
        return ids

    def margins(self, logits: Any) -> Any:  # Any: tensors
        """Return the log-odds of yes against no, by logits [rows, vocabulary]."""
        yes, no = logits[:, self.yes], logits[:, self.no]
        return yes.logsumexp(dim=-1) - no.logsumexp(dim=-1)


def last_logits(model: Any, rows: Sequence[Sequence[int]], pad: int) -> Any:  # Any: tensors
    """Return the logits behind each row, [rows, vocabulary]; rows are padded on the left."""
    longest = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    seen = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device
    )
    places = (seen.cumsum(dim=1) - 1).clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=seen,
        position_ids=places,
        logits_to_keep=last_position(ids),
        use_cache=False,
    )
    return out.logits[:, -1].float()


def score(
    model: Any,  # Any: transformers has no types
    question: JudgeQuestion,
    drafts: Sequence[CheckedDraft],
    tell: OnProgress | None = None,
) -> list[float]:
    """Return the log-odds, yes against no, that a model gives each draft."""
    rows = [question.ids(draft) for draft in drafts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _SCORED_ROWS):
            part = order[start : start + _SCORED_ROWS]
            logits = last_logits(model, [rows[i] for i in part], question.tokenizer.pad_token_id)
            for index, margin in zip(part, question.margins(logits).tolist(), strict=True):
                found[index] = margin
            if tell is not None:
                done = f"scored {start + len(part):,} of {len(order):,} drafts"
                tell(done, milestone=False)
    model.train(was_training)
    return found


class JudgeTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trains on one token of each row."""

    def __init__(
        self, question: JudgeQuestion, model: Any, rows: Sequence[Any], **more: Any
    ) -> None:
        """Make a trainer; rows have `ids` and `correct`."""
        super().__init__(model, train_dataset=list(rows), data_collator=_collated, **more)
        self._question = question
        self.tokens = 0
        """Tokens learnt from in this process, without padding."""
        self.model_accepts_loss_kwargs = False  # the mean over a micro-batch, as all it learns
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        """Return the mean negative log-likelihood of the right answers' tokens, in nats."""
        question = self._question
        self.tokens += sum(map(len, inputs["ids"]))
        logits = last_logits(model, inputs["ids"], question.tokenizer.pad_token_id)
        answers = [(question.yes if each else question.no)[0] for each in inputs["correct"]]
        return functional.cross_entropy(logits, torch.tensor(answers, device=logits.device))


def _collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in ("ids", "correct")}


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Reports on training, keeps the best adapter, and ends training when it no longer improves."""

    patience = 2

    def __init__(
        self,
        place: Path,
        measure: Callable[[Any], float],
        tell: OnProgress,
        tokens: Callable[[], int],
    ) -> None:
        self._place, self._measure, self._tell, self._tokens = place, measure, tell, tokens
        self._seconds, self._since = 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Start the clock of an update."""
        self._since = perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Tell the loss of an update."""
        if "loss" in (logs := more.get("logs") or {}):
            self._seconds += perf_counter() - self._since
            self._tell(
                f"epoch {state.epoch:.2f} of {args.num_train_epochs:g}, update "
                f"{state.global_step:,} of {state.max_steps:,}, loss {float(logs['loss']):.3f}, "
                f"{self._tokens() / max(self._seconds, 1e-9):,.0f} tokens a second",
                milestone=False,
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure the adapter, and keep it if it is the best so far."""
        reached = self._measure(more["model"])
        state.log_history.append({"step": state.global_step, "auc": reached})
        history = [each["auc"] for each in state.log_history if "auc" in each]
        best = history.index(max(history))
        if best == len(history) - 1:
            _save_adapter(more["model"], self._place)
        self._tell(
            f"epoch {len(history)}: a right draft scores above a wrong one of its problem in "
            f"{reached:.3f} of pairs (best {max(history):.3f})",
            milestone=True,
        )
        control.should_training_stop |= len(history) - 1 - best >= self.patience


def _save_adapter(model: Any, place: Path) -> None:
    part, old = place.with_name(f".{place.name}.part"), place.with_name(f".{place.name}.old")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    model.save_pretrained(part)
    if place.exists():
        place.rename(old)
    part.rename(place)
    shutil.rmtree(old, ignore_errors=True)


# ----------------------------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class TrainedJudge:
    """What training an adapter has given."""

    scale: float
    shift: float
    """A draft's weight is sigmoid(scale x log-odds + shift)."""
    weights: Mapping[int, float]
    """Weights of drafts by position, each by an adapter that has not seen the problem."""
    margins: Mapping[int, float]
    """Log-odds of the same drafts, by that adapter."""
    untrained: Mapping[int, float]
    """Log-odds of the same drafts, by the model without an adapter."""
    num_learnt: int
    """Rows that the adapter has learnt from."""
    aucs: tuple[float, ...]
    """AUC within problems after each epoch of the kept adapter, on the problems for stopping."""


def train_judge(
    drafts: Sequence[CheckedDraft],
    settings: JudgeTraining,
    out: Path,
    *,
    prompts: Prompts,
    tell: OnProgress = _silence,
) -> TrainedJudge:
    """Train an adapter, and weigh the drafts of problems that it has not seen.

    A training that was stopped goes on from its last epoch.

    Args:
        drafts: To learn from and to judge.
        settings: How.
        out: Gets the folder `adapter`.
        prompts: Hold the question.
        tell: Receives lines on what is done.

    Raises:
        ConfigError: the model cannot be opened or cannot judge, too few problems have right and
            wrong drafts, or the folder holds another training.
    """
    quiet_libraries()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    work = out / _WORK
    _claim(work, drafts, settings, prompts)
    question = JudgeQuestion(open_tokenizer(settings.weights), prompts)
    splits = splits_of([each.problem_id for each in drafts], settings.folds, settings.seed)
    parts = [
        _Part(drafts, split, settings, question, work / f"part-{number}", tell).trained()
        for number, split in enumerate(splits, start=1)
    ]
    last = parts[-1]
    shutil.rmtree(out / ADAPTER, ignore_errors=True)
    (work / f"part-{len(parts)}" / ADAPTER).rename(out / ADAPTER)
    shutil.rmtree(work)
    weights, margins, untrained = {}, {}, {}
    for part in parts:
        for key, margin in part["judged"].items():
            margins[int(key)] = margin
            weights[int(key)] = probability(part["scale"] * margin + part["shift"])
            untrained[int(key)] = part["untrained"][key]
    return TrainedJudge(
        last["scale"],
        last["shift"],
        weights,
        margins,
        untrained,
        last["rows"],
        tuple(last["aucs"]),
    )


def _claim(
    work: Path, drafts: Sequence[CheckedDraft], settings: JudgeTraining, prompts: Prompts
) -> None:
    """Begin a training, or find the one that was begun."""
    texts = json.dumps([asdict(each) for each in drafts]).encode()
    asked = {
        **{name: str(value) for name, value in asdict(settings).items() if name != "threads"},
        "drafts": hashlib.sha256(texts).hexdigest(),
        "question": prompts.hashes()[SELF_CHECK],
    }
    file = work / "asked.json"
    if file.is_file():
        begun = json.loads(file.read_text("utf-8"))
        changed = [name for name, value in asked.items() if begun.get(name) != value]
        if changed:
            raise ConfigError(
                f"{str(work.parent)!r} holds an unfinished training with another "
                f"{', '.join(changed)}; repeat its command, or name another --out"
            )
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        _write(file, asked)
    except OSError as error:
        raise ConfigError(
            f"{str(work.parent)!r} cannot be written: {error.strerror}; name another --out"
        ) from None


def _write(file: Path, numbers: Mapping[str, object]) -> None:
    with written_whole(file) as out:
        out.write(json.dumps(numbers).encode())


@dataclass(frozen=True, slots=True)
class _Part:
    """One adapter: what it learns from, and what it judges."""

    drafts: Sequence[CheckedDraft]
    split: ProblemSplit
    settings: JudgeTraining
    question: JudgeQuestion
    folder: Path
    tell: OnProgress

    def trained(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return its numbers, from an earlier process if that has finished this part."""
        file = self.folder / "scores.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return found
        learning = self._of(self.split.learning)
        rows = balanced(
            [self.drafts[i] for i in learning], self.settings.per_kind, self.settings.seed
        )
        asked = [(self.question.ids(row), row.correct) for row in rows]
        most = self.settings.max_tokens
        encoded = [{"ids": ids, "correct": right} for ids, right in asked if len(ids) <= most]
        problems = {each.problem_id for each in rows}
        if len(problems) < LEAST_PROBLEMS or not encoded:
            raise ConfigError(
                f"{len(problems)} of {len(self.split.learning)} problems to learn from have right "
                f"and wrong drafts of at most {self.settings.max_tokens} tokens; "
                f"{LEAST_PROBLEMS} are needed: name more drafts"
            )
        stopping, judged = self._of(self.split.stopping), self._of(self.split.judged)
        self.tell("opening the model", milestone=False)
        model = _opened(self.settings)
        untrained = self._untrained(model, judged)
        aucs = self._train(model, encoded, [self.drafts[i] for i in stopping])
        best = load_peft_weights(str(self.folder / ADAPTER), device="cpu")
        set_peft_model_state_dict(model, best)
        told = self._scored(model, stopping)
        scale, shift = calibrated(list(told.values()), [self.drafts[int(i)].correct for i in told])
        scores = {
            "scale": scale,
            "shift": shift,
            "rows": len(encoded),
            "aucs": aucs,
            "untrained": untrained,
            "judged": self._scored(model, judged),
        }
        _write(file, scores)
        return scores

    def _untrained(self, model: Any, places: Sequence[int]) -> dict[str, float]:
        """Return the log-odds of the model without an adapter; an earlier process may keep them."""
        file = self.folder / "untrained.json"
        if file.is_file():
            found: dict[str, float] = json.loads(file.read_text("utf-8"))
            return found
        with model.disable_adapter():
            said = self._scored(model, places)
        self.folder.mkdir(exist_ok=True)
        _write(file, said)
        return said

    def _of(self, problems: frozenset[str]) -> list[int]:
        return [i for i, each in enumerate(self.drafts) if each.problem_id in problems]

    def _scored(self, model: Any, places: Sequence[int]) -> dict[str, float]:
        drafts = [self.drafts[i] for i in places]
        margins = score(model, self.question, drafts, self.tell)
        return {str(i): margin for i, margin in zip(places, margins, strict=True)}

    def _train(self, model: Any, rows: list[Any], stopping: list[CheckedDraft]) -> list[float]:
        settings, folder = self.settings, self.folder
        sweep(folder)
        trainer = JudgeTrainer(
            self.question,
            model,
            rows,
            args=TrainingArguments(
                output_dir=str(staging(folder)),
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=min(settings.micro_batch_rows, settings.batch_rows),
                gradient_accumulation_steps=max(
                    1, settings.batch_rows // settings.micro_batch_rows
                ),
                learning_rate=settings.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                save_strategy="epoch",
                seed=settings.seed,
                use_cpu=uses_cpu(),
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                label_names=[],
            ),
        )
        trainer.add_callback(
            _Watch(
                folder / ADAPTER,
                lambda model: auc_within(
                    stopping, score(model, self.question, stopping, self.tell)
                ),
                self.tell,
                lambda: trainer.tokens,
            )
        )
        trainer.add_callback(WholeCheckpoints(folder, 1, trainer.accelerator))
        last = last_checkpoint(folder)
        with writable(folder):
            trainer.train(resume_from_checkpoint=last and str(last))
        return [each["auc"] for each in trainer.state.log_history if "auc" in each]


def _opened(settings: JudgeTraining) -> Any:  # Any: transformers has no types
    """Return the model with a fresh adapter."""
    set_seed(settings.seed)
    folder = settings.weights
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder.resolve(),
            dtype=settings.dtype or ("bfloat16" if not uses_cpu() else cpu_dtype()),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model in {str(folder)!r} cannot be opened: {first}") from None
    refuse_missing(found, folder)
    layers = model.config.num_hidden_layers
    if settings.first_layer >= layers:
        raise ConfigError(
            f"first_layer {settings.first_layer} leaves no layer of {layers} to train; lower it"
        )
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=sorted(linear),
        layers_to_transform=list(range(settings.first_layer, layers)),
    )
    with warnings.catch_warnings():
        # peft may be a version behind transformers.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, adapter)


# ------------------------------------------------------------------------------------- the fit

ITSELF = "the model itself, asked"
"""Name of the model without an adapter, in a report."""


def fit_adapter(
    ballots: Sequence[Ballot],
    settings: JudgeTraining,
    out: Path,
    *,
    judge: AdapterJudge,
    prompts: Prompts,
    tell: OnProgress = _silence,
) -> JudgeFit:
    """Train an adapter on drafts whose texts are known, and measure its judgement.

    Args:
        ballots: Drafts with their texts.
        settings: How.
        out: Gets the adapter and `judge.json`.
        judge: What is known of the judge before: the model, its name, the data.
        prompts: Hold the question.
        tell: Receives lines on what is done.

    Raises:
        ConfigError: as `train_judge`, or the judge cannot be written.
    """
    drafts = [
        CheckedDraft(ballot.problem_id, ballot.prompt, solution, correct)
        for ballot in ballots
        for solution, correct in zip(ballot.solutions, ballot.correct, strict=True)
    ]
    made = train_judge(drafts, settings, out, prompts=prompts, tell=tell)
    judged: list[Ballot] = []
    rows: list[int] = []
    start = 0
    for ballot in ballots:
        places = range(start, start + len(ballot.solutions))
        start += len(places)
        if places[0] in made.weights:
            judged.append(ballot)
            rows += places
    notes = [
        f"the adapter has learned from {made.num_learnt:,} drafts, as many right as wrong ones of "
        "each problem; on the problems for stopping, a right draft scored above a wrong one in "
        f"{', '.join(f'{100 * each:.0f}' for each in made.aucs)} of 100 pairs after each epoch"
    ]
    if made.scale == 0:
        notes.append("its answers tell nothing, so that all drafts weigh alike: leave it out")
    weights = {
        "adapter": [made.weights[each] for each in rows],
        ITSELF: [probability(made.untrained[each]) for each in rows],
    }
    report = judge_report(judged, weights, main="adapter", seed=settings.seed, notes=notes)
    done = judge.model_copy(
        update={
            "question": prompts.templates[SELF_CHECK],
            "scale": made.scale,
            "shift": made.shift,
            "prompts": prompts.hashes(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "report": report.to_json(),
        }
    )
    done.save(out / "judge.json")
    return JudgeFit(done, report)
