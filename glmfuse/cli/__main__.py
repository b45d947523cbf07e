"""`python -m glmfuse.cli`, the same as `glmfuse`."""

import sys

from glmfuse.cli.main import main

sys.exit(main())
