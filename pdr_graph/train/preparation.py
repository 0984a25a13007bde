"""Makes sure that a run can work, before anything heavy is imported or written."""

from dataclasses import dataclass

from pdr_graph.eval.problems import Problems
from pdr_graph.eval.sources import load_problems
from pdr_graph.train.checks import check_problems, check_settings, check_template
from pdr_graph.train.estimate import Estimate, estimate
from pdr_graph.train.model_shape import ModelShape, read_shape
from pdr_graph.train.prompt_size import PromptSize, prompt_size
from pdr_graph.train.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What steps of RL are made of."""

    problems: Problems
    size: PromptSize
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose settings, files and problems fit together."""

    settings: TrainSettings
    shape: ModelShape
    rl: Rollouts | None
    """None where the run ends after its warm start."""


def prepare(settings: TrainSettings) -> Prepared:
    """Read model and problems, and check what was asked against them.

    Raises:
        ConfigError: something cannot work; one sentence names it and the remedy.
    """
    shape = read_shape(settings.model)
    check_settings(settings, shape)
    check_template(settings.model)
    if not settings.steps:
        return Prepared(settings, shape, None)
    assert settings.data is not None  # `check_settings` saw to it
    problems = load_problems(settings.data).first(settings.limit)
    size = prompt_size(settings.model, settings.config, problems.problems)
    check_problems(settings, shape, problems, size)
    return Prepared(settings, shape, Rollouts(problems, size, estimate(settings, shape, size)))
