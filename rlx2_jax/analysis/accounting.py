"""Parameters, bytes and FLOPs of a configuration, and Table 2 of the paper recomputed from them.

Arithmetic on the host; nothing is compiled or allocated. `python -m rlx2_jax.analysis.accounting` prints
Table 2.

**Size.** Links of the online and target networks: TD3 has 2 actors and 4 critics, SAC 1 actor and
4 critics. Biases are always dense and, as in the paper, not counted.

**FLOPs(test).** One evaluation of the actor per observation: a multiply and an add per link.
Relative to the dense agent this is the actor's density.

**FLOPs(train).** Per critic update and transition of its batch, averaged over a policy-delay cycle
and over the run. Let `a` be the FLOPs of one forward pass of the actor and `c` of one critic, 2 per
link. A backward pass costs two forward passes: one for the gradient of the weights, one for that of
the inputs (the convention of Evci et al., 2020). The passes made
by an update (what differs between agents they say as `passes`):

    critic update    actor at s'                                         a
                     actor at the states between s and s'                m a
                     both target critics at (s', a')                     2 c
                     both critics at (s, a), forward and backward        2 x 3 c
    actor update     actor at s, forward and backward                    3 a
    (every d-th)     critics at (s, pi(s)), forward, and backward to
                     the action only: TD3 one critic, SAC both           TD3 2 c, SAC 4 c

A window of n steps costs TD3 no pass: `m = 0`. SAC adds an entropy term for each of the `n_max - 1`
states inside it once the one-step delay is over: `m = (n_max - 1) x (share of the critic updates
that come after n_step_delay)`, 1.80 in the paper's 3 million steps. With densities `d_`, and
`a = c` to within a few percent when dense,

                 passes               of the dense agent's    relative
    TD3, d = 2   2.5 a + 9 c          2.5 a + 9 c             0.22 d_actor + 0.78 d_critic
    SAC, d = 1   (4 + m) a + 12 c     4 a + 12 c              0.36 d_actor + 0.75 d_critic

The dense agent has the same shape and one-step targets. A topology event takes the gradient of its
network's loss once more on each of its `score_batches`, that of the weights dense; spread over
`evolve_interval` updates this is counted, 3e-5 of the dense total at the paper's interval. Not
counted are elementwise operations, and acting, evaluation and buffer checks: about three passes of
the actor per environment step, where an update makes 11.5 or 16 for each of 256 transitions, so 0.1
percent.

Where a method changes the number of links, FLOPs(train) is that of its links on average over the run; size
and FLOPs(test) are those of its end.

The first matrix of a network has no gradient to pass on to the data, and the program does not form
it. `flops_train_exact` leaves it out: the operations in the program's matrix products, if each
touched links only. This lowers the ratios, because the first matrix has a larger share of a sparse
network's links than of a dense one's.

**Distance to the paper.** Its formula for FLOPs(train) is not known to us. `TRAIN_NOTE`, printed
under the table, says what the differences come from.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from rlx2_jax.config import Config, RunConfig, presets, registry, resolve
from rlx2_jax.networks.structure import Structure, mean_progress, structure
from rlx2_jax.replay import buffer

FLOAT_BYTES = 4
"""Bytes of a value."""
INDEX_BYTES = 4
"""Bytes of an index of a packed matrix."""

SCALARS = 2
"""Step counts of two Adams."""


@dataclasses.dataclass(frozen=True)
class Account:
    """What a configuration holds and computes. Ratios: to the dense one-step agent of its shape."""

    actor_links: tuple[int, ...]
    """Links of each actor matrix, in the order of `masking.kernels`."""
    critic_links: tuple[int, ...]
    """The same for one of the two critics."""
    actor_weights_dense: int
    """Weights of the dense actor, without biases."""
    critic_weights_dense: int
    """The same for one critic."""
    biases: int
    """Biases of the online networks: actor and both critics."""
    parameters: int
    """Links and biases of the online networks."""
    size: int
    """Links of online and target networks."""
    size_ratio: float
    """`size` over that of the dense agent."""
    flops_test: int
    """FLOPs per observation of the policy."""
    flops_test_ratio: float
    """The actor's density."""
    flops_train: float
    """FLOPs per critic update and transition; multiply by `batch_size` for an update."""
    flops_train_ratio: float
    """`flops_train` over that of the dense agent."""
    flops_train_exact: float
    """The same without the input gradients of first matrices, which are never formed."""
    flops_train_exact_ratio: float
    """`flops_train_exact` over that of the dense agent."""
    bytes_state: int
    """Bytes of `AgentState`, masked-dense: float32 values, targets and Adam moments, 1-byte masks."""
    bytes_packed: int
    """The same of a packed run."""
    bytes_replay: int
    """Bytes of the replay ring."""


def account(config: Config, observation_size: int, action_size: int) -> Account:
    """Count what a configuration holds and computes, for an environment of the given sizes.

    Args:
      config: resolved or not.
      observation_size: entries of an observation.
      action_size: entries of an action.

    Raises:
      ConfigError: a configuration that cannot be.
    """
    c = resolve(config)
    found = structure(c, observation_size, action_size)
    actor, critic = (_Network.of(found[name], mean_progress(c, name)) for name in ("actor", "critic"))
    passes = registry.find(c.agent).passes
    actors = 1 + passes.actor_target  # Online and target.
    scalars = (SCALARS + passes.own_scalars) * FLOAT_BYTES
    size = actors * actor.total_links + 4 * critic.total_links
    whole, whole_dense = (_train(c, actor, critic, dense=d, exact=False) for d in (False, True))
    exact, exact_dense = (_train(c, actor, critic, dense=d, exact=True) for d in (False, True))
    biases = actor.biases + 2 * critic.biases
    return Account(
        actor_links=actor.links,
        critic_links=critic.links,
        actor_weights_dense=sum(actor.weights),
        critic_weights_dense=sum(critic.weights),
        biases=biases,
        parameters=actor.total_links + 2 * critic.total_links + biases,
        size=size,
        size_ratio=size / (actors * sum(actor.weights) + 4 * sum(critic.weights)),
        flops_test=2 * actor.total_links,
        flops_test_ratio=actor.total_links / sum(actor.weights),
        flops_train=whole,
        flops_train_ratio=whole / whole_dense,
        flops_train_exact=exact,
        flops_train_exact_ratio=exact / exact_dense,
        bytes_state=actor.bytes_state(target=actors > 1) + 2 * critic.bytes_state(target=True) + scalars,
        bytes_packed=actor.bytes_packed(target=actors > 1) + 2 * critic.bytes_packed(target=True) + scalars,
        bytes_replay=buffer.num_bytes(
            buffer.ring_size(c.buffer_max), c.num_envs, c.episode_length, observation_size, action_size
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Network:
    """Links of one network."""

    structure: Structure
    links: tuple[int, ...]
    """Links of each matrix, at the end."""
    mean_links: tuple[float, ...]
    """The same on average over a run's updates."""

    @classmethod
    def of(cls, found: Structure, progress: float) -> _Network:
        """The network as a run has it, whose numbers of links are that far on their way on average."""
        return cls(found, found.links, found.mean_links(progress))

    @property
    def dense(self) -> _Network:
        """The same with all links."""
        return _Network(self.structure, self.weights, self.weights)

    @property
    def weights(self) -> tuple[int, ...]:
        """Entries of each matrix."""
        return tuple(i * o for i, o in self.structure.shapes)

    @property
    def biases(self) -> int:
        """Parameters of units in use that are in no matrix."""
        return self.structure.others

    @property
    def total_links(self) -> int:
        """Links of all matrices: the multiply-adds of one forward pass at the end."""
        return sum(self.links)

    def bytes_state(self, *, target: bool) -> int:
        """Bytes as arrays of the full shapes: value, two moments, maybe a target, a mask (biases too)."""
        return (sum(self.weights) + self.structure.others_held) * ((3 + target) * FLOAT_BYTES + 1)

    def bytes_packed(self, *, target: bool) -> int:
        """Bytes as vectors of links and biases, with each matrix's `kernels.packing.SparseIndices`."""
        places = sum(self.structure.capacities)
        values = (places + self.structure.others_held) * (3 + target) * FLOAT_BYTES
        indices = 3 * places + sum(i + o + 2 for i, o in self.structure.shapes)
        return values + indices * INDEX_BYTES


def _train(config: RunConfig, actor: _Network, critic: _Network, *, dense: bool, exact: bool) -> float:
    """FLOPs(train), per critic update and transition; the module's docstring derives it.

    Args:
      config: of the run.
      actor: as configured.
      critic: one of the two.
      dense: of the dense one-step agent of that shape instead.
      exact: leave out the input gradients of first matrices.
    """
    passes = registry.find(config.agent).passes
    between = event_rate = 0.0
    if dense:
        actor, critic = actor.dense, critic.dense
    else:
        one_step_share = config.n_step_delay / config.updates
        if passes.entropy_between and config.n_step != 1:
            between = (config.n_max - 1) * max(0.0, 1 - one_step_share)
        if config.topology != "fixed":
            event_rate = config.score_batches * config.evolve_until / config.evolve_interval
    a, c = sum(actor.mean_links), sum(critic.mean_links)
    a_inputs, c_inputs = (a - actor.mean_links[0], c - critic.mean_links[0]) if exact else (a, c)
    critic_loss = (1 + between) * a + 2 * c + 2 * (c + c + c_inputs)
    actor_loss = a + a + a_inputs + passes.critics_of_actor_loss * (c + c)
    critic_event = critic_loss + 2 * (sum(critic.weights) - c)
    actor_event = actor_loss + sum(actor.weights) - a
    per_critic_update = critic_loss + event_rate * critic_event
    per_actor_update = actor_loss + event_rate * actor_event
    return 2 * (per_critic_update + per_actor_update / config.delay)


class PaperRow(NamedTuple):
    """A row of Table 2: size and FLOPs of RLx2 relative to the dense agent, as printed."""

    size: float
    """Links of online and target networks."""
    flops_train: float
    """FLOPs of an update."""
    flops_test: float
    """FLOPs of an action."""


TABLE_2 = {
    "td3/halfcheetah": PaperRow(0.133, 0.138, 0.100),
    "td3/hopper": PaperRow(0.040, 0.043, 0.020),
    "td3/walker2d": PaperRow(0.043, 0.045, 0.030),
    "td3/ant": PaperRow(0.093, 0.100, 0.040),
    "sac/halfcheetah": PaperRow(0.180, 0.197, 0.100),
    "sac/hopper": PaperRow(0.044, 0.048, 0.020),
    "sac/walker2d": PaperRow(0.100, 0.113, 0.100),
    "sac/ant": PaperRow(0.220, 0.239, 0.100),
}
"""The paper's Table 2, by preset."""

PAPER_SIZES = {"halfcheetah": (17, 6), "hopper": (11, 3), "walker2d": (17, 6), "ant": (111, 8)}
"""Observation and action sizes of the paper's MuJoCo tasks. Brax's Ant leaves out 84 contact
forces; with its 27 observations SAC's size is 0.219, with 111 the 0.220 the paper prints."""

TRAIN_NOTE = """\
FLOPs train: ours counts the passes made, a backward pass as two forward ones; "exact" leaves out
the input gradients of first matrices, which are never formed, and lies 0.002 to 0.008 below ours.
The baseline is the dense agent with one-step targets. The paper's formula is in an appendix we do
not have; d_ are densities.

TD3: ours is within 0.003 of the paper in every row.

SAC: ours is within 0.004, but for HalfCheetah (-0.011) and Ant (-0.016). The paper's rows fit
0.29 d_actor + 0.84 d_critic, ours are 0.36 d_actor + 0.75 d_critic. The difference,
0.07 d_actor - 0.09 d_critic, grows with the critic's density: 0.007 - 0.018 for HalfCheetah
(0.1 and 0.2), 0.007 - 0.023 for Ant (0.1 and 0.25). Windows cost the critics nothing, so a share of
0.84 would leave the dense actor 0.16 at most, or 2.6 of 16 passes. The passes made are 4 of the
actor (at s', at s, and one backward) and 12 of the critics. PyTorch's autograd also forms the
critics' weight gradients in the actor loss, which JAX does not; with those the critics make 14 of
18 passes, a share of 0.78, and -0.009 and -0.012 remain. What else the paper charges to the critics
is unknown.
"""
"""How FLOPs(train) relates to the paper's column, row by row."""


def table_2_report() -> str:
    """Table 2 as counted here beside the paper's, in Markdown, with `TRAIN_NOTE` below."""
    header = (
        "| agent | task        |  size | paper | FLOPs test | paper "
        "| FLOPs train | paper | difference | exact | difference |"
    )
    lines = [header, "".join(character if character == "|" else "-" for character in header)]
    for preset, paper in TABLE_2.items():
        agent, task = preset.split("/")
        ours = account(presets.make_config((preset,)), *PAPER_SIZES[task])
        train, exact = ours.flops_train_ratio, ours.flops_train_exact_ratio
        lines.append(
            f"| {agent:5} | {task:11} | {ours.size_ratio:.3f} | {paper.size:.3f} "
            f"| {ours.flops_test_ratio:10.3f} | {paper.flops_test:.3f} "
            f"| {train:11.4f} | {paper.flops_train:.3f} | {train - paper.flops_train:+10.4f} "
            f"| {exact:.3f} | {exact - paper.flops_train:+10.4f} |"
        )
    return "\n".join([*lines, "", TRAIN_NOTE])


if __name__ == "__main__":
    print(table_2_report())
