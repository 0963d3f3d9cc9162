"""`python -m mqttd`: the same as the command `mqttd`.

Knows nothing; `mqttd.cli` does.
"""

import sys

from mqttd.cli import main

if __name__ == "__main__":
    sys.exit(main())
