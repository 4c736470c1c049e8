"""Bytes on the bus to records and back, subjects to names and back. Pure: no sockets, no torch, no clock."""
