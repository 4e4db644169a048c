"""What is told of a run at an evaluation: returns from fresh initial states, diagnostics, and means since the last."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx2_jax import kernels
from rlx2_jax.analysis import diagnostics
from rlx2_jax.config import HParams, Schedule
from rlx2_jax.networks import Masked, masking, structure
from rlx2_jax.replay import buffer
from rlx2_jax.training import evaluation
from rlx2_jax.training.state import FURTHER_KEY, Report, TrainState, empty_tally
from rlx2_jax.training.trainer import Trainer, n_step_now


def report(trainer: Trainer, state: TrainState, hparams: HParams, schedule: Schedule) -> tuple[TrainState, Report]:
    """Evaluate the present policy.

    Returns:
      The state with an empty tally, and the report; `docs/files.md` says what its columns are.
    """
    config, agent = trainer.config, state.agent
    policy = lambda observation: trainer.agent.mode(agent.actor, observation)
    first = jax.tree.map(lambda x: x[: config.eval_episodes], state.envs.pool)
    returns = evaluation.play(trainer.env, policy, first, config.episode_length, hparams.gamma)
    actor, critic = agent.actor.masked(), agent.critic.masked()
    pairs = jnp.concatenate([first.observation, policy(first.observation)], -1)
    q = trainer.agent.value_of(critic.net.activations(critic.params, pairs)[1])
    tally, progress = state.tally, state.progress
    values = {
        "env_steps": progress.env_steps,
        "updates": progress.critic_calls,
        "return_mean": returns.plain.mean(),
        "return_std": returns.plain.std(),
        "train_return": tally.episode_return / tally.episodes,
        **jax.tree.map(lambda s: s / tally.iterations, tally.learning),
        "actor_sparsity": masking.sparsity(actor.mask),
        "critic_sparsity": masking.sparsity(critic.mask),
        "links_dropped": tally.links_dropped,
        "links_grown": tally.links_grown,
        "policy_distance": state.policy_distance,
        "replay_size": buffer.size(state.replay),
        "n_step": n_step_now(hparams, progress.critic_calls >= schedule.n_step_delay),
        "nonfinite": state.nonfinite,
        "return_discounted": returns.discounted.mean(),
        "value_bias": jnp.mean(q - returns.discounted),
        **diagnose(trainer, state, actor, critic, hparams),
    }
    emptied = empty_tally(jax.tree.map(jnp.zeros_like, tally.learning))
    return state.replace(tally=emptied), values


def diagnose(trainer: Trainer, state: TrainState, actor: Masked, critic: Masked, hparams: HParams) -> Report:
    """How both networks are wired and which of their units work, on replayed observations."""
    # A key of its own: diagnostics leave no trace in a run.
    sample_key = jax.random.fold_in(kernels.fast_key(state.key), FURTHER_KEY)
    n_max, one = trainer.config.n_max, jnp.asarray(1)
    batch = buffer.sample(state.replay, sample_key, (diagnostics.SAMPLES,), one, n_max, hparams.gamma)
    pairs = jnp.concatenate([batch.observation, batch.action], -1)
    order = structure.orders(trainer.config, trainer.env.observation_size, trainer.env.action_size)
    values: Report = {}
    for name, network, inputs in (("actor", actor, batch.observation), ("critic", critic, pairs)):
        width, events = getattr(hparams, f"{name}_width"), getattr(state.tally, name)
        hidden, _ = network.net.activations(network.params, inputs)
        kernels_of = masking.kernels(network.mask)
        found = diagnostics.wiring([kernels_of[i] for i in order[name]], width) | {
            "churn": events.grown / masking.count(network.mask),
            "overlap": diagnostics.overlap(network.mask, state.first_masks[name]),
            "dormant": diagnostics.dormant(hidden, width),
            "gradient_snr": events.signal_to_noise / events.count,
        }
        if name == "critic":
            found["rank"] = diagnostics.effective_rank(hidden[-1]).mean()
        values |= {f"{name}_{what}": value for what, value in found.items()}
    return values
