"""What a selection is worth: the `Reward` that a recipe names, and how it is found."""

from dro_rl.reward.base import Need, Reward, Scale
from dro_rl.reward.loading import load_reward

__all__ = ["Need", "Reward", "Scale", "load_reward"]
