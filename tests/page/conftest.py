"""The command line in this process."""

from tests.cli.conftest import clean, cli, data_dir, spawn, stored
