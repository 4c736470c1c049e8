"""The production policy against modelled nodes: discrete events, the same every time for one seed.

scenario.py   what is simulated, as frozen records; the format is described in SCENARIOS.md
reading.py    a TOML file to a scenario, strictly; table.py reads one table of it
traffic.py    which workloads arrive, and how many requests run, over time
costs.py      what a step costs
learning.py   what a draft accepts, what training changes, what held-out scores say of it
server.py     a server node: steps, counters, swaps
trainer.py    a trainer: rounds, candidates, shadow scores
leader.py     tide_daemon.policy.Controller with what the journal and desired state would hold
fixed.py      policies to compare with: plain, the first draft, always the newest draft
fleet.py      the events and their order
running.py    one run: TIDE, or a fixed policy
tally.py      tokens, windows and series as they come in
figures.py    what a run and its comparison come to
plots.py      pictures; the only file that needs matplotlib

Nothing here decides anything for TIDE: that is policy/. Nothing here reads a clock or touches a network.
"""
