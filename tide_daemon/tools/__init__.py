"""Subcommands of `tide-daemon`: one module each, with `add_arguments(parser)` and `run(arguments) -> int`."""
