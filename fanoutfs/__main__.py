"""`python -m fanoutfs`."""

import sys

from fanoutfs.cli import main

sys.exit(main())
