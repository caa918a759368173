"""The session leader: the one process from which everything of a session descends.

The agent starts it as the owner, from a copy of this package in a folder that owners can read,
on whatever Python from 3.9 they can run. So it imports the standard library alone, itself by
relative names, and never the rest of deskfleet; and as each session pays for it, little of that.
It outlives the agent.
"""
