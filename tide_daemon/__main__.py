"""`python -m tide_daemon` is `tide-daemon`."""

import sys

from tide_daemon.cli import main

sys.exit(main())
