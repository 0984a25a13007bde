"""What one request asks for, once it is understood."""

from dataclasses import dataclass

from pdr_graph.config import PDRConfig
from pdr_graph.run import new_thread_id
from pdr_graph.serve.catalogue import Catalogue
from pdr_graph.serve.problem import problem_of
from pdr_graph.serve.protocol import ChatRequest, refuse_unsupported
from pdr_graph.serve.repeats import Repeats


@dataclass(frozen=True, slots=True)
class Asked:
    """One run, and how its answer is to be sent."""

    model: str
    """As the client names it."""
    problem: str
    config: PDRConfig
    insisted: dict[str, object]
    """Fields that the client named: a run that is resumed must have been started with them."""
    thread_id: str
    named: bool
    """Whether the client named the thread, which may then hold a run already."""
    stops: tuple[str, ...]
    include_usage: bool


def understand(request: ChatRequest, catalogue: Catalogue, repeats: Repeats) -> Asked:
    """Read a request.

    Raises:
        RefusalError: something in it cannot be honoured.
        ConfigError: a setting does not fit.
    """
    refuse_unsupported(request)
    problem = problem_of(request.messages)
    limit = request.max_completion_tokens or request.max_tokens
    own = {"temperature": request.temperature, "top_p": request.top_p, "max_tokens": limit}
    asked = {name: value for name, value in own.items() if value is not None}
    config, insisted = catalogue.resolve(request.model, {**asked, **(request.pdr or {})})
    # The seed of a run is drawn anew for each, so that a resumed one may have any.
    insisted.pop("seed", None)
    if config.seed is None and request.seed is not None:
        told_apart = f"{problem} {config.model_dump_json()}"
        config = config.model_copy(update={"seed": repeats.seed(request.seed, told_apart)})
    thread_id = request.metadata.thread_id if request.metadata else None
    return Asked(
        model=request.model,
        problem=problem,
        config=config,
        insisted=insisted,
        thread_id=thread_id or new_thread_id(),
        named=thread_id is not None,
        stops=request.stops,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )
