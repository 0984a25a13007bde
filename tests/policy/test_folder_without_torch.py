"""A model folder where torch is not installed."""

import importlib.util

import pytest

from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError
from pdr_graph.settings import load_settings


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
async def test_what_is_missing_and_how_to_get_it_is_said(tmp_path):
    """And what would do without it."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"by torch; serve it and set --base-url .*pip install "):
        async with open_client(load_settings(model=str(tmp_path), data_dir=tmp_path)):
            pass


async def test_a_name_that_is_no_folder_is_still_refused(tmp_path):
    """The sentence says what a model may be without an endpoint."""
    settings = load_settings(model="org/model", data_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"name a \.gguf file or a model folder"):
        async with open_client(settings):
            pass
