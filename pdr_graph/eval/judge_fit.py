"""Fits a judge of drafts on evaluations, and says whether its weights beat the vote.

Every figure is of drafts that the judge has not been fitted on: the problems are divided into
folds, and the drafts of each fold are weighed by a judge that was fitted on the others. Problems
are the unit of all intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pdr_graph.answers import answer_kind, clusters
from pdr_graph.ballot import ranked, tally_of, vote_of
from pdr_graph.errors import ConfigError, counted
from pdr_graph.eval.records import DraftRecord, EvalRun, SampleRecord
from pdr_graph.eval.stats import (
    Estimate,
    Floats,
    IntervalOptions,
    PairedDifference,
    mean_by_problem,
    paired_difference,
    share_by_problem,
)
from pdr_graph.judge import FEATURES, DraftJudge, features_of
from pdr_graph.types import Draft, Vote

LEAST_PROBLEMS = 20
"""With drafts of both kinds, right and wrong; below that no figure means anything."""
NUM_FOLDS = 10
NUM_BINS = 10
"""Of the reliability plot, each with as many drafts."""
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
class JudgeReport:
    """What a judge is worth on drafts that it has not learned from."""

    num_problems: int
    num_ballots: int
    num_drafts: int
    discrimination: Mapping[str, Discrimination]
    """Of the judge, and of each feature alone."""
    vote: Estimate
    """Accuracy of the plain vote; ties go to the first answer."""
    tie_break: Estimate
    """Accuracy of the vote whose ties go to the likeliest draft."""
    judged: Estimate
    """Accuracy of the vote by the judge's weights."""
    best: Estimate
    """Share of ballots with any right draft: what the best choice would reach."""
    gain: PairedDifference
    """`judged` less `tie_break`, by problem: what the judge is worth beyond the ties."""
    reliability: tuple[Bin, ...]
    learning: tuple[LearningPoint, ...] = ()
    """By the number of problems; empty where nothing was fitted."""

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the judge beats the vote."""
        low, high = self.gain.low or 0.0, self.gain.high or 0.0
        points = f"{100 * self.gain.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        if low > 0:
            return f"Better than the vote: {points}."
        if high < 0:
            return f"Worse than the vote: {points}. Do not use it."
        problems = counted(self.num_problems, "problem")
        return f"Not better than the vote, as far as {problems} can show: {points}."

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the report as plain data."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class JudgeFit:
    """A judge, fitted on everything, and what its like were worth on held-out problems."""

    judge: DraftJudge
    report: JudgeReport


# ------------------------------------------------------------------------------------ records


async def ballots_of(runs: Sequence[EvalRun]) -> list[Ballot]:
    """Return the drafts of each sample whose drafts all have signals; shared ones count once.

    Raises:
        ConfigError: there is none.
    """
    seen: set[object] = set()
    ballots = []
    for run in runs:
        kinds = {arm: answer_kind(run.config(arm).answer) for arm in run.header["arms"]}
        for sample in run.samples:
            usable = [each for each in sample["drafts"] if each["error"] is None]
            kept = [(_draft(each), each["correct"]) for each in usable if each["answer"]]
            if not kept or any(features_of(draft) is None for draft, _ in kept):
                continue
            same = sample["problem_id"], repr([draft for draft, _ in kept])
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
                )
            )
    if not ballots:
        raise ConfigError(
            "no draft of these runs has log-probabilities; evaluate an arm that asks for them, "
            "such as vote_first or majority@finish=weighted_vote, at a server that tells them"
        )
    return ballots


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


def _one_model(runs: Sequence[EvalRun]) -> str:
    models = sorted({run.header["model"] for run in runs})
    if len(models) > 1:
        raise ConfigError(
            f"these runs are of {len(models)} models ({', '.join(models)}); a judge is fitted on "
            "the drafts of one"
        )
    return models[0]


# ------------------------------------------------------------------------------------ fitting


@dataclass(frozen=True, slots=True)
class _Table:
    """All drafts as rows, those of one ballot together."""

    ballots: Sequence[Ballot]
    names: tuple[str, ...]
    features_D_F: Floats
    correct_D: Floats
    problem_D: Floats
    """Number of each draft's problem."""
    ballot_D: Floats

    @classmethod
    def of(cls, ballots: Sequence[Ballot]) -> "_Table":
        numbers: dict[str, int] = {}
        rows, correct, problem, ballot = [], [], [], []
        for number, each in enumerate(ballots):
            place = numbers.setdefault(each.problem_id, len(numbers))
            for draft, right in zip(each.drafts, each.correct, strict=True):
                known = features_of(draft)
                assert known is not None  # `ballots_of` keeps no other
                rows.append([known[name] for name in FEATURES])
                correct.append(float(right))
                problem.append(float(place))
                ballot.append(float(number))
        features = np.asarray(rows, dtype=np.float64)
        varied = np.ptp(features, axis=0) > 0
        names = tuple(name for name, keep in zip(FEATURES, varied, strict=True) if keep)
        return cls(
            ballots,
            names,
            features[:, varied],
            np.asarray(correct),
            np.asarray(problem),
            np.asarray(ballot),
        )

    @property
    def num_problems(self) -> int:
        return int(self.problem_D.max()) + 1

    def fitted(self, rows_D: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, float]:
        """Return means, scales, weights and bias of a logistic regression on some rows."""
        features, correct = self.features_D_F[rows_D], self.correct_D[rows_D]
        means, scales = features.mean(axis=0), features.std(axis=0)
        scales[scales == 0] = 1.0
        if np.ptp(correct) == 0:  # all right or all wrong: the rate, with one of each added
            rate = (correct.sum() + 1) / (correct.size + 2)
            return means, scales, np.zeros(means.size), float(np.log(rate / (1 - rate)))
        model = LogisticRegression(max_iter=1000).fit((features - means) / scales, correct)
        return means, scales, model.coef_[0], float(model.intercept_[0])

    def weighed_apart(self, *, folds: int, seed: int, share: float = 1.0) -> Floats:
        """Return the weight of each draft by a judge that has not seen its problem."""
        random = np.random.default_rng(seed)
        order_P = random.permutation(self.num_problems)
        fold_P = np.empty(self.num_problems)
        fold_P[order_P] = np.arange(self.num_problems) % folds
        weights_D = np.empty(self.correct_D.size)
        for fold in range(folds):
            others = order_P[fold_P[order_P] != fold]
            learned = others[: max(1, round(share * others.size))]
            held = fold_P[self.problem_D.astype(int)] == fold
            means, scales, weights, bias = self.fitted(np.isin(self.problem_D, learned))
            logits = (self.features_D_F[held] - means) / scales @ weights + bias
            weights_D[held] = 1.0 / (1.0 + np.exp(-logits))
        return weights_D

    def discrimination(self, scores_D: Floats) -> Discrimination:
        """Return how well scores tell right drafts from wrong ones."""
        within = []
        for problem in range(self.num_problems):
            rows = self.problem_D == problem
            if np.ptp(self.correct_D[rows]) > 0:
                within.append(_chance_above(scores_D[rows], self.correct_D[rows] > 0))
        return Discrimination(
            float(roc_auc_score(self.correct_D, scores_D)), mean_by_problem(within)
        )

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


async def fit_judge(runs: Sequence[EvalRun], *, folds: int = NUM_FOLDS, seed: int = 0) -> JudgeFit:
    """Fit a judge on all drafts of these runs that have log-probabilities.

    Args:
        runs: Of one model.
        folds: Parts that the problems are divided into, to measure it.
        seed: Of the division.

    Raises:
        ConfigError: the runs are of several models, no draft has log-probabilities, or too few
            problems have right drafts and wrong ones.
    """
    model = _one_model(runs)
    table = _Table.of(await ballots_of(runs))
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
    weights_D = table.weighed_apart(folds=folds, seed=seed)
    curve = [_learned(table, share, folds, seed) for share in SHARES]
    report = _report(table, weights_D, seed=seed, learning=tuple(curve))
    means, scales, weights, bias = table.fitted(np.ones(table.correct_D.size, dtype=bool))
    judge = DraftJudge(
        model=model,
        prompts=runs[0].header["prompts_sha256"],
        data=tuple(sorted({run.header["data"]["sha256"] for run in runs})),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        features=table.names,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(weights.tolist()),
        bias=bias,
        report=report.to_json(),
    )
    return JudgeFit(judge, report)


async def score_judge(judge: DraftJudge, runs: Sequence[EvalRun], *, seed: int = 0) -> JudgeReport:
    """Say what a judge is worth on other runs of its model.

    Raises:
        ConfigError: the runs are of another model, or no draft has log-probabilities.
    """
    judge.check(_one_model(runs))
    table = _Table.of(await ballots_of(runs))
    if np.ptp(table.correct_D) == 0:
        raise ConfigError("all drafts of these runs are right, or all wrong: nothing to tell apart")
    weights = [judge.weigh(draft) for ballot in table.ballots for draft in ballot.drafts]
    return _report(table, np.asarray(weights, dtype=np.float64), seed=seed)


def _learned(table: _Table, share: float, folds: int, seed: int) -> LearningPoint:
    weights_D = table.weighed_apart(folds=folds, seed=seed, share=share)
    plain_P = table.accuracy_P([ballot.winner_is_right() for ballot in table.ballots])
    return LearningPoint(
        num_problems=round(share * table.num_problems * (folds - 1) / folds),
        within=table.discrimination(weights_D).within.value,
        gain=float((table.judged_P(weights_D) - plain_P).mean()),
    )


def _report(
    table: _Table, weights_D: Floats, *, seed: int, learning: tuple[LearningPoint, ...] = ()
) -> JudgeReport:
    ballots, options = table.ballots, IntervalOptions(seed=seed)
    judged_P = table.judged_P(weights_D)
    ties_P = table.accuracy_P([ballot.winner_is_right() for ballot in ballots])
    vote_P = table.accuracy_P([ballot.winner_is_right(ties=False) for ballot in ballots])
    best_P = table.accuracy_P([any(ballot.correct) for ballot in ballots])
    alone = {
        name: table.discrimination(table.features_D_F[:, place])
        for place, name in enumerate(table.names)
    }
    vote, tie_break, judged, best = (
        share_by_problem(each, options.confidence) for each in (vote_P, ties_P, judged_P, best_P)
    )
    return JudgeReport(
        num_problems=table.num_problems,
        num_ballots=len(ballots),
        num_drafts=table.correct_D.size,
        discrimination={"judge": table.discrimination(weights_D), **alone},
        vote=vote,
        tie_break=tie_break,
        judged=judged,
        best=best,
        gain=paired_difference(ties_P, judged_P, options),
        reliability=tuple(_bins(weights_D, table.correct_D)),
        learning=learning,
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
