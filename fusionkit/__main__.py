"""`python -m fusionkit` is the command `fusionkit`."""

import sys

from fusionkit.cli import main

sys.exit(main())
