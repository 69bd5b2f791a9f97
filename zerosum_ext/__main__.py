"""``python -m zerosum_ext`` is the command ``zerosum-ext``."""

import sys

from zerosum_ext.cli.main import main

sys.exit(main())
