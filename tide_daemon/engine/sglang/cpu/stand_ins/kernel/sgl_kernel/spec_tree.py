"""Draft trees: links between nodes, masks and positions; greedy verification. All outputs are written in place.

Letters: B requests, N nodes of a tree (num_verify_tokens), node 0 the last bonus token. Trees are small, so plain
loops over Python integers beat tensor operations of a few elements.

Node i >= 1 is the draft numbered s = top_scores_index[i - 1] in SGLang's flat list of drafts. Drafts come in groups of
topk, and group g = s // topk hangs below the root when g is 0, else below the draft numbered parent_list[g].
"""

import torch


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Link the nodes of each request's tree.

    Caller: sglang/kernels/ops/speculative/spec_tree.py, build_tree_kernel_efficient_func.

    Args:
        parent_list: [B, P], draft number of each group's parent; entry 0 is unused (-1).
        selected_index: [B, N - 1], draft numbers of the nodes, ascending.
        verified_seq_len: [B].
        tree_mask: flat bool, [N, N] a request: node i sees itself and its ancestors.
        positions: [B * N], sequence position of each node.
        retrieve_index: [B, N], row of each node in the batch: b * N + i.
        retrieve_next_token: [B, N], first child of each node, -1 for none (as it comes in).
        retrieve_next_sibling: [B, N], next child of the same parent, -1 for none (as it comes in).

    Raises:
        NotImplementedError: a mask layout that SGLang does not use on a CPU.
    """
    if int(tree_mask_mode) != 1:
        raise NotImplementedError(f"tree mask mode {int(tree_mask_mode)}: the CPU stand-in knows QLEN_ONLY (1) only")
    num_requests, num_nodes = retrieve_index.shape
    retrieve_index.copy_(torch.arange(num_requests * num_nodes).view(num_requests, num_nodes))
    if topk == 1:
        _build_chain(verified_seq_len, tree_mask, positions, retrieve_next_token, num_nodes)
        return
    masks, places, children, siblings = [], [], [], []
    for length, chosen, parents in zip(
        verified_seq_len.tolist(), selected_index.tolist(), parent_list.tolist(), strict=True
    ):
        parent_of = [-1] + [_parent_node(number, chosen, parents, topk) for number in chosen]
        mask, depths = _ancestors(parent_of)
        child, sibling = _links(parent_of)
        masks.append(mask)
        places.append([length + node_depth for node_depth in depths])
        children.append(child)
        siblings.append(sibling)
    tree_mask[: num_requests * num_nodes * num_nodes].copy_(torch.tensor(masks).view(-1))
    positions.copy_(torch.tensor(places).view(-1))
    retrieve_next_token.copy_(torch.tensor(children))
    retrieve_next_sibling.copy_(torch.tensor(siblings))


def _build_chain(
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    num_nodes: int,
) -> None:
    num_requests = verified_seq_len.numel()
    causal = torch.ones(num_nodes, num_nodes, dtype=torch.bool).tril_()
    tree_mask[: num_requests * num_nodes * num_nodes].view(num_requests, num_nodes, num_nodes).copy_(causal)
    torch.add(verified_seq_len.view(-1, 1), torch.arange(num_nodes), out=positions.view(num_requests, num_nodes))
    retrieve_next_token[:, :-1] = torch.arange(1, num_nodes)


def _parent_node(number: int, chosen: list[int], parents: list[int], topk: int) -> int:
    """Node of the parent of draft `number`: 0 the root. A parent that was not chosen also counts as the root."""
    group = number // topk
    if group == 0 or parents[group] not in chosen:
        return 0
    return chosen.index(parents[group]) + 1


def _ancestors(parent_of: list[int]) -> tuple[list[list[bool]], list[int]]:
    """Mask rows (itself and its ancestors) and depth of each node."""
    mask = [[False] * len(parent_of) for _ in parent_of]
    depths = []
    for node in range(len(parent_of)):
        depth, above = -1, node
        while above >= 0:
            mask[node][above] = True
            above = parent_of[above]
            depth += 1
        depths.append(depth)
    return mask, depths


def _links(parent_of: list[int]) -> tuple[list[int], list[int]]:
    """First child and next sibling of each node. Built from the back, so children come in ascending order."""
    child = [-1] * len(parent_of)
    sibling = [-1] * len(parent_of)
    for node in range(len(parent_of) - 1, 0, -1):
        sibling[node] = child[parent_of[node]]
        child[parent_of[node]] = node
    return child, sibling


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Walk each tree from its root as long as a child equals the target's choice at the node.

    Caller: sglang/kernels/ops/speculative/spec_tree.py, verify_tree_greedy_func (which spells `retrive` so).

    Args:
        predicts: flat, written at the row of each accepted node: the target's choice there.
        accept_index: [B, depth], rows of the accepted nodes, the root first; the rest stays as it comes in (-1).
        accept_token_num: [B], accepted drafts, the root and the bonus token not counted.
        candidates: [B, N], token of each node.
        target_predict: [B, N], the target's choice after each node.
    """
    depth = accept_index.shape[1]
    walks = zip(
        candidates.tolist(),
        retrive_index.tolist(),
        retrive_next_token.tolist(),
        retrive_next_sibling.tolist(),
        target_predict.tolist(),
        strict=True,
    )
    accepted_rows, accepted_counts, rows, tokens = [], [], [], []
    for candidate, row_of, next_token, next_sibling, choice in walks:
        node = 0
        accepted = [row_of[0]]
        while len(accepted) < depth:
            child = next_token[node]
            while child != -1 and candidate[child] != choice[node]:
                child = next_sibling[child]
            if child == -1:
                break
            rows.append(row_of[node])
            tokens.append(choice[node])
            accepted.append(row_of[child])
            node = child
        rows.append(row_of[node])
        tokens.append(choice[node])
        accepted_counts.append(len(accepted) - 1)
        accepted_rows.append(accepted + [-1] * (depth - len(accepted)))
    accept_index.copy_(torch.tensor(accepted_rows))
    accept_token_num.copy_(torch.tensor(accepted_counts))
    predicts[torch.tensor(rows)] = torch.tensor(tokens, dtype=predicts.dtype)
