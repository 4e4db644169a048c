"""The search for the largest sparsity: finds what is there, asks for no run twice, says what was close."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from paper import search

SEEDS = tuple(range(12))


def play(score, seeds=SEEDS):
    """A search to its end; what it asked for, in order."""
    scores, asked = {}, []
    while (found := search.search(scores, seeds)).missing is not None:
        sparsity, lacking = found.missing
        asked += [(sparsity, seed) for seed in lacking]
        for seed in lacking:
            scores.setdefault(sparsity, {})[seed] = score(sparsity, seed)
    return found, asked


@given(st.integers(0, len(search.GRID)))
def test_a_sharp_edge_is_found_wherever_it_is(edge):
    kept = search.GRID[:edge]
    found, asked = play(lambda sparsity, seed: (1000 if sparsity in (0, *kept) else 500) + seed)
    assert found.largest == (kept[-1] if kept else None)
    assert len(asked) == len(set(asked))
    assert len(found.steps) <= 1 + np.log2(len(search.GRID) + 1)
    assert all(step.decided and step.ratio.n == search.FIRST_SEEDS for step in found.steps)


def test_only_a_close_thing_takes_more_seeds_and_is_marked():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 300, 1000)
    close = search.GRID[len(search.GRID) // 2]

    def score(sparsity, seed):
        if sparsity in (0, close):
            return 1000 + noise[seed + (100 if sparsity else 0)]
        return 100.0

    found, asked = play(score)
    first, *others = found.steps
    assert (first.sparsity, first.ratio.n, first.decided) == (close, len(SEEDS), False)
    assert all(step.decided for step in others)
    assert len([1 for sparsity, _ in asked if sparsity == others[-1].sparsity]) == search.FIRST_SEEDS
    assert first.kept == (first.ratio.value >= search.TOLERANCE)


def test_what_is_recorded_besides_does_not_change_what_the_search_says():
    score = lambda sparsity, seed: 1000 * (1 - sparsity**30) + 80 * np.sin(7 * seed + 100 * sparsity)
    found, _ = play(score)
    assert found.largest is not None
    everything = {s: {seed: score(s, seed) for seed in range(50)} for s in (0.0, *search.GRID)}
    assert search.search(everything, SEEDS) == found


def test_few_seeds_decide_nothing():
    found, _ = play(lambda sparsity, seed: (1000.0 if sparsity < 0.9 else 10.0) + seed, seeds=(0, 1, 2, 3))
    assert found.largest == 0.85
    assert not any(step.decided for step in found.steps)


def test_a_step_is_decided_wrongly_about_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        scores = {s: dict(enumerate(rng.normal(mean, 150, 20))) for s, mean in ((0.0, 1000), (0.9, 969))}
        (step,) = search.search(scores, tuple(range(20)), grid=(0.9,)).steps
        wrong += step.decided and step.kept
    assert wrong <= 0.05 * 300  # 2.5 % on either side, and what normal theory misses.


def test_what_is_to_be_kept_is_97_percent():
    for share, largest in ((0.96, None), (0.98, search.GRID[-1])):
        found, _ = play(lambda sparsity, seed, share=share: 1000 * (share if sparsity else 1) + 0.1 * seed)
        assert found.largest == largest


def test_one_run_decides_nothing():
    found, _ = play(lambda sparsity, seed: 1000.0, seeds=(0,))
    assert not any(step.decided for step in found.steps)


def test_there_is_nothing_to_keep_of_a_dense_agent_that_has_not_learned():
    found, asked = play(lambda sparsity, seed: -100.0 - 100 * sparsity)
    assert not found.learned
    assert found.largest is None
    assert len(asked) == 2 * search.FIRST_SEEDS


def test_nothing_is_decided_with_seeds_that_are_not_there():
    scores = {0.0: {0: 1.0, 1: 1.0}, search.GRID[6]: {0: 1.0, 1: 1.0, 2: 1.0}}
    assert search.search(scores, SEEDS) == ((), (0.0, (2, 3, 4)), None, True)
