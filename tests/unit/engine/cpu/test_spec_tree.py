"""Draft trees: building and greedy verification against a recursive reference."""

import random

import pytest
import torch

QLEN_ONLY = 1


def random_tree(source: random.Random, topk: int, depth: int, num_nodes: int) -> tuple[list[int], list[int], list[int]]:
    """parent_list, chosen draft numbers (ascending) and each node's parent node, as SGLang lays them out.

    Step 1 makes drafts 0 .. topk - 1 below the root. Each later step expands topk drafts of the step before, with topk
    drafts each, numbered on; their parents go into parent_list, whose entry g is the parent of drafts
    g * topk .. g * topk + topk - 1 (select_top_k_tokens and organize_draft_results in SGLang).
    """
    parents, last = [-1, *range(topk)], list(range(topk))
    parent_of = dict.fromkeys(last, -1)
    number = topk
    for _ in range(depth - 1):
        groups = parents[1 + (number - topk) // topk :][:topk]
        fresh = []
        for parent in groups:
            for _ in range(topk):
                parent_of[number] = parent
                fresh.append(number)
                number += 1
        parents += sorted(source.sample(fresh, topk))
        last = fresh
    chosen: set[int] = set()
    while len(chosen) < num_nodes - 1:
        open_drafts = [d for d, p in parent_of.items() if d not in chosen and (p == -1 or p in chosen)]
        chosen.add(source.choice(open_drafts))
    ordered = sorted(chosen)
    nodes = [-1] + [0 if parent_of[d] == -1 else ordered.index(parent_of[d]) + 1 for d in ordered]
    return parents[: len(parents) - topk], ordered, nodes


def build(
    parent_lists: list[list[int]], chosen: list[list[int]], lengths: list[int], topk: int
) -> dict[str, torch.Tensor]:
    from sgl_kernel import build_tree_kernel_efficient_cpu

    num_requests, num_nodes = len(lengths), len(chosen[0]) + 1
    made = {
        "mask": torch.ones(num_requests * num_nodes * num_nodes, dtype=torch.bool),
        "positions": torch.empty(num_requests * num_nodes, dtype=torch.int64),
        "index": torch.full((num_requests, num_nodes), -1),
        "next_token": torch.full((num_requests, num_nodes), -1),
        "next_sibling": torch.full((num_requests, num_nodes), -1),
    }
    build_tree_kernel_efficient_cpu(
        torch.tensor(parent_lists), torch.tensor(chosen), torch.tensor(lengths), *made.values(), topk, 4, num_nodes,
        QLEN_ONLY,
    )  # fmt: skip
    return made


def path_to_root(parent_of: list[int], node: int) -> list[int]:
    return [] if node == -1 else [node, *path_to_root(parent_of, parent_of[node])]


@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_build_tree_links_masks_and_places_nodes(topk: int, seed: int) -> None:
    """Each node sees its path to the root, sits at its depth, and is reached by child and sibling links."""
    source = random.Random(seed)
    depth, num_nodes = 4, 5 if topk == 1 else 7
    trees = [random_tree(source, topk, depth, num_nodes) for _ in range(3)]
    lengths = [source.randrange(1, 100) for _ in trees]
    made = build([tree[0] for tree in trees], [tree[1] for tree in trees], lengths, topk)
    masks = made["mask"].view(3, num_nodes, num_nodes)
    for b, (_, _, parent_of) in enumerate(trees):
        for node in range(num_nodes):
            path = path_to_root(parent_of, node)
            assert set(masks[b, node].nonzero().flatten().tolist()) == set(path)
            assert made["positions"][b * num_nodes + node] == lengths[b] + len(path) - 1
            assert made["index"][b, node] == b * num_nodes + node
            children = [child for child in range(1, num_nodes) if parent_of[child] == node]
            walked, child = [], int(made["next_token"][b, node])
            while child != -1:
                walked.append(child)
                child = int(made["next_sibling"][b, child])
            assert walked == children


def test_build_tree_refuses_other_mask_layouts() -> None:
    """SGLang asks for QLEN_ONLY on a CPU; a full mask would need another layout."""
    from sgl_kernel import build_tree_kernel_efficient_cpu

    empty = torch.empty(0)
    with pytest.raises(NotImplementedError, match="QLEN_ONLY"):
        build_tree_kernel_efficient_cpu(empty, empty, empty, empty, empty, empty, empty, empty, 1, 3, 4, 0)


@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_verify_walks_while_a_child_is_the_targets_choice(topk: int, seed: int) -> None:
    """The accepted path, its length, and the target's choice written at each node of it, bonus included."""
    from sgl_kernel import verify_tree_greedy_cpu

    source = random.Random(100 + seed)
    depth, num_nodes = 4, 5 if topk == 1 else 8
    trees = [random_tree(source, topk, depth, num_nodes) for _ in range(4)]
    made = build([tree[0] for tree in trees], [tree[1] for tree in trees], [9] * 4, topk)
    candidates = torch.tensor([[source.randrange(3) for _ in range(num_nodes)] for _ in trees])
    choices = torch.tensor([[source.randrange(3) for _ in range(num_nodes)] for _ in trees])
    predicts = torch.zeros(4 * num_nodes, dtype=torch.int32)
    accept_index = torch.full((4, depth + 1), -1, dtype=torch.int32)
    accepted = torch.empty(4, dtype=torch.int32)
    verify_tree_greedy_cpu(
        predicts, accept_index, accepted, candidates=candidates, retrive_index=made["index"],
        retrive_next_token=made["next_token"], retrive_next_sibling=made["next_sibling"], target_predict=choices,
    )  # fmt: skip
    for b, (_, _, parent_of) in enumerate(trees):
        path = _walk(parent_of, candidates[b].tolist(), choices[b].tolist(), 0)
        rows = [b * num_nodes + node for node in path]
        assert accept_index[b].tolist() == rows + [-1] * (depth + 1 - len(rows))
        assert accepted[b] == len(path) - 1
        assert [int(predicts[row]) for row in rows] == [int(choices[b, node]) for node in path]


def _walk(parent_of: list[int], candidates: list[int], choices: list[int], node: int) -> list[int]:
    for child in range(1, len(parent_of)):
        if parent_of[child] == node and candidates[child] == choices[node]:
            return [node, *_walk(parent_of, candidates, choices, child)]
    return [node]
