"""Fits judges of drafts on evaluations, and says whether their weights beat the vote.

Every figure is of drafts that the judge has not been fitted on: the problems are divided into
folds, and the drafts of each fold are weighed by a judge that was fitted on the others, its penalty
chosen within them. Problems are the unit of all intervals.

A judge of signals needs records alone. One of hidden states has the drafts read anew: their texts
come from the traces of the evaluations, and what was read is kept beside them, so that a fit which
was stopped goes on where it was.
"""

import asyncio
import hashlib
import json
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from pdr_graph.answers import answer_kind, clusters
from pdr_graph.ballot import ranked, tally_of, vote_of
from pdr_graph.config import RECOMMENDED
from pdr_graph.errors import CallError, ConfigError, counted
from pdr_graph.eval.records import TRACE, DraftRecord, EvalRun, SampleRecord
from pdr_graph.eval.stats import (
    Estimate,
    Floats,
    IntervalOptions,
    PairedDifference,
    mean_by_problem,
    paired_difference,
    share_by_problem,
)
from pdr_graph.files import written_whole
from pdr_graph.judge import (
    FEATURES,
    DraftJudge,
    Evidence,
    SignalsJudge,
    StateReader,
    Turns,
    UnweighedError,
    features_of,
)
from pdr_graph.judge.hidden import (
    QUESTION,
    HiddenJudge,
    LinearProbe,
    NetworkProbe,
    judged_turns,
    unit_length,
)
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.usage import Spent
from pdr_graph.self_check import SELF_CHECK, self_check
from pdr_graph.types import Draft, Vote

Kind = Literal["signals", "hidden", "best"]

LEAST_PROBLEMS = 20
"""With drafts of both kinds, right and wrong; below that no figure means anything."""
NUM_FOLDS = 10
NUM_INNER_FOLDS = 3
"""In which the penalty is chosen."""
PENALTIES = (0.001, 0.003, 0.01, 0.1)
"""Inverse strengths of the penalty on the weights of a hidden state, as scikit-learn's C."""
NUM_BINS = 10
"""Of the reliability plot, each with as many drafts."""
LEAST_GROWTH = 0.01
"""Growth of the discrimination within problems, at twice the problems, from which on more of them
may help."""
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the problems to learn from, for the learning curve."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The drafts of one sample of one problem."""

    problem_id: str
    drafts: tuple[Draft, ...]
    """Usable ones with an answer and with signals."""
    correct: tuple[bool, ...]
    groups: tuple[tuple[int, ...], ...]
    """Positions of the drafts of each answer."""
    voters: int
    """Usable drafts in all."""
    prompt: str = ""
    """What a first draft of the problem was asked; empty without a trace."""
    solutions: tuple[str, ...] = ()
    """Texts of the drafts; empty where the trace lacks one of them."""

    def winner_is_right(self, weights: Sequence[float] | None = None, *, ties: bool = True) -> bool:
        """Tell whether the answer that is ahead is right.

        Args:
            weights: Of the drafts; None gives each the same.
            ties: Whether a tie goes to the likeliest draft instead of the first.
        """
        votes = [self._vote(index, weights, ties=ties) for index in range(len(self.drafts))]
        order = ranked(tally_of(votes, self.groups, voters=self.voters))
        return bool(order) and self.correct[order[0][0]["source"][1]]

    def _vote(self, index: int, weights: Sequence[float] | None, *, ties: bool) -> Vote:
        draft = Draft({**self.drafts[index], "round": 1, "index": index})
        draft.pop("weight", None)
        if weights is not None:
            draft["weight"] = float(weights[index])
        if not ties:
            draft.pop("signals", None)
        return vote_of(draft, str(draft["answer"]))


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How often a right draft scores above a wrong one; 0.5 is chance."""

    pooled: float
    """Among all drafts."""
    within: Estimate
    """Among the drafts of one problem, as a mean over problems."""
    overturn: float | None
    """Among the drafts of one problem, against wrong ones whose answer has as many drafts as the
    right answer or more: what a rule needs that is to beat the vote. None without such drafts."""


@dataclass(frozen=True, slots=True)
class LearningPoint:
    """What a judge is worth that has learned from fewer problems."""

    num_problems: int
    """To learn from, in each fold."""
    within: float
    gain: float
    """Accuracy of its vote less that of the plain one."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Drafts that were weighed about alike."""

    weight: float
    """Their mean weight."""
    right: float
    """Share of right ones."""
    num_drafts: int


@dataclass(frozen=True, slots=True)
class JudgeWorth:
    """What the vote by one judge's weights is worth."""

    judged: Estimate
    """Its accuracy."""
    gain: PairedDifference
    """That less the accuracy of the vote whose ties go to the likeliest draft, by problem."""


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What a judge is worth on drafts that it has not learned from."""

    num_problems: int
    num_ballots: int
    num_drafts: int
    discrimination: Mapping[str, Discrimination]
    """Of each judge, and of each signal alone."""
    vote: Estimate
    """Accuracy of the plain vote; ties go to the first answer."""
    tie_break: Estimate
    """Accuracy of the vote whose ties go to the likeliest draft."""
    best: Estimate
    """Share of ballots with any right draft: what the best choice would reach."""
    judges: Mapping[str, JudgeWorth]
    """By the names that they have in `discrimination`."""
    main: str
    """The judge that the sentence, the plots and the file are of."""
    reliability: tuple[Bin, ...]
    learning: tuple[LearningPoint, ...] = ()
    """By the number of problems; empty where nothing was fitted."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out or chosen, and why."""

    @property
    def judged(self) -> Estimate:
        """Accuracy of the vote by the main judge's weights."""
        return self.judges[self.main].judged

    @property
    def gain(self) -> PairedDifference:
        """`judged` less `tie_break`, by problem: what the judge is worth beyond the ties."""
        return self.judges[self.main].gain

    @property
    def verdict(self) -> str:
        """Say whether the judge beats the vote, and by which setting to use what is better."""
        low, high = self.gain.low or 0.0, self.gain.high or 0.0
        points = f"{100 * self.gain.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        if low > 0:
            return f"Better than the vote: {points}. Use it: --judge FILE, with {RECOMMENDED}."
        if high < 0:
            return f"Worse than the vote: {points}. Do not use it."
        problems = counted(self.num_problems, "problem")
        return (
            f"Not better than the vote, as far as {problems} can show: {points}. "
            f"Leave --judge out: {RECOMMENDED} alone is the vote."
        )

    @property
    def outlook(self) -> str:
        """Say whether more problems would make a better judge; empty without a learning curve."""
        if len(self.learning) < 2:
            return ""
        before, now = self.learning[-2:]
        grew = (
            f"with {now.num_problems:,} instead of {before.num_problems:,} a right draft scored "
            f"above a wrong one in {100 * now.within:.0f} instead of {100 * before.within:.0f} of "
            "100 pairs"
        )
        if now.within - before.within >= LEAST_GROWTH:
            return f"More problems may help: {grew}."
        return f"More problems would hardly help: {grew}."

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the report as plain data."""
        own = {
            **{"judged": asdict(self.judged), "gain": asdict(self.gain)},
            **{"verdict": self.verdict, "outlook": self.outlook},
        }
        return {**asdict(self), **own}


@dataclass(frozen=True, slots=True)
class JudgeFit:
    """A judge, fitted on everything, and what its like were worth on held-out problems."""

    judge: DraftJudge
    report: JudgeReport


# ------------------------------------------------------------------------------------ records


async def ballots_of(
    runs: Sequence[EvalRun], *, signals: bool = True, texts: bool = False
) -> list[Ballot]:
    """Return the drafts of each sample whose drafts all have what is needed; shared ones once.

    Args:
        runs: Read from their folders.
        signals: Whether log-probabilities are needed.
        texts: Whether the texts are, from the traces.

    Raises:
        ConfigError: there is none.
    """
    seen: set[object] = set()
    ballots = []
    for run in runs:
        kinds = {arm: answer_kind(run.config(arm).answer) for arm in run.header["arms"]}
        kept_texts = _texts_of(run) if texts else _Texts()
        for sample in run.samples:
            usable = [each for each in sample["drafts"] if each["error"] is None]
            kept = [(_draft(each), each["correct"]) for each in usable if each["answer"]]
            if not kept or (signals and any(features_of(draft) is None for draft, _ in kept)):
                continue
            solutions = kept_texts.of(sample, [draft for draft, _ in kept])
            prompt = kept_texts.prompts.get(sample["thread_id"], "") if texts else ""
            if texts and not (solutions and prompt):
                continue
            same = sample["problem_id"], repr([draft for draft, _ in kept]), solutions
            if same in seen:
                continue
            seen.add(same)
            answers = [draft["answer"] for draft, _ in kept]
            groups = await clusters(kinds[sample["arm"]], answers)
            ballots.append(
                Ballot(
                    problem_id=_problem_of(run, sample),
                    drafts=tuple(draft for draft, _ in kept),
                    correct=tuple(correct for _, correct in kept),
                    groups=tuple(map(tuple, groups)),
                    voters=len(usable),
                    prompt=prompt,
                    solutions=solutions,
                )
            )
    if not ballots and texts:
        raise ConfigError(
            "the texts of the drafts of these runs are not kept; evaluate without --no-trace"
        )
    if not ballots:
        raise ConfigError(
            "no draft of these runs has log-probabilities; evaluate an arm that asks for them, "
            "such as vote_first or majority@finish=weighted_vote, at a server that tells them"
        )
    return ballots


@dataclass(frozen=True, slots=True)
class _Texts:
    """What the traces of a run hold of its drafts."""

    prompts: dict[str, str] = field(default_factory=dict)
    """Of first drafts, by thread."""
    solutions: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """By thread, round and index."""

    def of(self, sample: SampleRecord, drafts: Sequence[Draft]) -> tuple[str, ...]:
        """Return the texts of a sample's drafts; none where one is missing."""
        keys = [(sample.get("thread_id", ""), each["round"], each["index"]) for each in drafts]
        found = [self.solutions.get(key, "") for key in keys]
        return tuple(found) if all(found) else ()


def _texts_of(run: EvalRun) -> _Texts:
    found = _Texts()
    for file in sorted((run.folder / TRACE).glob("*.jsonl")):
        with file.open("rb") as lines:
            for line in lines:
                try:
                    call = json.loads(line)
                    if call["node"] != "drafter" or call["error"]:
                        continue
                    place = str(call["thread_id"]), int(call["round"]), int(call["index"])
                    if call["template"] == "draft":
                        found.prompts[place[0]] = str(call["prompt"])
                    found.solutions[place] = str(call["solution"])
                except (ValueError, KeyError, TypeError):
                    continue  # a process that was killed has left half a line
    return found


def _problem_of(run: EvalRun, sample: SampleRecord) -> str:
    return f"{run.header['data']['sha256']}/{sample['problem_id']}"


def _draft(record: DraftRecord) -> Draft:
    draft = Draft(
        round=record["round"],
        index=record["index"],
        solution="",
        answer=record["answer"],
        tokens=record.get("tokens", 0),
        truncated=record["truncated"],
        error=None,
        detail="",
        seed=0,
        seconds=0.0,
    )
    if "signals" in record:
        draft["signals"] = record["signals"]
    return draft


def one_model(runs: Sequence[EvalRun]) -> str:
    """Return the model whose drafts these runs hold.

    Raises:
        ConfigError: they are of several.
    """
    models = sorted({run.header["model"] for run in runs})
    if len(models) > 1:
        raise ConfigError(
            f"these runs are of {len(models)} models ({', '.join(models)}); a judge is fitted on "
            "the drafts of one"
        )
    return models[0]


# ------------------------------------------------------------------------------------ states

_BALLOTS_AT_ONCE = 4
"""Whose drafts are read at the same time."""
Tell = Callable[[str], None]
_Ask = Callable[[str, Draft, Spent], Awaitable[Any]]  # Any: whatever is said of a draft


@dataclass(frozen=True, slots=True)
class StateSource:
    """Where the hidden states of drafts are read for a fit."""

    reader: StateReader
    layers: tuple[int | None, ...]
    """The fit chooses among them; None is behind the last, with the final norm."""
    question: str = QUESTION
    folder: Path | None = None
    """Keeps what was read; None keeps nothing."""
    tell: Tell = lambda line: None
    """Told how it proceeds."""

    @property
    def file(self) -> Path | None:
        """The file of what was read, which depends on all that decides it."""
        if self.folder is None:
            return None
        what = repr((self.reader.place, self.layers, self.question))
        return self.folder / f"states-{hashlib.sha256(what.encode()).hexdigest()[:12]}.npz"

    async def read(self, ballots: Sequence[Ballot]) -> tuple[dict[str, Floats], str]:
        """Return the state of every draft behind each layer, by place; and why some lack one.

        What is known of the drafts that were read before is taken from the file. Place is the
        hash of what was read, see `state_key`.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        known, why = self._load(), ""
        owed = [each for each in ballots if not known.keys() >= set(self._keys(each))]
        for start in range(0, len(owed), _BALLOTS_AT_ONCE):
            turns = {
                state_key(each): each
                for ballot in owed[start : start + _BALLOTS_AT_ONCE]
                for each in self._turns(ballot)
                if state_key(each) not in known
            }
            found = await asyncio.gather(
                *(self.reader.read(each, self.layers, Spent()) for each in turns.values()),
                return_exceptions=True,
            )
            for key, states in zip(turns, found, strict=True):
                if isinstance(states, UnweighedError | CallError):
                    why = why or str(states)
                elif isinstance(states, BaseException):
                    raise states
                else:
                    known[key] = np.asarray([unit_length(each) for each in states])
            self._save(known)
            done = min(start + _BALLOTS_AT_ONCE, len(owed))
            self.tell(f"drafts of {done} of {len(owed)} problems are read by {self.reader.place}")
        return known, why

    def _turns(self, ballot: Ballot) -> list[Turns]:
        return [judged_turns(ballot.prompt, each, self.question) for each in ballot.solutions]

    def _keys(self, ballot: Ballot) -> list[str]:
        return [state_key(each) for each in self._turns(ballot)]

    def states_of(self, ballot: Ballot, known: Mapping[str, Floats]) -> Floats | None:
        """Return the states of a ballot's drafts, by draft and layer; None where one is missing."""
        keys = self._keys(ballot)
        return np.stack([known[key] for key in keys]) if known.keys() >= set(keys) else None

    def _load(self) -> dict[str, Floats]:
        if self.file is None or not self.file.exists():
            return {}
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                return dict(zip(kept["keys"].tolist(), kept["states"].astype(float), strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{str(self.file)!r} cannot be read ({error}); remove it, and drafts are read anew"
            ) from None

    def _save(self, known: Mapping[str, Floats]) -> None:
        if self.file is None or not known:
            return
        states = np.stack(list(known.values())).astype(np.float32)
        try:
            with written_whole(self.file) as out:
                np.savez(out, keys=np.asarray(list(known)), states=states)
        except OSError as error:
            raise ConfigError(f"{str(self.file)!r} cannot be written: {error.strerror}") from None


def state_key(turns: Turns) -> str:
    """Return the hash of a conversation, by which its state is kept."""
    return hashlib.sha256(json.dumps(list(turns)).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------ calls


@dataclass(frozen=True, slots=True)
class DraftAsker:
    """Asks the server of a model about the drafts of records, one token for each."""

    client: ModelClient
    tell: Tell = lambda line: None
    """Told how it proceeds."""

    async def each(
        self, ballots: Sequence[Ballot], model: str, ask: _Ask, notes: list[str]
    ) -> list[tuple[Ballot, list[Any]]]:  # Any: what `ask` returns
        """Return what was said of every draft, with its ballot; ballots that lack any are left out.

        Args:
            ballots: With their texts.
            model: Whose drafts they are.
            ask: Takes prompt, draft with its solution, and what is charged. None: nothing was said.
            notes: Told what it took, and what is left out.

        Raises:
            ConfigError: the client asks another model, or no ballot is left.
        """
        if self.client.name != model:
            raise ConfigError(
                f"the drafts are of {model!r}, and {self.client.name!r} would be asked about them; "
                "name the drafts' own model by --model and its endpoint by --base-url"
            )
        spent, found = Spent(), []
        why = "it says neither yes nor no, or calls failed"

        async def asked(prompt: str, draft: Draft, text: str) -> Any:  # Any: as above
            nonlocal why
            try:
                return await ask(prompt, Draft({**draft, "solution": text}), spent)
            except (CallError, UnweighedError) as error:
                why = str(error)
                return None

        for number, ballot in enumerate(ballots, start=1):
            said = await asyncio.gather(
                *(
                    asked(ballot.prompt, draft, text)
                    for draft, text in zip(ballot.drafts, ballot.solutions, strict=True)
                )
            )
            if all(each is not None for each in said):
                found.append((ballot, said))
            if number % _BALLOTS_AT_ONCE == 0 or number == len(ballots):
                self.tell(f"asked about the drafts of {number} of {len(ballots)} problems")
        if self.client.lacks_alternatives:
            why = "its server does not tell the likeliest tokens"
        if not found:
            raise ConfigError(f"{model!r} could not be asked about any draft: {why}")
        if len(found) < len(ballots):
            notes.append(f"{len(ballots) - len(found)} of {len(ballots)} are left out: {why}")
        notes.append(
            f"asking about the drafts took {spent.requests:,} calls, {spent.total:,} tokens"
        )
        return found


@dataclass(frozen=True, slots=True)
class SelfChecker:
    """Asks the model whether the drafts that a judge is fitted on are correct."""

    asker: DraftAsker
    question: str
    """Template with $problem and $candidates."""

    async def checked(
        self, ballots: Sequence[Ballot], model: str, notes: list[str]
    ) -> list[Ballot]:
        """Return ballots whose drafts all have the signal; what records hold is not asked again.

        Raises:
            ConfigError: the client asks another model, or no ballot is left.
        """
        asked = await self.asker.each(ballots, model, self._said, notes)
        return [
            replace(
                ballot,
                drafts=tuple(
                    Draft({**draft, "signals": {**draft.get("signals", {}), SELF_CHECK: said}})
                    for draft, said in zip(ballot.drafts, chances, strict=True)
                ),
            )
            for ballot, chances in asked
        ]

    async def _said(self, prompt: str, draft: Draft, spent: Spent) -> float | None:
        if (known := draft.get("signals", {}).get(SELF_CHECK)) is not None:
            return known
        return await self_check(self.asker.client, self.question, prompt, draft["solution"], spent)


# ------------------------------------------------------------------------------------ fitting

SIGNALS = "signals"
"""The block of what is free; also the judge of it."""
JOINED = "hidden state, signals"
"""The judge of hidden states that also looks at signals, where that is better."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a probe is made: what it looks at, and how it is kept from learning by heart."""

    blocks: tuple[str, ...]
    """Names of the table's blocks, in their order."""
    penalty: float
    """Inverse strength, as scikit-learn's C."""
    form: Literal["linear", "network"] = "linear"


class _Chooser(Protocol):
    """Chooses a recipe by some rows of a table alone."""

    def __call__(self, table: "_Table", rows_D: NDArray[np.bool_]) -> Recipe: ...


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A probe, and the scaling of what it sees."""

    recipe: Recipe
    means: Floats
    scales: Floats
    probe: LinearProbe | NetworkProbe

    def weights(self, features_D_F: Floats) -> Floats:
        """Return how likely drafts are to be right."""
        scaled = (features_D_F - self.means) / self.scales
        probe = self.probe
        if isinstance(probe, NetworkProbe):
            units = np.asarray(probe.units)
            scaled = np.maximum(0.0, scaled @ units.T + np.asarray(probe.unit_biases))
        logits = scaled @ np.asarray(probe.weights) + probe.bias
        weights: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))
        return weights


@dataclass(frozen=True, slots=True)
class _Table:
    """All drafts as rows, those of one ballot together."""

    ballots: Sequence[Ballot]
    names: tuple[str, ...]
    """Of the columns of the block of signals."""
    blocks: Mapping[str, Floats]
    """By name: a row for each draft."""
    correct_D: Floats
    problem_D: Floats
    """Number of each draft's problem."""
    ballot_D: Floats

    @classmethod
    def of(cls, ballots: Sequence[Ballot], states: Mapping[str, Floats] | None = None) -> "_Table":
        numbers: dict[str, int] = {}
        rows, correct, problem, ballot = [], [], [], []
        for number, each in enumerate(ballots):
            place = numbers.setdefault(each.problem_id, len(numbers))
            for draft, right in zip(each.drafts, each.correct, strict=True):
                rows.append(features_of(draft))
                correct.append(float(right))
                problem.append(float(place))
                ballot.append(float(number))
        blocks, names = dict(states or {}), tuple[str, ...]()
        told = [each for each in rows if each is not None]
        if len(told) == len(rows):
            features = np.asarray([[each[name] for name in FEATURES] for each in told])
            varied = np.ptp(features, axis=0) > 0
            names = tuple(name for name, keep in zip(FEATURES, varied, strict=True) if keep)
            blocks[SIGNALS] = features[:, varied]
            if all(SELF_CHECK in each for each in told):
                blocks[SELF_CHECK] = np.asarray([[each[SELF_CHECK]] for each in told])
        return cls(
            ballots, names, blocks, np.asarray(correct), np.asarray(problem), np.asarray(ballot)
        )

    @property
    def num_problems(self) -> int:
        return int(self.problem_D.max()) + 1

    def features(self, recipe: Recipe) -> Floats:
        """Return what a probe of this recipe sees, a row for each draft."""
        return np.hstack([self.blocks[name] for name in recipe.blocks])

    def fitted(self, recipe: Recipe, rows_D: NDArray[np.bool_]) -> _Fitted:
        """Fit a probe on some rows."""
        features, correct = self.features(recipe)[rows_D], self.correct_D[rows_D]
        means, scales = features.mean(axis=0), features.std(axis=0)
        scales[scales == 0] = 1.0
        if np.ptp(correct) == 0:  # all right or all wrong: the rate, with one of each added
            rate = (correct.sum() + 1) / (correct.size + 2)
            zero = LinearProbe(weights=(0.0,) * means.size, bias=float(np.log(rate / (1 - rate))))
            return _Fitted(recipe, means, scales, zero)
        scaled = (features - means) / scales
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # close is good enough
            fit = _network if recipe.form == "network" else _linear
            return _Fitted(recipe, means, scales, fit(scaled, correct, recipe.penalty))

    def weighed_apart(
        self,
        choose: _Chooser,
        *,
        folds: int,
        seed: int,
        share: float = 1.0,
        rows_D: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Return the weight of each draft by a judge that has not seen its problem.

        Args:
            choose: Chooses the recipe in each fold.
            folds: Parts of the problems.
            seed: Of the division.
            share: Of the other problems, to learn from.
            rows_D: Drafts to learn from and to weigh, of whole problems; None is all. Others get
                a weight that means nothing.
        """
        among_P = np.unique(self.problem_D if rows_D is None else self.problem_D[rows_D])
        order_P = np.random.default_rng(seed).permutation(among_P)
        weights_D = np.full(self.correct_D.size, 0.5)
        for fold in range(folds):
            held_P = order_P[fold::folds]
            others = np.setdiff1d(order_P, held_P, assume_unique=True)
            others = order_P[np.isin(order_P, others)]
            learned = np.isin(self.problem_D, others[: max(1, round(share * others.size))])
            held = np.isin(self.problem_D, held_P)
            fitted = self.fitted(choose(self, learned), learned)
            weights_D[held] = fitted.weights(self.features(fitted.recipe)[held])
        return weights_D

    def loss(self, recipe: Recipe, rows_D: NDArray[np.bool_], *, seed: int) -> float:
        """Return the mean surprise at held-out drafts, in nats, by folds within some rows."""
        weights_D = self.weighed_apart(
            lambda table, rows: recipe, folds=NUM_INNER_FOLDS, seed=seed, rows_D=rows_D
        )
        return float(log_loss(self.correct_D[rows_D], weights_D[rows_D], labels=[0.0, 1.0]))

    def discrimination(self, scores_D: Floats) -> Discrimination:
        """Return how well scores tell right drafts from wrong ones."""
        within, overturn = [], []
        rivals_D = self._rivals()
        for problem in range(self.num_problems):
            rows = self.problem_D == problem
            is_right = self.correct_D[rows] > 0
            if is_right.any() and not is_right.all():
                within.append(_chance_above(scores_D[rows], is_right))
            counts = is_right | rivals_D[rows]
            if is_right.any() and rivals_D[rows].any():
                overturn.append(_chance_above(scores_D[rows][counts], is_right[counts]))
        return Discrimination(
            float(roc_auc_score(self.correct_D, scores_D)),
            mean_by_problem(within),
            float(np.mean(overturn)) if overturn else None,
        )

    def _rivals(self) -> NDArray[np.bool_]:
        """Return which drafts are wrong and of an answer that the vote does not put behind."""
        found: list[bool] = []
        for ballot in self.ballots:
            sizes = {place: len(group) for group in ballot.groups for place in group}
            right = [sizes[place] for place, correct in enumerate(ballot.correct) if correct]
            most = max(right, default=0)
            found += [
                bool(right) and not correct and sizes[place] >= most
                for place, correct in enumerate(ballot.correct)
            ]
        return np.asarray(found)

    def accuracy_P(self, right: Sequence[bool]) -> Floats:
        """Return the mean of each problem's ballots."""
        sums, counts = np.zeros(self.num_problems), np.zeros(self.num_problems)
        first_D = np.searchsorted(self.ballot_D, np.arange(len(self.ballots)))
        for problem, each in zip(self.problem_D[first_D].astype(int), right, strict=True):
            sums[problem] += each
            counts[problem] += 1
        means: Floats = sums / counts
        return means

    def judged_P(self, weights_D: Floats) -> Floats:
        """Return each problem's accuracy by a vote with these weights."""
        ends = np.searchsorted(self.ballot_D, np.arange(1, len(self.ballots)))
        parts = np.split(weights_D, ends)
        return self.accuracy_P(
            [b.winner_is_right(p.tolist()) for b, p in zip(self.ballots, parts, strict=True)]
        )


def _linear(scaled: Floats, correct: Floats, penalty: float) -> LinearProbe:
    model = LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(scaled, correct)
    return LinearProbe(weights=tuple(model.coef_[0].tolist()), bias=float(model.intercept_[0]))


NUM_UNITS = 16


def _network(scaled: Floats, correct: Floats, penalty: float) -> NetworkProbe:
    model = MLPClassifier(
        (NUM_UNITS,), alpha=1 / penalty, solver="lbfgs", max_iter=100, tol=1e-3, random_state=0
    ).fit(scaled, correct)
    units, weights = model.coefs_
    return NetworkProbe(
        units=tuple(map(tuple, units.T.tolist())),
        unit_biases=tuple(model.intercepts_[0].tolist()),
        weights=tuple(weights[:, 0].tolist()),
        bias=float(model.intercepts_[1][0]),
    )


_CHECKED = "signals and self-check"


def _checked_recipe(table: _Table, rows_D: NDArray[np.bool_]) -> Recipe:
    return Recipe((SIGNALS, SELF_CHECK), 1.0)


def _signals_recipe(table: _Table, rows_D: NDArray[np.bool_]) -> Recipe:
    return Recipe((SIGNALS,), 1.0)


@dataclass(frozen=True, slots=True)
class _HiddenRecipe:
    """Chooses a layer and a penalty; then a network, and the signals, where they are better."""

    blocks: tuple[str, ...]
    """Of the layers to choose among."""
    seed: int
    joined: bool = False
    """Whether signals may be looked at beside the state."""

    def __call__(self, table: _Table, rows_D: NDArray[np.bool_]) -> Recipe:
        plain = [Recipe((name,), each) for name in self.blocks for each in PENALTIES]
        best = self._least(table, rows_D, plain)
        more = [best, replace(best, form="network", penalty=10 * best.penalty)]
        if self.joined:
            more.append(replace(best, blocks=(*best.blocks, SIGNALS)))
        return self._least(table, rows_D, more)

    def _least(self, table: _Table, rows_D: NDArray[np.bool_], among: Sequence[Recipe]) -> Recipe:
        # The first of equals, which is the simplest.
        return min(among, key=lambda recipe: table.loss(recipe, rows_D, seed=self.seed))


async def fit_judge(
    runs: Sequence[EvalRun],
    *,
    kind: Kind = "signals",
    source: StateSource | None = None,
    checker: SelfChecker | None = None,
    folds: int = NUM_FOLDS,
    seed: int = 0,
) -> JudgeFit:
    """Fit a judge on all drafts of these runs that have what it looks at.

    Args:
        runs: Of one model.
        kind: `best` is the one whose vote is better; where they are equal, that of signals.
        source: Where hidden states are read; None for a judge of signals.
        checker: Asks the model about each draft, which a judge of signals then looks at too; None
            asks nothing.
        folds: Parts that the problems are divided into, to measure it.
        seed: Of the division.

    Raises:
        ConfigError: the runs are of several models, the drafts lack what the judge looks at, or too
            few problems have right drafts and wrong ones.
    """
    model = one_model(runs)
    notes: list[str] = []
    if checker is not None:
        found = await ballots_of(runs, texts=True)
        table = _Table.of(await checker.checked(found, model, notes))
    elif kind == "signals" or source is None:
        table = _Table.of(await ballots_of(runs))
    else:
        table = await _table_with_states(runs, source, notes)
    # The fits are small: several threads would wait for one another most of the time.
    with threadpool_limits(1):
        return _fitted_judge(table, runs, kind, source, checker, folds, seed, notes)


def _fitted_judge(
    table: _Table,
    runs: Sequence[EvalRun],
    kind: Kind,
    source: StateSource | None,
    checker: SelfChecker | None,
    folds: int,
    seed: int,
    notes: list[str],
) -> JudgeFit:
    mixed = sum(
        np.ptp(table.correct_D[table.problem_D == each]) > 0 for each in range(table.num_problems)
    )
    if mixed < LEAST_PROBLEMS:
        raise ConfigError(
            f"{mixed} of {counted(table.num_problems, 'problem')} have right drafts and wrong "
            f"ones, and {LEAST_PROBLEMS} are needed; evaluate more problems, or some of another "
            "difficulty"
        )
    folds = min(folds, table.num_problems)
    layers = tuple(name for name in table.blocks if name not in {SIGNALS, SELF_CHECK})
    choosers: dict[str, _Chooser] = {}
    if layers:
        choosers["hidden state"] = _HiddenRecipe(layers, seed)
        if SIGNALS in table.blocks:
            choosers[JOINED] = _HiddenRecipe(layers, seed, joined=True)
        if len(layers) > 1:
            choosers |= {f"hidden state, {name}": _HiddenRecipe((name,), seed) for name in layers}
    if SIGNALS in table.blocks:
        choosers[SIGNALS] = _signals_recipe
    if checker is not None and SELF_CHECK in table.blocks:
        choosers[_CHECKED] = _checked_recipe
    apart = {
        name: table.weighed_apart(choose, folds=folds, seed=seed)
        for name, choose in choosers.items()
    }
    hidden = JOINED if JOINED in choosers else "hidden state"
    main = hidden if kind == "hidden" else _CHECKED if checker is not None else SIGNALS
    if kind == "best" and layers:
        among = [name for name in (SIGNALS, hidden) if name in choosers]
        worth = {name: float(table.judged_P(apart[name]).mean()) for name in among}
        main = max(among, key=worth.__getitem__)
        notes.append(
            f"of {len(worth)} judges the one of {main} is written, chosen by these same figures, "
            "which flatters it a little"
        )
    everything = np.ones(table.correct_D.size, dtype=bool)
    recipe = choosers[main](table, everything)
    notes += _said(recipe) if layers and main != SIGNALS else []
    curve = [_learned(table, recipe, share, folds, seed) for share in SHARES]
    report = _report(table, apart, main=main, seed=seed, learning=tuple(curve), notes=tuple(notes))
    question = checker.question if checker is not None else None
    judge = _judge(table.fitted(recipe, everything), table.names, source, question)
    judge = judge.model_copy(
        update={
            "model": one_model(runs),
            "prompts": runs[0].header["prompts_sha256"],
            "data": tuple(sorted({run.header["data"]["sha256"] for run in runs})),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "report": report.to_json(),
        }
    )
    return JudgeFit(judge, report)


async def _table_with_states(
    runs: Sequence[EvalRun], source: StateSource, notes: list[str]
) -> _Table:
    found = await ballots_of(runs, signals=False, texts=True)
    known, why = await source.read(found)
    states = [source.states_of(ballot, known) for ballot in found]
    ballots = [each for each, read in zip(found, states, strict=True) if read is not None]
    if not ballots:
        raise ConfigError(f"no draft could be read for its hidden state: {why}")
    if len(ballots) < len(found):
        notes.append(f"{len(found) - len(ballots)} of {len(found)} samples are left out: {why}")
    rows = np.concatenate([read for read in states if read is not None])
    blocks = {_layer_name(layer): rows[:, place] for place, layer in enumerate(source.layers)}
    return _Table.of(ballots, blocks)


def _layer_name(layer: int | None) -> str:
    return "last layer" if layer is None else f"layer {layer}"


def _said(recipe: Recipe) -> list[str]:
    form = "a network of two layers" if recipe.form == "network" else "a logistic regression"
    what = " and the ".join(recipe.blocks)
    return [f"chosen in cross-validation: {form} on the {what}, C {recipe.penalty:g}"]


def _judge(
    fitted: _Fitted, names: tuple[str, ...], source: StateSource | None, question: str | None
) -> DraftJudge:
    means, scales = tuple(fitted.means.tolist()), tuple(fitted.scales.tolist())
    probe, blocks = fitted.probe, fitted.recipe.blocks
    if set(blocks) <= {SIGNALS, SELF_CHECK}:
        assert isinstance(probe, LinearProbe)  # by its recipe
        checked = SELF_CHECK in blocks
        return SignalsJudge(
            model="",
            features=(*names, SELF_CHECK) if checked else names,
            question=question if checked else None,
            means=means,
            scales=scales,
            **_numbers(probe),
        )
    assert source is not None  # or there were no states
    features = names if SIGNALS in blocks else ()
    layer = next(each for each in source.layers if _layer_name(each) == blocks[0])
    return HiddenJudge(
        model="",
        question=source.question,
        layer=layer,
        source=f"{source.reader.place}, {blocks[0]}",
        size=len(means) - len(features),
        features=features,
        means=means,
        scales=scales,
        probe=probe,
    )


def _numbers(probe: LinearProbe) -> dict[str, Any]:  # Any: fields of a model
    return {"weights": probe.weights, "bias": probe.bias}


async def score_judge(
    judge: DraftJudge,
    runs: Sequence[EvalRun],
    *,
    source: StateSource | None = None,
    asker: DraftAsker | None = None,
    seed: int = 0,
) -> JudgeReport:
    """Say what a judge is worth on other runs of its model.

    Args:
        judge: Opened on the places that it needs.
        runs: Of one model.
        source: Where the hidden states are read, for a judge that looks at them.
        asker: Asks the server of the model, for a judge that does (`DraftJudge.asks`).
        seed: Of the intervals.

    Raises:
        ConfigError: the runs are of another model, or the drafts lack what the judge looks at.
    """
    judge.check(model := one_model(runs))
    notes: list[str] = []
    if isinstance(judge, HiddenJudge):
        assert source is not None
        table, weights = await _weights_by_states(judge, runs, source, notes)
    elif judge.asks:
        assert asker is not None
        await judge.meet(asker.client)

        async def weigh(prompt: str, draft: Draft, spent: Spent) -> float:
            return await judge.weigh(draft, Evidence("", prompt, asker.client, spent))

        found = await ballots_of(runs, signals=isinstance(judge, SignalsJudge), texts=True)
        asked = await asker.each(found, model, weigh, notes)
        table = _Table.of([ballot for ballot, _ in asked])
        weights = [weight for _, said in asked for weight in said]
    else:
        assert isinstance(judge, SignalsJudge)  # no other kind is free
        table = _Table.of(await ballots_of(runs))
        weights = [judge.weight_of(draft) for each in table.ballots for draft in each.drafts]
    if np.ptp(table.correct_D) == 0:
        raise ConfigError("all drafts of these runs are right, or all wrong: nothing to tell apart")
    return _report(
        table, {"judge": np.asarray(weights)}, main="judge", seed=seed, notes=tuple(notes)
    )


async def _weights_by_states(
    judge: HiddenJudge, runs: Sequence[EvalRun], source: StateSource, notes: list[str]
) -> tuple[_Table, list[float]]:
    table = await _table_with_states(runs, source, notes)
    states = next(block for name, block in table.blocks.items() if name != SIGNALS)
    drafts = [draft for each in table.ballots for draft in each.drafts]
    if judge.features and SIGNALS not in table.blocks:
        raise ConfigError("the judge also looks at log-probabilities, which these runs lack")
    try:
        weights = [
            judge.weight_of(draft, state.tolist())
            for draft, state in zip(drafts, states, strict=True)
        ]
    except UnweighedError as error:
        raise ConfigError(str(error)) from None
    return table, weights


def judge_report(
    ballots: Sequence[Ballot],
    weights: Mapping[str, Sequence[float]],
    *,
    main: str,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> JudgeReport:
    """Say what judges of any kind are worth.

    Args:
        ballots: As `ballots_of` returns them.
        weights: By judge: of all drafts of the ballots in their order, each by a judge that has not
            learned from its problem.
        main: The judge that the report's sentence and plots are of.
        seed: Of the intervals.
        notes: Sentences for the reader.
    """
    apart = {name: np.asarray(each, dtype=np.float64) for name, each in weights.items()}
    return _report(_Table.of(ballots), apart, main=main, seed=seed, notes=tuple(notes))


def _learned(table: _Table, recipe: Recipe, share: float, folds: int, seed: int) -> LearningPoint:
    weights_D = table.weighed_apart(lambda table, rows: recipe, folds=folds, seed=seed, share=share)
    plain_P = table.accuracy_P([ballot.winner_is_right() for ballot in table.ballots])
    return LearningPoint(
        num_problems=round(share * table.num_problems * (folds - 1) / folds),
        within=table.discrimination(weights_D).within.value,
        gain=float((table.judged_P(weights_D) - plain_P).mean()),
    )


def _report(
    table: _Table,
    apart: Mapping[str, Floats],
    *,
    main: str,
    seed: int,
    learning: tuple[LearningPoint, ...] = (),
    notes: tuple[str, ...] = (),
) -> JudgeReport:
    ballots, options = table.ballots, IntervalOptions(seed=seed)
    ties_P = table.accuracy_P([ballot.winner_is_right() for ballot in ballots])
    vote_P = table.accuracy_P([ballot.winner_is_right(ties=False) for ballot in ballots])
    best_P = table.accuracy_P([any(ballot.correct) for ballot in ballots])
    scores = dict(apart)
    if SIGNALS in table.blocks:
        columns = table.blocks[SIGNALS].T
        scores |= dict(zip(table.names, columns, strict=True))
    if SELF_CHECK in table.blocks:
        scores[SELF_CHECK] = table.blocks[SELF_CHECK][:, 0]
    vote, tie_break, best = (
        share_by_problem(each, options.confidence) for each in (vote_P, ties_P, best_P)
    )
    judged_P = {name: table.judged_P(weights_D) for name, weights_D in apart.items()}
    return JudgeReport(
        num_problems=table.num_problems,
        num_ballots=len(ballots),
        num_drafts=table.correct_D.size,
        discrimination={name: table.discrimination(each) for name, each in scores.items()},
        vote=vote,
        tie_break=tie_break,
        best=best,
        judges={
            name: JudgeWorth(
                share_by_problem(each, options.confidence),
                paired_difference(ties_P, each, options),
            )
            for name, each in judged_P.items()
        },
        main=main,
        reliability=tuple(_bins(apart[main], table.correct_D)),
        learning=learning,
        notes=notes,
    )


def _chance_above(scores_D: Floats, is_right_D: NDArray[np.bool_]) -> float:
    """Return the chance that a right draft scores above a wrong one; a tie is half of it."""
    gaps = np.subtract.outer(scores_D[is_right_D], scores_D[~is_right_D])
    return float((np.sign(gaps) / 2 + 0.5).mean())


def _bins(weights_D: Floats, correct_D: Floats) -> list[Bin]:
    order = np.argsort(weights_D, kind="stable")
    return [
        Bin(float(weights_D[part].mean()), float(correct_D[part].mean()), int(part.size))
        for part in np.array_split(order, NUM_BINS)
        if part.size
    ]
