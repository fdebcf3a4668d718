"""Python imports this module as it starts, where this folder is in PYTHONPATH: in processes that a test starts."""

import os

if "MUTATION_CODE" in os.environ:
    import carried

    carried.install()
