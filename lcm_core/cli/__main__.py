"""`python -m lcm_core.cli`"""

import sys

try:
    from . import main

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
