"""A typed client of the session management API: `from deskfleet.client.api import Client`.

This package imports nothing by itself, so that a program which only needs the shapes stays light.
"""
