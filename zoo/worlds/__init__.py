"""World models: what comes next, and agents that learn by imagining it."""

from zoo.worlds.agent import Agent, lambda_returns
from zoo.worlds.bins import Bins, symexp, symlog
from zoo.worlds.config import DramaConfig
from zoo.worlds.drama import Drama, Imagined, Remembered
from zoo.worlds.environments import Environment, Step
from zoo.worlds.gru import GRU
from zoo.worlds.latents import divergence, drawn, likeliest, unimix
from zoo.worlds.model import WorldModel
from zoo.worlds.play import AgentPlays, Played, Player, at_random, play, returns
from zoo.worlds.rollouts import beside, environment_of, horizon_errors, one_episode, read_played, rollout

__all__ = [
    "GRU",
    "Agent",
    "AgentPlays",
    "Bins",
    "Drama",
    "DramaConfig",
    "Environment",
    "Imagined",
    "Played",
    "Player",
    "Remembered",
    "Step",
    "WorldModel",
    "at_random",
    "beside",
    "divergence",
    "drawn",
    "environment_of",
    "horizon_errors",
    "lambda_returns",
    "likeliest",
    "one_episode",
    "play",
    "read_played",
    "returns",
    "rollout",
    "symexp",
    "symlog",
    "unimix",
]
