"""deskfleet: an open session manager for fleets of remote desktops."""

__version__ = "0.1.0"
