"""``python -m syntheocc.commands`` is the `syntheocc` command without an installed script."""

import sys

from syntheocc.commands import main

sys.exit(main())
