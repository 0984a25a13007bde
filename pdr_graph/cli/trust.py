"""`pdr-graph trust`: let all that the `.env` of a folder sets count until it changes."""

from pdr_graph.cli.commands import TrustCommand
from pdr_graph.cli.output import Output
from pdr_graph.env_file import ENV_FILE, EnvFile
from pdr_graph.errors import ConfigError


def trust_command(command: TrustCommand, output: Output) -> None:
    """Note that the user trusts a file, or does not any more; show what it sets.

    Raises:
        ConfigError: the folder has no such file, or the trust cannot be noted.
    """
    file = EnvFile.read(command.folder / ENV_FILE)
    if file is None:
        raise ConfigError(f"{str((command.folder / ENV_FILE).resolve())!r} is not there; make it")
    if command.forget:
        file.take_trust()
    else:
        file.give_trust()
    names = list(file.variables(refer=False))
    if output.json:
        output.show_json({"file": str(file.path), "trusted": not command.forget, "sets": names})
    else:
        how = "is not trusted any more" if command.forget else "is trusted until it changes"
        output.say(f"{str(file.path)!r} {how}; it sets {', '.join(names) or 'nothing'}")
