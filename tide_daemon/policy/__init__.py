"""Pure decisions: events in, instructions out. No clock, no I/O, no randomness; standard library only.

events.py        what the policy is told; time is inside
instructions.py  what it answers; each with its cause and its numbers
settings.py      every limit, with unit and range
acceptance.py    survival of drafted tokens by position, with forgetting
speedup.py       what a step costs on a node; TIDE eq. 5
steps.py         how many drafted tokens at each batch size
probing.py       the bounded price of finding out
collection.py    TIDE's Algorithm 1: collect hidden states or not
rounds.py        when to train
shadows.py       held-out scores of the serving draft, of all trainers together
trainers.py      what each trainer said and was asked for
gate.py          candidate against serving draft
rollout.py       canary, rest, watch, roll back
outages.py       what engines that go down say about a draft
node_view.py     a node as a rollout sees it
node.py          what is known of one server node
roster.py        which nodes are there
speculation.py   its steps table: choices and probes
allocation.py    which devices serve and which train, before anything runs
alone.py         a node's own steps while the controller is away
controller.py    the one place where state changes
snapshot.py      that state for people, and its invariants
replay.py        a journal through the same code
why/             the same journal in plain words

Carrying instructions out is in roles/controller.py.
"""
