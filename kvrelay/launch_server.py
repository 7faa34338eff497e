"""`python -m kvrelay.launch_server` is `kvrelay up`, for those who type `sglang.launch_server`.

It alone of this package knows `infra`: the rest is a client, which needs no server installed.
"""

from __future__ import annotations

import sys

from infra.cli import main

if __name__ == "__main__":
    main(["up", *sys.argv[1:]])
