"""The daemon's roles: thin shells that tie bus, engine, trainer and policy together."""
