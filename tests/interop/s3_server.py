"""moto's S3 server on a free port of this machine, whose answers come late; the port is its first line of output."""

import sys
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *details):
        pass


def main(latency):
    moto = DomainDispatcherApplication(create_backend_app)

    def late(environ, start_response):
        time.sleep(latency)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, late, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(float(sys.argv[1]))
