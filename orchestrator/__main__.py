"""`python -m orchestrator` is the command `stillhouse`."""

from orchestrator.cli import main

main()
