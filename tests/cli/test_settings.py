"""Settings: the environment, the file `.env`, and what comes first."""

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.settings import Settings, debug_wanted, load_settings


def test_order_of_sources(clean, monkeypatch):
    """A given value comes before the environment, that before `.env`, that before the default."""
    (clean / ".env").write_text("PDR_MODEL=file\nPDR_RETRIES=1\nOTHER=1\n")
    monkeypatch.setenv("PDR_MODEL", "environment")
    settings = load_settings(base_url="http://given/v1")
    assert settings.base_url == "http://given/v1"
    assert settings.model == "environment"
    assert settings.retries == 1
    assert settings.max_in_flight == Settings.model_fields["max_in_flight"].default


def test_a_given_none_hides_the_environment(clean, monkeypatch):
    """`--base-url none` asks for the embedded model where the environment names another."""
    monkeypatch.setenv("PDR_BASE_URL", "http://environment/v1")
    assert load_settings(base_url=None).base_url is None


def test_empty_variables_are_not_there(clean, monkeypatch):
    """An empty variable is as good as none."""
    monkeypatch.setenv("PDR_BASE_URL", "")
    assert load_settings().base_url is None


def test_the_key_is_never_shown(clean):
    """The API key is kept out of representations."""
    assert "hush" not in repr(load_settings(api_key=" hush "))
    assert load_settings(api_key=" hush ").api_key.get_secret_value() == "hush"


def test_malformed_variable(clean, monkeypatch):
    """A value that does not fit is named by its variable."""
    monkeypatch.setenv("PDR_RETRIES", "-1")
    with pytest.raises(ConfigError, match=r"PDR_RETRIES '-1': input should be greater than"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PDR_MODEL=x\nwhat is this?\n", r"line 2 is no NAME=value: 'what is this'"),
        (b"PDR_MODEL='x\n", r"line 1 is no NAME=value"),
        (b"PDR_MODEL=\xff\n", r"is not UTF-8 text"),
    ],
)
def test_malformed_env_file(clean, content, sentence):
    """A file that would be read in part is refused, and its line named."""
    (clean / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_settings()


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("0", False), ("", False)])
def test_debug(clean, monkeypatch, value, wanted):
    """`PDR_DEBUG` asks for tracebacks."""
    monkeypatch.setenv("PDR_DEBUG", value)
    assert debug_wanted() is wanted
