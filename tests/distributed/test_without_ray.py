"""The room is beside the library: nothing of it is there unless it is asked for."""

import subprocess
import sys


def test_plain_learning_imports_nothing_of_the_engine() -> None:
    script = (
        "import sys; from storm_rl import STORMPlusPG; STORMPlusPG('MlpPolicy', 'CartPole-v1', n_steps=16).learn(32);"
        "found = [name for name in sys.modules if name.split('.')[0] == 'ray' or 'storm_rl.distributed' in name];"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_ray_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "try: import storm_rl.distributed\n"
        "except ImportError as error: assert \"pip install 'storm-rl[ray]'\" in str(error), error\n"
        "else: raise AssertionError('imported')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
