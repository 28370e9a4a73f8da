"""Exported files act as ``predict`` does, and need nothing of this package."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import storm_rl
from storm_rl import GPOMDP, SVRPG, STORMPlusPG
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.export import export_onnx, export_torchscript
from tests.contract.cases import ACTION_SPACES, IMAGE, OBSERVATION_SPACES, VECTOR, RandomEnv, parameters, small

BOX, DISCRETE = ACTION_SPACES[0], ACTION_SPACES[2]
DICT = OBSERVATION_SPACES["dict"]
LAST = {"image", "dict"}
# In another order than by name, and with names that the file has for other things.
NAMES = spaces.Dict(OrderedDict(linear=VECTOR, action=spaces.Discrete(3), add=spaces.MultiDiscrete([2, 3])))


def trained(
    action_space: spaces.Space[Any],
    observation_space: spaces.Space[Any] = VECTOR,
    algorithm: Any = STORMPlusPG,
    policy: Any = None,
    **arguments: Any,
) -> Any:
    """A small model with observation statistics of its own, and actions that depend on the observation."""
    is_image = isinstance(observation_space, spaces.Box) and observation_space.dtype == np.uint8
    kind = "MultiInput" if isinstance(observation_space, spaces.Dict) else "Cnn" if is_image else "Mlp"
    env = RandomEnv(action_space, observation_space)
    model = small(algorithm, env, policy or f"{kind}Policy", **arguments).learn(40)
    with torch.no_grad():
        model.policy.action_net.weight.normal_()
    return model


def observations(space: spaces.Space[Any], n: int) -> Any:
    """Random ones, others than those that an export is checked on."""
    if isinstance(space, spaces.Dict):
        return {key: observations(part, n) for key, part in space.spaces.items()}
    space.seed(1)
    batch = np.stack([np.asarray(space.sample()) for _ in range(n)])
    # All images of pure noise look alike.
    return batch // np.arange(1, n + 1).reshape(-1, 1, 1, 1).astype(np.uint8) if batch.dtype == np.uint8 else batch


def assert_acts_as_predict(model: Any, exported: Callable[[Any], Any], space: spaces.Space[Any] | None = None) -> None:
    """``exported`` is a function of observations of ``space``; None: of the model's."""
    for n in (1, 2, 50):
        batch = observations(space or model.observation_space, n)
        expected = model.predict(batch, deterministic=True)[0]
        actual = exported(batch)
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(expected, axis=0)) > 1


def onnx_actions(path: Path) -> Callable[[Any], Any]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch if isinstance(batch, dict) else {"observation": batch})[0]


def torchscript_actions(path: Path) -> Callable[[Any], Any]:
    module = torch.jit.load(path)

    def act(batch: Any) -> Any:
        is_dict = isinstance(batch, dict)
        return module({k: torch.as_tensor(v) for k, v in batch.items()} if is_dict else torch.as_tensor(batch)).numpy()

    return act


# Each kind of action and of observation once; TorchScript below has the same network in more variants.
@pytest.mark.parametrize(
    ("action_space", "observation_space"),
    [
        (ACTION_SPACES[1], OBSERVATION_SPACES["channels_first"]),
        (DISCRETE, OBSERVATION_SPACES["float64"]),
        (spaces.MultiDiscrete([2, 3]), NAMES),
        (spaces.MultiBinary(2), OBSERVATION_SPACES["multi_binary"]),
    ],
    ids=["box", "discrete", "multi_discrete", "multi_binary"],
)
def test_onnx_acts_as_predict(action_space: Any, observation_space: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = trained(action_space, observation_space)
    export_onnx(model, tmp_path / "policy.onnx")
    assert_acts_as_predict(model, onnx_actions(tmp_path / "policy.onnx"))


def test_onnx_takes_the_environments_own_images_and_other_entries(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = trained(BOX, DICT, SVRPG)
    export_onnx(model, tmp_path / "policy", channels_last=True, opset_version=17)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    assert_acts_as_predict(model, onnx_actions(tmp_path / "policy.onnx"), DICT)

    onnx = pytest.importorskip("onnx").load(tmp_path / "policy.onnx")
    assert {entry.domain: entry.version for entry in onnx.opset_import}[""] == 17
    inputs = {value.name: value.type.tensor_type for value in onnx.graph.input}
    assert {name: value.shape.dim[0].dim_param for name, value in inputs.items()} == dict.fromkeys(DICT.keys(), "batch")
    assert [dim.dim_value for dim in inputs["image"].shape.dim[1:]] == [36, 36, 1]
    assert [value.name for value in onnx.graph.output] == ["action"]


VARIANTS: dict[str, dict[str, Any]] = {
    **{f"to {space}": {"action_space": space} for space in ACTION_SPACES},
    "to float64": {"action_space": spaces.Box(-1.0, 2.0, (2,), np.float64)},
    # Images with the channels last are below.
    **{
        f"of {name}": {"observation_space": OBSERVATION_SPACES[name]} for name in OBSERVATION_SPACES if name not in LAST
    },
    "of names in the way": {"observation_space": NAMES},
    "family": {"algorithm": GPOMDP},
    "no gSDE": {"use_sde": False},
    "squashed": {"policy_kwargs": {"squash_output": True}},
    "ELU": {"policy_kwargs": {"activation_fn": torch.nn.ELU}},
    "not standardised": {"policy_kwargs": {"normalize_observations": False}},
    "images as they are": {"observation_space": IMAGE, "policy_kwargs": {"normalize_images": False}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_torchscript_acts_as_predict(variant: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**{"action_space": BOX, **variant})
    export_torchscript(model, tmp_path / "policy")
    assert_acts_as_predict(model, torchscript_actions(tmp_path / "policy.pt"))


@pytest.mark.parametrize("space", [IMAGE, DICT], ids=["image", "dict"])
def test_torchscript_takes_the_environments_own_images(space: spaces.Space[Any], tmp_path: Path) -> None:
    model = trained(BOX, space)
    export_torchscript(model, tmp_path / "policy.pt", channels_last=True)
    assert_acts_as_predict(model, torchscript_actions(tmp_path / "policy.pt"), space)


def test_actions_are_clipped_and_in_the_environments_units(tmp_path: Path) -> None:
    model = trained(spaces.Box(-3.0, 9.0, (1,), np.float32))
    export_torchscript(model, tmp_path / "policy.pt")
    actions = torchscript_actions(tmp_path / "policy.pt")(observations(VECTOR, 200))
    assert actions.min() == -3.0
    assert actions.max() == 9.0
    assert ((actions > -3.0) & (actions < 9.0)).any()


class Layers(BaseFeaturesExtractor):
    """Layers whose form depends on the shape and the mode."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(space, 6)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout())

    def forward(self, batch: Any) -> Any:
        return self.layers(batch).reshape(batch.shape[0], 2, 3).flatten(1)


class Mirrored(StandardisedActorCriticPolicy):
    """Acts the other way round, and has a `forward` for training alone."""

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values * 1.0, log_prob

    def _predict(self, observation: Any, deterministic: bool = False) -> Any:
        return -super()._predict(observation, deterministic)


def test_own_policies_and_extractors_are_exported_whole(tmp_path: Path) -> None:
    model = trained(BOX, policy=Mirrored, policy_kwargs={"features_extractor_class": Layers})
    export_torchscript(model, tmp_path / "policy.pt")
    assert_acts_as_predict(model, torchscript_actions(tmp_path / "policy.pt"))


def test_policies_of_sb3_are_exported_too(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", RandomEnv(BOX), n_steps=8, batch_size=8, device="cpu", use_sde=True).learn(8)
    export_torchscript(model, tmp_path / "policy.pt")
    assert_acts_as_predict(model, torchscript_actions(tmp_path / "policy.pt"))


class Branching(Layers):
    """Has another form for each sign of the first number."""

    def forward(self, batch: Any) -> Any:
        return super().forward(batch if batch[0, 0] > 0 else batch - 5.0)


class InNumpy(StandardisedActorCriticPolicy):
    """Changes actions where torch does not see it."""

    def predict(self, *arguments: Any, **options: Any) -> Any:
        actions, state = super().predict(*arguments, **options)
        return actions * 0.5, state


@pytest.mark.parametrize(
    ("export", "arguments", "message"),
    [
        (export_onnx, {"policy_kwargs": {"features_extractor_class": Branching}}, "cannot be exported to ONNX"),
        (
            export_torchscript,
            {"policy_kwargs": {"features_extractor_class": Branching}},
            "not what its network computes",
        ),
        (export_torchscript, {"policy": InNumpy}, "predict of InNumpy is not what its network computes"),
    ],
    ids=["traced", "checked", "numpy"],
)
def test_what_cannot_be_exported_is_refused_and_leaves_the_old_file(
    export: Any, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if export is export_onnx:
        pytest.importorskip("onnxscript")
    path = tmp_path / "policy.pt"
    path.write_bytes(b"old")
    validate = torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match=message):
        export(trained(BOX, **arguments), path)
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"old")]
    assert torch.distributions.Distribution._validate_args == validate


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="DQN with DQNPolicy"):
        export_torchscript(DQN("MlpPolicy", "CartPole-v1", device="cpu"), tmp_path / "policy")
    with pytest.raises(TypeError, match="'CartPole'"):
        export_torchscript("CartPole", tmp_path / "policy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"channels_last=True, but there are no images in Box"):
        export_torchscript(small(STORMPlusPG), tmp_path / "policy", channels_last=True)
    assert not list(tmp_path.iterdir())


def test_operators_that_an_old_opset_lacks_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=r"opset_version=7: this policy's operators need \d+"):
        export_onnx(trained(BOX), tmp_path / "policy", opset_version=7)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "storm-rl\[onnx\]"'):
        export_onnx(small(STORMPlusPG), tmp_path / "policy")


def test_statistics_outside_the_policy_are_warned_of(tmp_path: Path) -> None:
    model = small(STORMPlusPG, VecNormalize(DummyVecEnv([RandomEnv])))
    with pytest.warns(UserWarning, match="VecNormalize, whose statistics are not in the file"):
        export_torchscript(model, tmp_path / "policy.pt")
    assert_acts_as_predict(model, torchscript_actions(tmp_path / "policy.pt"))


@pytest.mark.slow
def test_files_run_without_this_package_and_training_goes_on_as_if_none_were_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    outcomes = []
    for exports in (True, False):
        model = small(STORMPlusPG, RandomEnv(BOX)).learn(40)
        if exports:
            export_onnx(model, tmp_path / "policy.onnx")
            export_torchscript(model, tmp_path / "policy.pt")
        outcomes.append(parameters(model.learn(40)))
    assert torch.equal(*outcomes)

    here = str(Path(storm_rl.__file__).parent).encode()
    assert not any(here in path.read_bytes() or b"test_export" in path.read_bytes() for path in tmp_path.iterdir())
    program = """
import sys
import numpy, onnxruntime
action = onnxruntime.InferenceSession("policy.onnx").run(None, {"observation": numpy.ones((2, 3), "float32")})[0]
assert "torch" not in sys.modules
import torch
assert numpy.allclose(torch.jit.load("policy.pt")(torch.ones(2, 3)), action, atol=1e-5)
assert not {"storm_rl", "stable_baselines3", "gymnasium"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
