"""Health, status, metrics and the page of a daemon, over HTTP. See app.py."""
