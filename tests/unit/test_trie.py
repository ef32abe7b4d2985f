"""The packed layout against its definition: a token sees what stands before it in its sequence."""

import random

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from dro_rl.policy.attention import Packed, _by_blocks
from dro_rl.policy.trie import pack, packed_length

SEQUENCES = {
    "one": [(5, 6, 7)],
    "one token": [(5,)],
    "equal": [(5, 6, 7), (5, 6, 7)],
    "a beginning of the other": [(5, 6, 7, 8), (5, 6)],
    "fork once": [(1, 2, 3, 10, 11), (1, 2, 3, 20), (1, 2, 3, 30, 31, 32)],
    "fork twice": [(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 6, 7), (1, 8)],
    "two trees": [(1, 2, 3), (4, 5, 6), (1, 2, 9), (4, 5, 7)],
}


def many(seed: int) -> list[tuple[int, ...]]:
    """Long and short, so that every kind of block comes up."""
    rng = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1000) for _ in range(n))

    prompts = [tokens(400), tokens(30), tokens(270)]
    sequences = [p + tokens(rng.randint(1, 30)) for p in prompts for _ in range(12)]
    pieces = [tokens(150) for _ in range(4)]
    sequences += [sum(rng.sample(pieces, 3), ()) + tokens(400) for _ in range(5)]
    rng.shuffle(sequences)
    return sequences


for number in range(3):
    SEQUENCES[f"many {number}"] = many(number)


@pytest.fixture(params=SEQUENCES, ids=lambda name: name.replace(" ", "-"))
def sequences(request):
    return SEQUENCES[request.param]


def distinct_prefixes(sequences) -> int:
    return len({s[: n + 1] for s in sequences for n in range(len(s))})


def test_every_sequence_reads_its_own_tokens_at_its_own_depths(sequences):
    trie = pack(sequences)
    for sequence, path in zip(sequences, trie.paths, strict=True):
        assert tuple(trie.ids_N[path]) == tuple(sequence)
        assert trie.depths_N[path].tolist() == list(range(len(sequence)))


def test_a_token_sees_its_path_and_nothing_else(sequences):
    trie = pack(sequences)
    everything = np.arange(len(trie))
    sees = trie.sees(everything, everything)
    for path in trie.paths:
        for depth in (0, len(path) // 2, len(path) - 1):
            assert np.flatnonzero(sees[path[depth]]).tolist() == path[: depth + 1].tolist()


def test_what_sequences_share_stands_once(sequences):
    assert packed_length(sequences) == len(pack(sequences))
    if all(len(s) <= 8 for s in sequences):  # nothing shared is too short to count
        assert len(pack(sequences)) == distinct_prefixes(sequences)


def test_a_shared_beginning_that_is_short_starts_no_tree():
    """A template's first word before long prompts."""
    long = [(1, *range(100 * i, 100 * i + 50)) for i in range(1, 4)]
    assert len(pack(long)) == 3 * 51


def test_the_order_of_the_sequences_does_not_matter(sequences):
    forwards, backwards = pack(sequences), pack(sequences[::-1])
    assert np.array_equal(forwards.ids_N, backwards.ids_N)
    assert np.array_equal(forwards.end_N, backwards.end_N)


def test_blocks_cover_the_row_and_hold_every_key(sequences):
    trie = pack(sequences)
    everything = np.arange(len(trie))
    sees = trie.sees(everything, everything)
    at = 0
    for block in trie.blocks:
        assert block.start == at
        at = block.stop
        own = np.arange(block.start, block.stop)
        keys = np.concatenate([block.ancestors, own])
        outside = np.setdiff1d(everything, keys)
        assert not sees[own][:, outside].any()
        if block.causal:
            assert np.array_equal(sees[own][:, own], np.tri(len(own), dtype=bool))
    assert at == len(trie)
    assert sum(trie.islands()) == len(trie)


def attention_under_one_mask(trie, q, k, v):
    everything = np.arange(len(trie))
    mask = torch.from_numpy(trie.sees(everything, everything))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_attention_by_blocks_is_attention_under_one_mask(sequences):
    """Values and gradients, with two query heads a key head."""
    trie = pack(sequences)
    draw = torch.manual_seed(0)
    shapes = [(1, 4, len(trie), 16), (1, 2, len(trie), 16), (1, 2, len(trie), 16)]
    tensors = [torch.randn(s, generator=draw, requires_grad=True) for s in shapes]
    upstream = torch.randn(shapes[0], generator=draw)
    outs, grads = [], []
    for out in (
        _by_blocks(*tensors, Packed(trie, torch.device("cpu")), None),
        attention_under_one_mask(trie, *tensors),
    ):
        outs.append(out)
        grads.append(torch.autograd.grad(out, tensors, upstream))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "sequences",
    [SEQUENCES["fork twice"], SEQUENCES["two trees"], [s for s in many(0) if len(s) <= 430]],
    ids=["one block", "two trees", "ten blocks"],
)
def test_the_mask_of_flex_attention_is_the_same(sequences):
    """What CUDA runs; on the CPU it has no backward pass, and its values must do."""
    trie = pack(sequences)
    draw = torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, len(trie), 16, generator=draw) for _ in range(3))
    mask = Packed(trie, torch.device("cpu")).flex_mask()
    everything = torch.arange(len(trie))
    dense = mask.mask_mod(torch.tensor(0), torch.tensor(0), everything[:, None], everything[None])
    assert np.array_equal(dense.numpy(), trie.sees(everything.numpy(), everything.numpy()))
    found = flex_attention(q, k, v, block_mask=mask)
    torch.testing.assert_close(found, attention_under_one_mask(trie, q, k, v), atol=1e-5, rtol=1e-5)
