"""The local stack: a real Redis, a real S3 server and real workers, as processes of this machine.

For development, the demo and the tests; never for production. Everything listens on loopback only, on ports
that are chosen free, and every child process dies with the process that started it.
"""
