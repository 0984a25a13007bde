"""What whoever embeds a run hands in, looked at before anything runs."""

from langchain_core.language_models import BaseChatModel

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.llm.client import ModelClient


def check_given(config: object, model: object, extensions: Extensions) -> None:
    """Refuse what cannot make a run.

    Raises:
        ConfigError: the config is none or names a part that there is not, or the model is none.
    """
    if not isinstance(config, PDRConfig):
        raise ConfigError(
            f"config must be a PDRConfig, such as preset('pdr') returns, not {config!r}"
        )
    if not isinstance(model, BaseChatModel | ModelClient):
        raise ConfigError(
            "model must be a LangChain chat model, such as ChatVLLM(base_url=…, model=…), or a "
            f"ModelClient, not {model!r}"
        )
    extensions.check(config)
