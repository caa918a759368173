"""Where all truth is kept: the adapters of the `Store` port, and their asynchronous side."""
