"""The training side of a trainer node: sample store, rounds, the worker process and the maths it runs."""
