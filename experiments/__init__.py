"""Studies of storm-rl, run, resumed and reported by command: ``python -m experiments --help``.

One word for one thing:

- *Study*: a question that one command answers, and its one folder, ``runs/<study>`` (published:
  ``experiments/results/<study>``). The code is `experiments.studies`, a module or package each.
- *Run*: one training with one seed, stored whole or not at all, and not repeated once it is stored.
- *Agent*: what trains in a run: a name among `agents.CONTESTANTS`, whose entries say how each is built, or a variant of
  one with its arguments, as ``storm_plus_pg[momentum=1.0]``. On batched environments it is reported as an agent of its
  own. (The column ``contestant`` of a report's ``runs.csv`` holds the names as reported.)
- *Grid*: the settings that a search tries.
- *Rows*: the CSV file in which a study keeps what it measured, a row each (`experiments.rows`).
- *Report*: tables, figures and pages made of stored runs or rows; making it measures nothing.
"""
