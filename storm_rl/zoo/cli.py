"""``storm-rl-zoo``: RL Zoo's scripts with this package's algorithms among its own."""

import argparse
import os
import runpy
import sys
import traceback
import warnings

from storm_rl.zoo.algorithms import ALGORITHMS, MissingExtraError, register
from storm_rl.zoo.settings import hyperparameter_file

# Name on the command line, and RL Zoo's module.
COMMANDS: dict[str, str] = {
    **{name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video")},
    "plot": "rl_zoo3.plots.plot_train",
    **{name: f"rl_zoo3.plots.{name}" for name in ("plot_from_file", "all_plots")},
}
USAGE = f"""usage: storm-rl-zoo {{{",".join(COMMANDS)}}} [RL Zoo's options]

RL Zoo's scripts with {", ".join(ALGORITHMS)} among its algorithms.
Hyperparameters of these come with storm-rl unless -conf names a file. COMMAND --help lists RL Zoo's options."""
HINT = """(--help lists the options; values are Python's, as in -params gamma:0.9 baseline:"'state_value'";
what RL Zoo needs comes with pip install "storm-rl[zoo]")"""


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


def run(command: str, arguments: list[str]) -> None:
    """Run RL Zoo's script, with ``--help`` where nothing is asked; where there is no display its plots go to files."""
    hidden = sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"} & {*os.environ}
    if command == "train":
        arguments = with_hyperparameter_file(arguments)
    elif command == "enjoy" and hidden and not {"--no-render", "--help", "-h"} & {*arguments}:
        raise ValueError("there is no display: take --no-render, or record_video")
    sys.argv = [f"storm-rl-zoo {command}", *(arguments or ["--help"])]
    # That a script was imported, and that there is no display.
    warnings.filterwarnings("ignore", "'rl_zoo3.plots|FigureCanvasAgg")
    runpy.run_module(COMMANDS[command], run_name="__main__")
    if "plot" in command and "--no-display" not in arguments:
        from matplotlib import pyplot

        for number in pyplot.get_fignums() if pyplot.get_backend().lower() == "agg" else ():
            pyplot.figure(number).savefig(f"{command}_{number}.png")
            print(f"There is no display; written to {command}_{number}.png.")


def main() -> None:
    """Entry point of the console script."""
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command not in COMMANDS:
        sys.exit(f"storm-rl-zoo: unknown command {command!r}\n\n{USAGE}")
    try:
        register()
        run(command, arguments)
    except MissingExtraError as error:
        sys.exit(f"storm-rl-zoo: {error}")
    except Exception as error:
        # Until something is learned or acts it is the arguments that are wrong.
        if {"learn", "step"} & {frame.name for frame in traceback.extract_tb(error.__traceback__)}:
            raise
        print(f"storm-rl-zoo {command}: {type(error).__name__}: {error}\n{HINT}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
