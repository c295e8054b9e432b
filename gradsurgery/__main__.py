"""``python -m gradsurgery`` is the command ``gradsurgery``."""

import sys

from gradsurgery.commands import main

sys.exit(main())
