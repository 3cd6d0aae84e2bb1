"""Everything that talks to a chain, and nothing that talks to a database.

One of web3's dependencies raises Python's recursion limit a hundredfold when it is imported; a
deeply nested JSON body would then overflow the C stack and kill the process instead of raising
``RecursionError``. It is imported here first, and Python's usual limit put back.
"""

import sys

import py_ecc  # noqa: F401

sys.setrecursionlimit(1000)
