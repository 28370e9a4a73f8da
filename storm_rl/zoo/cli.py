"""``storm-rl-zoo``: RL Zoo's scripts with this package's algorithms among its own."""

import argparse
import importlib
import runpy
import sys

from storm_rl.zoo.algorithms import ALGORITHMS
from storm_rl.zoo.registration import MissingExtraError, register
from storm_rl.zoo.settings import hyperparameter_file

# Name on the command line: RL Zoo's module and its function; None if the module is a script.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "train": ("rl_zoo3.train", "train"),
    "enjoy": ("rl_zoo3.enjoy", "enjoy"),
    "record_video": ("rl_zoo3.record_video", None),
    "plot": ("rl_zoo3.plots.plot_train", "plot_train"),
    "plot_from_file": ("rl_zoo3.plots.plot_from_file", "plot_from_file"),
    "all_plots": ("rl_zoo3.plots.all_plots", "all_plots"),
}

USAGE = f"""usage: storm-rl-zoo {{{",".join(COMMANDS)}}} [RL Zoo's options]

RL Zoo's scripts with {", ".join(ALGORITHMS)} among its algorithms.
Hyperparameters of these come with storm-rl unless -conf names a file. Examples:

  storm-rl-zoo train --algo storm_plus_pg --env Acrobot-v1
  storm-rl-zoo enjoy --algo storm_plus_pg --env Acrobot-v1 -f logs
  storm-rl-zoo record_video --algo storm_plus_pg --env Acrobot-v1 -f logs
  storm-rl-zoo plot -a storm_plus_pg -e Acrobot-v1 -f logs
  storm-rl-zoo train --algo svrpg --env CartPole-v1 -optimize --n-trials 20 -n 20000

storm-rl-zoo COMMAND --help lists RL Zoo's options of that command."""


def with_hyperparameter_file(arguments: list[str]) -> list[str]:
    """The arguments of ``train``, and ``-conf`` with this package's file where it is wanted and not given."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("-conf", "--conf-file")
    known, _ = parser.parse_known_args(arguments)
    if known.conf_file is None and known.algo in ALGORITHMS:
        # First: options that take several values would swallow whatever follows the last of them.
        return ["--conf-file", str(hyperparameter_file(known.algo)), *arguments]
    return arguments


def main() -> None:
    """Entry point of the console script."""
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command not in COMMANDS:
        sys.exit(f"storm-rl-zoo: unknown command {command!r}\n\n{USAGE}")
    # The scripts read sys.argv.
    module, function = COMMANDS[command]
    try:
        register()
        if command == "train":
            arguments = with_hyperparameter_file(arguments)
        sys.argv = [f"storm-rl-zoo {command}", *arguments]
        if function is None:
            runpy.run_module(module, run_name="__main__")
            return
        script = getattr(importlib.import_module(module), function)
    except MissingExtraError as error:
        sys.exit(f"storm-rl-zoo: {error}")
    except ImportError as error:
        sys.exit(f"storm-rl-zoo: {MissingExtraError(error)}")
    script()


if __name__ == "__main__":
    main()
