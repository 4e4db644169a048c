"""One run as an HTML page that loads nothing: what it was, how it went, what it left, and how to use that.

`page.html` is the page's head and style; its body is made here, of sections that are functions of the run. What a
section needs and the run has not left is said there in a sentence. Equal runs make equal bytes. Nothing of the page
runs; the episode, which does, is a page of its own inside (see `viewer`).
"""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from rlx2_jax.analysis import accounting
from rlx2_jax.analysis.accounting import Account
from rlx2_jax.config import Config, RunConfig, methods, written
from rlx2_jax.envs import JAX
from rlx2_jax.errors import ConfigError, RlxError
from rlx2_jax.networks.structure import orders, structure
from rlx2_jax.runtime.memory import format_bytes
from rlx2_jax.viz import inline, panels
from rlx2_jax.viz.curves import legible
from rlx2_jax.viz.panels import Panel, RecordedRun

TABLE_ROWS = 100
"""Most evaluations in the table of numbers."""

GROUPS = {
    "Task": "env",
    "Length": "total_steps",
    "Agent": "agent",
    "Method": "method",
    "Lottery ticket": "ticket",
    "Topology evolution": "drop_fraction",
    "Multi-step targets": "n_step_delay",
    "Replay": "buffer_max",
    "Readings of the method": "initial_mask",
    "Computation": "compute",
    "Evaluation and bookkeeping": "eval_every",
}
"""Groups of settings, each by its first one in the order of their declaration."""

NO_EPISODE = "This page was made without an episode; python experiments/report.py --workdir=... makes it with one."
"""In the place of an episode."""


def page(run: RecordedRun, episode: bytes | None = None, why_not: str = NO_EPISODE) -> bytes:
    """The page, UTF-8.

    Args:
      run: what its directory holds.
      episode: a page of `viewer.page`, to be shown inside.
      why_not: a sentence in its place.
    """
    sections: dict[str, tuple[str, Callable[[], str]]] = {
        "curves": ("Curves", lambda: _curves(run)),
        "masks": ("Masks", lambda: _masks(run)),
        "rollout": ("Rollout", lambda: _episode(episode, why_not)),
        "sizes": ("Size and FLOPs", lambda: _sizes(run)),
        "time": ("Time", lambda: _time(run)),
        "use": ("Use the policy", lambda: _use(run)),
        "configuration": ("Configuration", lambda: _settings(run.config)),
    }
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in sections.items())
    body = [f'<header>{_head(run)}<nav aria-label="Sections">{links}</nav></header>', "<main>"]
    for name, (title, make) in sections.items():
        body.append(f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>')
        try:
            body.append(make())
        except RlxError as error:
            body.append(_lacks(str(error)))
        body.append("</section>")
    body += ["</main>", "<footer>This page is one file and loads nothing. Curves and tables are of metrics.jsonl, "
             "summary.json, config.json and topology.npz beside it.</footer>"]  # fmt: skip
    template = importlib.resources.files("rlx2_jax.viz").joinpath("page.html").read_text(encoding="utf-8")
    head, tail = template.split("@BODY@")
    return (head.replace("@TITLE@", _text(_title(run.config))) + "\n".join(body) + tail).encode()


def _text(value: Any) -> str:
    return html.escape(legible(str(value)))


def _lacks(sentence: str) -> str:
    return f'<p class="lacks">{_text(sentence[:1].upper() + sentence[1:])}</p>'


def _list(entries: Mapping[str, str]) -> str:
    """Names and what they are, the latter as HTML."""
    return '<dl class="list">' + "".join(f"<dt>{_text(k)}</dt><dd>{v}</dd>" for k, v in entries.items()) + "</dl>"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells, the first of a row naming it."""
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    top = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    return _scrolled(
        caption,
        f"<table><caption>{_text(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>",
    )


def _scrolled(name: str, content: str) -> str:
    """Content that may be wider than the page; a keyboard can move it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(name)}">{content}</div>'


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _title(c: RunConfig) -> str:
    return f"{c.method} {c.agent} on {c.env}, seed {c.seed}"


# The head.


def _head(run: RecordedRun) -> str:
    c, summary = run.config, run.summary or {}
    physics = "a JAX function of its own" if c.backend == JAX else c.backend
    origin = {
        "directory": _text(run.name),
        "task": f"{_text(c.env)}, simulated by {_text(physics)}, episodes of {c.episode_length:,} steps",
        "agent": f"{_text(c.agent)} with networks {_text(c.network)} {_text('-'.join(map(str, c.hidden)))}",
        "method": f"{_text(c.method)}, seed {c.seed}",
        "commit": _text(summary.get("commit") or "not recorded"),
        "device": _text(summary.get("device") or "not recorded"),
        "networks computed": _text(summary.get("compute", c.compute)),
        "versions": _text(", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items()) or "not recorded"),
    }
    return (
        f"<h1>{_text(c.method)} {_text(c.agent)} on {_text(c.env)}</h1>"
        f'<p class="state">{_text(_state(run))}</p>{_facts(run)}{_list(origin)}{_again(run)}'
    )


def _state(run: RecordedRun) -> str:
    """How far the run came."""
    total = run.config.total_steps
    if run.summary is None:
        reached = run.rows[-1]["env_steps"] if run.rows else 0
        return f"{run.lacking['summary']} Last evaluation: step {reached:,} of {total:,}."
    if run.summary["finished"]:
        return f"Finished: {run.summary['env_steps']:,} environment steps, {run.summary['updates']:,} critic updates."
    if run.summary.get("diverged"):
        return f"Diverged by step {run.summary['env_steps']:,} of {total:,}: its numbers were no longer finite."
    return f"Ended before its end, at step {run.summary['env_steps']:,} of {total:,}; --resume goes on."


def _facts(run: RecordedRun) -> str:
    """The numbers that a person looks for first."""
    c, facts = run.config, list[tuple[str, str, str]]()
    if run.rows:
        last = [row["return_mean"] for row in run.rows[-c.score_evaluations :]]
        best = max(run.rows, key=lambda row: row["return_mean"])
        what = f"mean return of the last {len(last)} of {len(run.rows)} evaluations, {c.eval_episodes} episodes each"
        facts += [
            ("score", f"{np.mean(last):,.1f}", f"{what}; they lie from {min(last):,.1f} to {max(last):,.1f}"),
            (
                "best evaluation",
                f"{best['return_mean']:,.1f}",
                f"at step {best['env_steps']:,}; the best of many flatters",
            ),
        ]
    facts.append(("sparsity", f"{_percent(c.actor_sparsity)} / {_percent(c.critic_sparsity)}", "actor / critics"))
    if run.sizes is not None:
        try:
            account = accounting.account(c, *run.sizes)
        except ConfigError:  # Said where sizes are.
            pass
        else:
            facts += [
                ("size", f"{account.size_ratio:.3f}", "of the dense agent's links, targets included"),
                ("FLOPs to train", f"{account.flops_train_ratio:.3f}", "of the dense agent's, per update"),
                ("FLOPs to act", f"{account.flops_test_ratio:.3f}", "of the dense agent's, per action"),
            ]
    cells = "".join(f"<div><dt>{a}</dt><dd>{_text(b)}<small>{_text(about)}</small></dd></div>" for a, b, about in facts)
    return f'<dl class="facts">{cells}</dl>'


def _again(run: RecordedRun) -> str:
    try:
        settings = written(run.config)
    except ConfigError as error:
        return _lacks(f"there is no command to make this run again here: {error}")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    flags = [f"--{name}={_spelled(fields[name], value)}" for name, value in settings.items()]
    words = ["python", "experiments/train.py", *map(shlex.quote, flags)]
    command = " ".join(f'<span class="word">{_text(word)}</span>' for word in words)
    return f'<h3>Make it again</h3><pre class="wrap"><code>{command}</code></pre>'


def _spelled(field: dataclasses.Field[Any], value: Any) -> str:
    """A setting as its flag takes it; of a place the last part, for the others are of one machine."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:.10g}"
        return short if float(short) == value else repr(value)
    return PurePath(value).name if field.metadata["place"] and value is not None else str(value)


# Pictures.


def _pictures(run: RecordedRun, those: Iterable[Panel]) -> str:
    """Panels side by side, and below them why others are not there."""
    shown, reasons = list[str](), dict[str, list[str]]()
    for panel in those:
        title = panel.title.partition(",")[0]
        with inline.look():
            drawn = panel.draw(run)
            if isinstance(drawn, str):
                reasons.setdefault(drawn.rstrip("."), []).append(title)
                continue
            picture = inline.element(drawn.figure, panel.name, drawn.told)
        if panel.place == "broad":  # On a small screen it is moved, not made small.
            picture = _scrolled(title, picture)
        shown.append(
            f'<figure class="{panel.place}"><h3>{_text(title)}</h3>{picture}'
            f"<figcaption>{_text(panel.about)}</figcaption></figure>"
        )
    grid = f'<div class="panels">{"".join(shown)}</div>' if shown else ""
    return grid + "".join(_lacks(f"{', '.join(titles)}: {reason}.") for reason, titles in reasons.items())


def _curves(run: RecordedRun) -> str:
    if not run.rows:
        return _lacks(run.lacking["rows"])
    return _pictures(run, _measured(run, panels.CURVES)) + _numbers(run)


def _measured(run: RecordedRun, those: Iterable[Panel]) -> Iterator[Panel]:
    """Panels of columns that a run of this agent has."""
    return (
        panel for panel in those if not panel.columns or any(name in row for row in run.rows for name in panel.columns)
    )


def _numbers(run: RecordedRun) -> str:
    """The evaluations as a table, not all of many."""
    chosen = sorted({round(i) for i in np.linspace(0, len(run.rows) - 1, min(TABLE_ROWS, len(run.rows)))})
    names = [name for name in dict.fromkeys(name for row in run.rows for name in row) if name != "env_steps"]
    names.sort(key=lambda name: not name.startswith(("return_", "train_")))
    cell = lambda value: "" if value is None or not math.isfinite(value) else f"{value:,.5g}"
    rows = [[f"{run.rows[i]['env_steps']:,}", *(cell(run.rows[i].get(name)) for name in names)] for i in chosen]
    some = "" if len(chosen) == len(run.rows) else f" ({len(chosen)} of {len(run.rows)})"
    table = _table("Columns of metrics.jsonl", ["env_steps", *names], rows)
    return f"<details><summary>The evaluations{some} as numbers</summary>{table}</details>"


def _masks(run: RecordedRun) -> str:
    return _pictures(run, [*_measured(run, panels.WIRING), *panels.MASKS])


# Numbers.


def _sizes(run: RecordedRun) -> str:
    if run.sizes is None:
        return _lacks("the sizes of observations and actions are not known here: " + run.lacking["policy"])
    c = run.config
    dense = dataclasses.replace(c, method="dense", topology="fixed", n_step=1, dynamic_buffer=False, ticket=None)
    ours, theirs = (accounting.account(config, *run.sizes) for config in (c, dense))
    head = ["", "this run", "dense", "ratio"]
    table = _table(
        "What it holds and computes, beside the dense agent of the same shape", head, _compared(run, ours, theirs)
    )
    return table + _layers(run) + f'<p class="soft">{_text(_counted(c))}</p>'


def _compared(run: RecordedRun, ours: Account, dense: Account) -> Iterator[list[str]]:
    """Rows of the table of sizes."""

    def row(name: str, count: Callable[[Account], float], spell: Callable[[float], str]) -> list[str]:
        a, b = count(ours), count(dense)
        return [name, spell(a), spell(b), f"{a / b:.4f}" if b else "-"]

    whole = lambda value: f"{value:,.0f}"
    size = lambda value: format_bytes(int(value))
    batch = run.config.batch_size
    yield row("links, of online and target networks", lambda a: a.size, whole)
    yield row("parameters of the online networks, with biases", lambda a: a.parameters, whole)
    yield row("links of the policy alone", lambda a: sum(a.actor_links), whole)
    yield row("bytes of networks, targets and optimiser, as full matrices", lambda a: a.bytes_state, size)
    yield ["the same with links alone (packed)", size(ours.bytes_packed), size(dense.bytes_state),
           f"{ours.bytes_packed / dense.bytes_state:.4f}"]  # fmt: skip
    yield ["bytes of the replay buffer", size(ours.bytes_replay), size(dense.bytes_replay), "1.0000"]
    yield row("FLOPs of an action", lambda a: a.flops_test, whole)
    yield row(f"FLOPs of an update on {batch} transitions", lambda a: batch * a.flops_train, _large)
    if run.summary is not None:
        updates = run.summary["updates"]
        yield row(f"FLOPs of {updates:,} updates", lambda a: updates * batch * a.flops_train, _large)


def _large(value: float) -> str:
    """A number with four digits and a word for the rest."""
    words = ("", " thousand", " million", " billion", " trillion", " quadrillion", " quintillion")
    power = min(len(words) - 1, int(math.log10(max(value, 1)) // 3))
    return f"{value / 1000**power:.4g}{words[power]}"


def _layers(run: RecordedRun) -> str:
    """Links of each matrix, and how many of them were there at the start."""
    assert run.sizes is not None
    rows = []
    order = orders(run.config, *run.sizes)
    for network, own in structure(run.config, *run.sizes).items():
        kept: Sequence[str] = [""] * len(own.shapes)
        if run.masks is not None:
            first, last = (run.masks.matrices(i, network) for i in (0, len(run.masks.steps) - 1))
            kept = [_percent((a & b).sum() / max(1, b.sum())) for a, b in zip(first, last, strict=True)]
        name = "one critic" if network == "critic" else network
        for i, place in enumerate(order[network]):
            shape, links = own.shapes[place], own.links[place]
            whole = math.prod(shape)
            bar = f'<span class="bar" aria-hidden="true"><i style="width:{100 * links / whole:.2f}%"></i></span>'
            cells = [f"{shape[0]} → {shape[1]}", f"{links:,}", f"{whole:,}", f"{_percent(links / whole)}{bar}", kept[i]]
            rows.append([f"{name}, layer {i + 1}", *cells])
    head = ["", "units", "links", "of", "density", "links as at the start"]
    return _table("Links by layer, from input to output", head, rows)


def _counted(c: RunConfig) -> str:
    """How FLOPs are counted, in short."""
    changing = (
        ""
        if methods.find(c.method).progress is None
        else " Links and size are those of the end, FLOPs of updates those of the links on average over the run."
    )
    return (
        "A FLOP is a multiply or an add of a link; a backward pass counts as two forward passes; windows, target "
        "passes and topology events are counted, elementwise operations are not. The dense agent has one-step "
        f"targets. A share of the FLOPs is not the same share of the seconds.{changing}"
    )


PARTS = {"compiling": "#E69F00", "training": "#0072B2", "evaluation, checkpoints and all else": "#CC79A7"}
"""What time goes to, and its colour."""


def _time(run: RecordedRun) -> str:
    if run.summary is None:
        return _lacks(run.lacking["summary"])
    s = run.summary
    training = s["env_steps"] / s["steps_per_second"] if s["steps_per_second"] else 0.0
    seconds = dict(zip(PARTS, (s["compile_seconds"], training), strict=False))
    seconds[[*PARTS][-1]] = max(0.0, s["wall_seconds"] - sum(seconds.values()))
    whole = max(sum(seconds.values()), 1e-9)
    bar = "".join(
        f'<i style="width:{100 * t / whole:.2f}%;background:{PARTS[name]}"></i>' for name, t in seconds.items()
    )
    rows = [
        [f'<span class="key" style="background:{PARTS[name]}"></span>{name}', f"{t:,.1f} s", _percent(t / whole)]
        for name, t in seconds.items()
    ]
    return (
        f'<div class="parts" aria-hidden="true">{bar}</div>'
        + _table(f"Where {s['wall_seconds']:,.0f} seconds went; compilation is that of the last start",
                 ["", "seconds", "share"], rows)
        + f"<p>{s['steps_per_second']:,.0f} environment steps and {s['updates_per_second']:,.0f} critic updates per "
        "second of training.</p>" + _programs(s["compilation"]) + (_pictures(run, panels.SPEED) if run.rows else "")
    )  # fmt: skip


def _programs(compilation: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [_text(name), f"{took['traced']:.2f}", f"{took['compiled']:.2f}", "yes" if took["cached"] else "no"]
        for name, took in compilation.items()
    ]
    caption = "Programs, compiled side by side, in seconds"
    return _table(caption, ["program", "traced", "compiled", "from the cache"], rows) if rows else ""


def _settings(c: RunConfig) -> str:
    """All settings by group; those that a person wrote, or would have to, are marked."""
    try:
        marked = set(written(c))
    except ConfigError:  # As far as can be told without the code that is not here.
        plain = {name: value for name, value in vars(Config()).items() if value is not None}
        marked = {name for name, value in plain.items() if getattr(c, name) != value}
    tables = [
        _setting_table(title, [_setting(c, field, mark=field.name in marked) for field in fields])
        for title, fields in _groups()
    ]
    return "<p>Marked (set) is what differs from what the other settings lead to.</p>" + "".join(tables)


def _groups() -> list[tuple[str, list[dataclasses.Field[Any]]]]:
    """Settings by the groups that they stand in."""
    first = {name: title for title, name in GROUPS.items()}
    groups: list[tuple[str, list[dataclasses.Field[Any]]]] = []
    for field in dataclasses.fields(Config):
        if field.name in first:
            groups.append((first[field.name], []))
        groups[-1][1].append(field)
    return groups


def _setting(c: RunConfig, field: dataclasses.Field[Any], *, mark: bool) -> str:
    value = getattr(c, field.name)
    spelled = "none" if value is None else f"{value:,}" if type(value) is int else _spelled(field, value)
    kind, sign = (' class="set"', " (set)") if mark else ("", "")
    return (
        f"<tr{kind}><td><code>{field.name}</code></td><td>{_text(spelled)}{sign}</td>"
        f'<td class="soft">{_text(field.metadata["help"])}</td></tr>'
    )


def _setting_table(title: str, rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in ("setting", "value", "what it is"))
    return (
        f'<h3>{_text(title)}</h3><table class="settings words"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


# What to do with it.


def _episode(episode: bytes | None, why_not: str) -> str:
    if episode is None:
        return _lacks(why_not)
    return (
        "<p>One episode of the policy of the last evaluation. Drag to turn about the robot, stop, slow down, or step "
        "with the arrow keys.</p>"
        f'<iframe title="An episode of the policy, to turn about in" '
        f'srcdoc="{html.escape(episode.decode())}"></iframe>'
    )


def _use(run: RecordedRun) -> str:
    if run.policy is None:
        return _lacks(run.lacking["policy"])
    (observations, actions), labels = run.policy.sizes, run.policy.labels
    place = shlex.quote(run.name)
    python = (
        "from rlx2_jax import load_policy\n\n"
        f"policy = load_policy({run.name!r})  # this directory, or policy_best.npz in it\n"
        f"action = policy.act(observation)  # [..., {observations}] to [..., {actions}], each in [-1, 1]"
    )
    commands = (
        f"python experiments/evaluate.py --workdir={place} --episodes=100   # its mean return, on fresh episodes\n"
        f"python experiments/rollout.py --workdir={place}                   # an episode to look at\n"
        f"python experiments/export.py --workdir={place}                    # as C, ONNX, JAX and NumPy"
    )
    limits = [f"{name} (-1 is {low:g}, 1 is {high:g})" for name, (low, high) in
              zip(labels.action_names, labels.action_limits, strict=True)]  # fmt: skip
    entries = _list({
        "observation": _text(", ".join(labels.observation_names)),
        "action": _text(", ".join(limits)),
    })  # fmt: skip
    return f"<pre><code>{_text(python)}</code></pre><pre><code>{_text(commands)}</code></pre>{entries}"
