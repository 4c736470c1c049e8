"""How much a deployment moves, stores and needs: arithmetic on a target's config.json. Pure, no torch.

targets.py       a target's shapes and parameter counts from its config.json
known_models.py  the same for models that are asked for by name
devices.py       relative speeds of devices (the paper's) and their data sheets
stream.py        bytes a token by codec, MB/s, messages/s, what a retention holds
drafts.py        size of a draft and of a delta between two
break_even.py    accept length at which speculation pays, by batch size, from a roofline

Which devices serve and which train is in policy/allocation.py. These are estimates for before
anything runs; a running fleet measures, see policy/speedup.py.
"""
