"""`python -m fusedmix`."""

import sys

from fusedmix.cli import main

sys.exit(main())
