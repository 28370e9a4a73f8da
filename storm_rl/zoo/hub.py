"""Models for the Hugging Face hub: a folder with the saved model and a card that says what it is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import storm_rl
from storm_rl.common.resumable_algorithm import constructor_parameters
from storm_rl.zoo.algorithms import ALGORITHMS
from storm_rl.zoo.registration import MissingExtraError

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Arguments of the constructors that do not change what is learned.
_NO_SETTINGS = {"policy", "env", "stats_window_size", "tensorboard_log", "verbose", "seed", "device"}

_TEMPLATE = Path(__file__).with_name("model_card.md")


def model_card(
    model: BaseAlgorithm, env_id: str, repo_id: str, mean_return: float, std_return: float, n_episodes: int
) -> "ModelCard":
    """The card of a trained model; ``str(card)`` is the text of its ``README.md``.

    ``repo_id`` is ``"owner/name"`` on the hub, for the example; the returns are of the deterministic policy, over
    ``n_episodes`` episodes.

    Raises:
        MissingExtraError: ``huggingface_hub`` or ``huggingface_sb3`` is not installed.
        ValueError: The model is not of one of this package's algorithms.
    """
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError as error:
        raise MissingExtraError(error) from error
    class_name = type(model).__name__
    task, metric = "reinforcement-learning", "mean_reward"
    # In the form that the hub's leaderboards read.
    value = f"{mean_return:.2f} +/- {std_return:.2f}"
    result = EvalResult(task, env_id, env_id, metric, value, task_name=task, metric_name=metric)
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "storm-rl"],
        model_name=class_name,
        eval_results=[result],
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        class_name=class_name,
        env_id=env_id,
        repo_id=repo_id,
        filename=_file_name(model, env_id),
        mean=f"{mean_return:.2f}",
        std=f"{std_return:.2f}",
        n_episodes=n_episodes,
        num_timesteps=f"{model.num_timesteps:,}",
        n_envs=model.n_envs,
        seed=model.seed,
        policy=model.policy_class.__name__,
        versions=f"storm-rl {storm_rl.__version__}, stable-baselines3 {stable_baselines3.__version__}, "
        f"gymnasium {gymnasium.__version__}",
        settings=_settings(model),
    )
    return card


def save_for_hub(
    model: BaseAlgorithm, env_id: str, folder: str | Path, repo_id: str, n_episodes: int = 100, eval_seed: int = 1_000
) -> Path:
    """Evaluate the model and write what a repository on the hub holds: the saved model and ``README.md``.

    The saved model has the name that `huggingface_sb3` and RL Zoo look for, ``<algorithm>-<environment>.zip``. Nothing
    is sent anywhere; ``huggingface_sb3.push_to_hub`` or ``hf upload`` do that.

    Returns:
        The path of the saved model.

    Raises:
        MissingExtraError: ``huggingface_hub`` or ``huggingface_sb3`` is not installed.
        ValueError: The model is not of one of this package's algorithms.
    """
    name = _file_name(model, env_id)
    returns, _ = evaluate_policy(
        model, make_vec_env(env_id, seed=eval_seed), n_eval_episodes=n_episodes, return_episode_rewards=True
    )
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    card = model_card(model, env_id, repo_id, float(np.mean(returns)), float(np.std(returns)), n_episodes)
    path.with_name("README.md").write_text(str(card), encoding="utf-8")
    return path


def _file_name(model: BaseAlgorithm, env_id: str) -> str:
    try:
        from huggingface_sb3 import EnvironmentName, ModelName
    except ImportError as error:
        raise MissingExtraError(error) from error
    names = [row.name for row in ALGORITHMS.values() if type(model) is row.algorithm]
    if not names:
        raise ValueError(f"model must be of one of {', '.join(ALGORITHMS)}, got {type(model).__name__}")
    return str(ModelName(names[0], EnvironmentName(env_id)).filename)


def _settings(model: BaseAlgorithm) -> dict[str, Any]:
    names = constructor_parameters(type(model))
    return {name: getattr(model, name) for name in names if name not in _NO_SETTINGS and not name.startswith("_")}
