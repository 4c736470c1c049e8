"""Why things are as they are, in plain words, from the journal and what nodes are asked and report now. Pure.

history.py     what is kept of a journal: settings, fleet, each node's and each version's turning points
node.py        whether a node speculates, with how many steps, why, and what would change it
trainer.py     why a trainer trains or waits
version.py     what became of a draft, why, and what would have to change
decision.py    one decision: what caused it, what was asked, the numbers
fleet.py       what is served and how far a rollout is
words.py       times and steps tables as text

Only what the journal holds is said: nothing is decided or predicted again here, so an explanation is of the
decision that was taken, whatever the policy would say today.
"""
