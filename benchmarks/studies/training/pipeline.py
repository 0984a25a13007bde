"""The study's steps in order: warm starts, main arms, evaluations, ablations, the replication.

What is there is not made again: training runs and evaluations go on where they were, as
`pdr-graph train` and `pdr-graph eval` do.
"""

import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.training.arms import ABLATIONS, MAIN, WARM, Arm
from benchmarks.studies.training.commands import Shop
from benchmarks.studies.training.scale import HELD_OUT_SEED, TRAIN_SEED, Scale
from benchmarks.studies.training.task import Size, write_questions

SETTINGS = Path(__file__).with_name("rl.toml")
STRATEGIES = {
    "long_cot": "long_cot",
    "sr": "sr@widths=1,1,1",
    "pdr_1": "pdr@widths=4",
    "pdr_2": "pdr@widths=4,4",
    "majority": "majority@widths=4",
}
"""What every model is evaluated under; training knows `long_cot` and `pdr_1` alone."""
_DISTILLED = frozenset({"pdr_1", "pdr_2"})


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One study in one folder."""

    folder: Path
    scale: Scale
    jobs: int
    """Commands at once, each on one thread."""

    def run(self, *, ablations: bool) -> None:
        """Make what is not there yet."""
        self._write_problems()
        self._compare(self.scale.seeds)
        if ablations:
            few = self.scale.ablation_seeds
            trained = [arm for arm in ABLATIONS if arm.half_of is None]
            self._each(self._train, [(seed, arm) for seed in few for arm in trained])
            self._each(self._evaluate, [(seed, arm.name) for seed in few for arm in ABLATIONS])
        self._compare(self.scale.replication)

    def _compare(self, seeds: Sequence[int]) -> None:
        """Make the main arms of some seeds."""
        self._each(self._warm_start, [(seed,) for seed in seeds])
        first = [arm for arm in MAIN if arm.after is None]
        second = [arm for arm in MAIN if arm.after is not None]
        self._each(self._train, [(seed, arm) for seed in seeds for arm in first])
        # What the primary contrast needs comes before all else.
        names = [*(arm.name for arm in first), WARM]
        self._each(self._evaluate, [(seed, name) for name in names for seed in seeds])
        self._each(self._train, [(seed, arm) for seed in seeds for arm in second])
        self._each(self._evaluate, [(seed, arm.name) for seed in seeds for arm in second])

    def evaluation(self, seed: int, name: str) -> Path:
        """Return the folder of an evaluation."""
        return self._seed(seed) / "eval" / name

    def training(self, seed: int, name: str) -> Path:
        """Return the folder of a training run."""
        return self._seed(seed) / name

    def model(self, seed: int, name: str) -> Path:
        """Return the folder of a model."""
        whole = next((arm.half_of for arm in ABLATIONS if arm.name == name), None)
        if whole is not None:
            return self._halfway(seed, whole)
        run = self.training(seed, name)
        return run if name == WARM else run / "model"

    def _halfway(self, seed: int, name: str) -> Path:
        return self.training(seed, name) / f"checkpoint-{self.scale.half}"

    def train_words(self, seed: int, arm: Arm) -> list[str]:
        """Return the words after `pdr-graph` that train an arm."""
        steps = self.scale.steps if arm in MAIN else self.scale.half
        start = self.model(seed, WARM)
        if arm.after is not None:
            steps -= self.scale.half
            start = self._halfway(seed, arm.after)
        own = {"save_every": str(max(1, self.scale.steps // 4)), **arm.settings}
        return [
            *("train", "--config", str(SETTINGS), "--model", str(start), "--quiet"),
            *(
                "--data",
                str(self.folder / "train.jsonl"),
                "--out",
                str(self.training(seed, arm.name)),
            ),
            *("--steps", str(steps), "--seed", str(seed)),
            *(word for name, value in own.items() for word in ("--set", f"{name}={value}")),
        ]

    def eval_words(self, seed: int, name: str) -> list[str]:
        """Return the words after `pdr-graph` that evaluate a model."""
        strategy = tomllib.loads(SETTINGS.read_text("utf-8"))["strategy"]
        distiller = f";distiller={strategy['distiller']}"
        arms = [
            f"{name}={spec}{distiller if name in _DISTILLED else ''}"
            for name, spec in STRATEGIES.items()
        ]
        options = ("kappa", "max_tokens", "solution_tokens", "draft_prompt", "improve_prompt")
        return [
            *("eval", str(self.folder / "held_out.jsonl"), "--model", str(self.model(seed, name))),
            *("--out", str(self.evaluation(seed, name)), "--seed", str(seed), "--quiet"),
            *(
                "--no-trace",
                "--checkpoint",
                "memory",
                "--temperature",
                str(strategy["temperature"]),
            ),
            *(
                word
                for option in options
                for word in (f"--{option.replace('_', '-')}", str(strategy[option]))
            ),
            *(word for arm in arms for word in ("--arm", arm)),
        ]

    def _seed(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def _write_problems(self) -> None:
        for name, seed, count in (
            ("train", TRAIN_SEED, self.scale.train_problems),
            ("held_out", HELD_OUT_SEED, self.scale.held_out),
        ):
            file = self.folder / f"{name}.jsonl"
            if not file.exists():
                write_questions(file, seed, count, Size())

    def _each(self, make: Callable[..., None], jobs: Iterable[tuple[object, ...]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(make, *job) for job in jobs]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _warm_start(self, seed: int) -> None:
        folder = self.model(seed, WARM)
        if not folder.exists():
            words = [str(folder), "--seed", str(seed)]
            words += ["--updates", str(self.scale.warm_updates)]
            Shop(self.folder).run(words, "benchmarks.studies.training.supervised")

    def _train(self, seed: int, arm: Arm) -> None:
        if not self.model(seed, arm.name).exists():
            Shop(self.folder).run(self.train_words(seed, arm))

    def _evaluate(self, seed: int, name: str) -> None:
        done = self.evaluation(seed, name) / "done"
        if not done.exists():
            Shop(self.folder).run(self.eval_words(seed, name))
            done.touch()
