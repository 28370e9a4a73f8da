r"""Optimistic Q-learning on small finite-horizon MDPs, plain and with two ways of reducing its variance.

The target of Q-learning at a visit of :math:`(h, s, a)` is :math:`r + V_{h+1}(s')`, where :math:`V_{h+1}` is an upper
bound of the optimal value that falls as more is known: old targets are biased, new ones few. A rate of
:math:`(H+1)/(H+n)` at the n-th visit forgets the old ones, and with them all but about 1/H of the samples.

========================== ================================================= ======================================
algorithm                  how old samples are used                          among policy gradients
========================== ================================================= ======================================
`OptimisticQLearning`      forgotten                                         a gradient of a small batch
`VUCQ`                     a frozen reference is averaged over all samples,  SVRPG: a snapshot, and differences
                           the difference to it over the recent ones         from it
`UCBMQ`                    a momentum corrects the bias, at the sample of    STORM: a recursion that takes both
                           the present visit                                 points at the present sample
========================== ================================================= ======================================

Inside, rewards are shifted and scaled to [0, 1], so that with :math:`m` steps left values are in :math:`[0, m]`. An
episode that has ended early goes on, so to say, in its terminal state with rewards of 0.
"""

import math
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bonus = Literal["proved", "simplified"]


class OptimisticQLearning:
    r"""Q-learning with UCB-Hoeffding (Jin, Allen-Zhu, Bubeck, Jordan, NeurIPS 2018, Algorithm 1, arXiv 1807.03765).

    At the n-th visit of :math:`(h, s, a)`, with :math:`\alpha_n = (H+1)/(H+n)`,

    .. math::
        Q_h(s, a) &\leftarrow (1 - \alpha_n) Q_h(s, a) + \alpha_n (r + V_{h+1}(s') + b_n) \\
        V_h(s) &\leftarrow \min(H - h, \max_a Q_h(s, a)), \qquad b_n = \sqrt{H^3 \iota / n}

    and the action is greedy, at random among equal ones (all of them, as long as their bounds are above :math:`H - h`).
    With :math:`\iota = \log(SAHK/\delta)` all :math:`Q_h` are upper bounds of :math:`Q^*_h`
    in all :math:`K` episodes with probability :math:`1 - \delta`: by Azuma-Hoeffding the noise of the n-th estimate is
    below :math:`H \sqrt{\iota \sum_i (\alpha^i_n)^2 / 2}`, where its weights have :math:`\sum_i (\alpha^i_n)^2 \le
    2H/n`, and the bonuses add up to at least :math:`b_n`.

    Args:
        horizon: H, the largest number of steps.
        n_states: S.
        n_actions: A.
        n_episodes: K, the number of episodes for which the bounds are to hold.
        bonus: ``"proved"``: as above. ``"simplified"``: :math:`\min(\sqrt{1/n} + (H-h)/n, H-h)`, added to the
            estimate after each update, as in the experiments of Ménard et al. (2021), who give it to every algorithm.
            It proves nothing.
        reward_range: Least and largest reward; 0 must be between them.
        delta: Chance that some bound of some episode fails.
        seed: Of the choice between equal actions.

    Raises:
        ValueError: A size below 1, an unknown bonus, a range that is empty or without 0, ``delta`` outside (0, 1).
    """

    label: ClassVar[str] = "optimistic Q-learning"

    def __init__(
        self,
        horizon: int,
        n_states: int,
        n_actions: int,
        n_episodes: int,
        bonus: Bonus = "proved",
        reward_range: tuple[float, float] = (0.0, 1.0),
        delta: float = 0.05,
        seed: int | None = None,
    ) -> None:
        for name, size in (("horizon", horizon), ("n_states", n_states), ("n_actions", n_actions)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if n_episodes < 1:
            raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")
        if bonus not in ("proved", "simplified"):
            raise ValueError(f'bonus must be "proved" or "simplified", got {bonus!r}')
        low, high = reward_range
        if not (-math.inf < low <= 0.0 <= high < math.inf and low < high):
            raise ValueError(f"reward_range must be finite, not empty and hold 0, got {reward_range}")
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must be between 0 and 1, got {delta}")
        self.horizon = horizon
        self.bonus = bonus
        self._low, self._scale = float(low), float(high - low)
        self._log_pairs = math.log(n_states * n_actions * horizon * n_episodes / delta)
        self._n_episodes = n_episodes
        self._generator = np.random.default_rng(seed)
        self._left = np.arange(horizon, -1, -1, dtype=np.float64)
        shape = (horizon, n_states, n_actions)
        self._q = np.tile(self._left[:-1, None, None], (1, n_states, n_actions))
        self._v = np.tile(self._left[:, None], (1, n_states))
        self._visits = np.zeros(shape, dtype=np.int64)
        self._estimate = np.zeros(shape)
        self._make_tables(shape)

    def _make_tables(self, shape: tuple[int, int, int]) -> None:
        """What an algorithm keeps for each step, state and action beside the estimate."""

    @property
    def action_values(self) -> Floats:
        """Upper bounds of the optimal action values in units of the reward, ``(horizon, n_states, n_actions)``."""
        return self._bounds() * self._scale + self._low * self._left[:-1, None, None]

    def _bounds(self) -> Floats:
        # A bound above the largest value says no more than that value.
        bounds: Floats = np.minimum(self._q, self._left[:-1, None, None])
        return bounds

    def act(self, step: int, state: int) -> int:
        """An action with the largest upper bound; one of equal ones at random."""
        bounds = np.minimum(self._q[step, state], self._left[step])
        best = np.flatnonzero(bounds == bounds.max())
        return int(best[0] if len(best) == 1 else self._generator.choice(best))

    def policy(self) -> Floats:
        """Probability of each action as `act` chooses it, shape ``(horizon, n_states, n_actions)``."""
        bounds = self._bounds()
        best = bounds == bounds.max(axis=2, keepdims=True)
        probabilities: Floats = best / best.sum(axis=2, keepdims=True)
        return probabilities

    def update(self, step: int, state: int, action: int, reward: float, successor: int, terminated: bool) -> None:
        """Learn from one transition; steps of an episode in their order.

        Args:
            step: Number of steps taken before, from 0 on.
            state: The state.
            action: The action taken there.
            reward: The reward.
            successor: The next state.
            terminated: Whether the episode ended there, by a terminal state or at the horizon.

        Raises:
            ValueError: A reward that is not finite or outside ``reward_range``.
        """
        scaled = (reward - self._low) / self._scale
        if not -1e-9 <= scaled <= 1.0 + 1e-9:
            raise ValueError(f"reward {reward} is not in reward_range {(self._low, self._low + self._scale)}")
        self._visits[step, state, action] += 1
        self._learn((step, state, action), int(self._visits[step, state, action]), scaled, successor)
        if terminated:
            # All that is to come are rewards of 0. Known only now: the bounds need values that do not know successors.
            self._v[step + 1 :, successor] = -self._low / self._scale * self._left[step + 1 :]

    def _learn(self, pair: tuple[int, int, int], n: int, reward: float, successor: int) -> None:
        """Bring the bounds at ``pair``, of step, state and action, up to date, at its ``n``-th visit."""
        step, state, _ = pair
        rate = (self.horizon + 1.0) / (self.horizon + n)
        target = reward + self._v[step + 1, successor]
        if self.bonus == "proved":
            target += math.sqrt(self.horizon**3 * self._log_pairs / n)
        self._estimate[pair] += rate * (target - self._estimate[pair])
        self._q[pair] = self._estimate[pair]
        if self.bonus == "simplified":
            self._q[pair] += self._simplified_bonus(n, step)
        self._v[step, state] = min(self._left[step], self._q[step, state].max())

    def _simplified_bonus(self, n: int, step: int) -> float:
        return float(min(math.sqrt(1.0 / n) + self._left[step] / n, self._left[step]))


class _MonotoneQLearning(OptimisticQLearning):
    r"""What the two with less variance share: values that only fall, and a confidence width that measures the noise.

    The noise of an estimate is :math:`\sum_i w_i D_i`, where :math:`D_i`, of mean 0 given all before visit i, is known
    beforehand to lie in an interval of length :math:`c_i`. With :math:`W = \sum_i w_i^2 c_i^2`, which is between
    :math:`W_0` and :math:`2^J W_0`,

    .. math:: \sum_i w_i D_i \le \sqrt{\iota W}, \qquad \iota = \log(SAHK(J+1)/\delta)

    at the n-th visit of every :math:`(h, s, a)`, with probability :math:`1 - \delta`: Hoeffding's lemma makes
    :math:`\exp(\lambda \sum w_i D_i - \lambda^2 W/8)` a supermartingale; for W between :math:`2^{j-1} W_0` and
    :math:`2^j W_0` take :math:`\lambda = \sqrt{8 \iota / (2^j W_0)}`, and add up the chances of all j and n.
    """

    def _width(self, squares: float, doublings: int) -> float:
        """The bound for ``W = squares`` and ``J = doublings``."""
        return math.sqrt((self._log_pairs + math.log(doublings + 1.0)) * squares)


class UCBMQ(_MonotoneQLearning):
    r"""UCB momentum Q-learning (Ménard, Domingues, Shang, Valko, ICML 2021, arXiv 2103.01312).

    At the n-th visit of :math:`(h, s, a)`, with :math:`\alpha_n = 1/n` and :math:`\gamma_n = \frac{H}{H+n}
    \frac{n-1}{n}`,

    .. math::
        Q &\leftarrow (1 - \alpha_n) Q + \alpha_n (r + V_{h+1}(s')) + \gamma_n (V_{h+1}(s') - B(s')) \\
        B &\leftarrow (1 - \alpha_n - \gamma_n) B + (\alpha_n + \gamma_n) V_{h+1} \\
        V_h(s) &\leftarrow \min(V_h(s), \max(0, \max_a Q_h(s, a) + \beta_h(s, a)))

    :math:`Q` averages over all samples, and yet is biased by recent values only: :math:`\mathbb{E} Q = r + P B`, where
    the bias-value :math:`B` of each :math:`(h, s, a)` has the rates :math:`\alpha_n + \gamma_n = (H+1)/(H+n)` of
    Q-learning.

    The momentum, its rates and the ``"simplified"`` bonus are those of the authors' code. The paper's bonus has the
    constants of its proof of the regret; ``"proved"`` is this project's: :math:`\beta = \frac1n \sqrt{\iota \sum_{i
    \le n} c_i^2}` with :math:`c_i = 1 + \max X_i - \min X_i` and :math:`X_i = V_{h+1} + i \gamma_i (V_{h+1} - B)` as of
    visit i, since :math:`n Q_n = \sum_i (r_i + X_i(s'_i))`. B is a mean of upper bounds, so that :math:`Q + \beta` is
    one.

    Arguments and errors are those of `OptimisticQLearning`.
    """

    label = "UCBMQ"

    def _make_tables(self, shape: tuple[int, int, int]) -> None:
        self._bias_value = np.zeros((*shape, shape[1]))
        self._squared_ranges = np.zeros(shape)
        # c^2 is between 1 and (1 + H + H^2)^2.
        self._doublings = math.ceil(2.0 * math.log2(1 + self.horizon + self.horizon**2))

    def _learn(self, pair: tuple[int, int, int], n: int, reward: float, successor: int) -> None:
        step, state, _ = pair
        values, bias_value = self._v[step + 1], self._bias_value[pair]
        momentum = self.horizon / (self.horizon + n) * (n - 1) / n
        correction = values - bias_value
        target = reward + values[successor]
        self._estimate[pair] += (target - self._estimate[pair]) / n + momentum * correction[successor]
        if self.bonus == "proved":
            noisy = values + n * momentum * correction
            self._squared_ranges[pair] += (1.0 + noisy.max() - noisy.min()) ** 2
            bonus = self._width(self._squared_ranges[pair], self._doublings) / n
        else:
            bonus = self._simplified_bonus(n, step)
        bias_value += (1.0 / n + momentum) * correction
        self._q[pair] = self._estimate[pair] + bonus
        self._v[step, state] = min(self._v[step, state], max(0.0, self._q[step, state].max()))


class VUCQ(_MonotoneQLearning):
    r"""Variance-reduced upper-confidence Q-learning, after Kakade, Wang, Yang (2018, arXiv 1802.09184).

    Estimates are refined in epochs. As an epoch of :math:`(h, s, a)` begins, the present values :math:`V_{h+1}` are
    frozen as its reference :math:`\tilde V`. At the n-th visit of the epoch, with :math:`\alpha_n = (H+1)/(H+n)`,

    .. math::
        M &\leftarrow (1 - 1/n) M + (r + \tilde V(s')) / n \\
        D &\leftarrow (1 - \alpha_n) D + \alpha_n (V_{h+1}(s') - \tilde V(s')) \\
        Q_h(s, a) &\leftarrow \min(Q_h(s, a), M + D + \beta), \qquad V_h(s) \leftarrow \max_a Q_h(s, a)

    The reference, of large variance, is averaged over all samples; the difference, which changes, over recent ones, and
    its variance is small. An epoch is as long as all before it together, the first H visits long.

    The text of the paper was not at hand beyond its abstract: optimism and the successive refinement by references are
    what that describes; epochs, rates and bonus are this project's. ``"proved"``: :math:`\beta = \sqrt{\iota} (\tilde c
    / \sqrt n + \sqrt W)`, one width for each part and :math:`\delta / 2` for each, with :math:`\tilde c = 1 + \max
    \tilde V - \min \tilde V` and :math:`W \leftarrow (1 - \alpha_n)^2 W + \alpha_n^2 \max(\max_s |V_{h+1}(s) - \tilde
    V(s)|, 1/n)^2`. An epoch's samples are new to its reference, which is why earlier ones are not used again.

    Arguments and errors are those of `OptimisticQLearning`.
    """

    label = "vUCQ"

    def _make_tables(self, shape: tuple[int, int, int]) -> None:
        self._reference = np.zeros((*shape, shape[1]))
        self._difference, self._squares = np.zeros(shape), np.zeros(shape)
        # W is between 1 / n^3 and H^2 * 2H / n; two widths share delta.
        self._doublings = math.ceil(math.log2(2 * self.horizon**3 * self._n_episodes**2))
        self._log_pairs += math.log(2.0)

    def _learn(self, pair: tuple[int, int, int], n: int, reward: float, successor: int) -> None:
        step, state, _ = pair
        values, reference = self._v[step + 1], self._reference[pair]
        # Epochs begin after 0, H, 2 H, 4 H, ... visits.
        rounds = (n - 1) // self.horizon
        n -= self.horizon * 2 ** (rounds.bit_length() - 1) if rounds else 0
        if n == 1:
            reference[:] = values
        rate = (self.horizon + 1.0) / (self.horizon + n)
        difference = values[successor] - reference[successor]
        # At n = 1 both rates are 1: nothing is left of the epoch before.
        self._estimate[pair] += (reward + reference[successor] - self._estimate[pair]) / n
        self._difference[pair] += rate * (difference - self._difference[pair])
        if self.bonus == "proved":
            change = max(float((reference - values).max()), 1.0 / n)
            self._squares[pair] = (1.0 - rate) ** 2 * self._squares[pair] + (rate * change) ** 2
            bonus = self._width((1.0 + float(np.ptp(reference))) ** 2 / n, 0)
            bonus += self._width(self._squares[pair], self._doublings)
        else:
            bonus = self._simplified_bonus(n, step)
        self._q[pair] = min(self._q[pair], self._estimate[pair] + self._difference[pair] + bonus)
        self._v[step, state] = min(self._v[step, state], self._q[step, state].max())
