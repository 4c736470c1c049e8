"""The inference engine of a server node, behind one port; see port.py."""
