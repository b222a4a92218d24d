"""A loopback port that leads to a Unix socket, for tools that know only ports. Prints the port."""

import socket
import sys
import threading


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def main(path):
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        daemon = socket.socket(socket.AF_UNIX)
        daemon.connect(path)
        for ends in ((client, daemon), (daemon, client)):
            threading.Thread(target=copy, args=ends, daemon=True).start()


main(sys.argv[1])
