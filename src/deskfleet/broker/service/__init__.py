"""Use cases, one verb each: catch up, ask the core, commit, tell."""
