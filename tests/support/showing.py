"""What a listener shows to those who connect."""

from __future__ import annotations

import socket
import ssl
import threading


def shown_certificate(context: ssl.SSLContext) -> str:
    """Shake hands with a listener over a pair of sockets; return the certificate as PEM."""
    here, there = socket.socketpair()
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE

    def serve() -> None:
        with context.wrap_socket(there, server_side=True):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(here) as wrapped:
        certificate = wrapped.getpeercert(binary_form=True)
    thread.join()
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate)
