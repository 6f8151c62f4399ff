"""What the containers of docs/picture.sh say to each other: first octets of real protocols, answers of some length, a pause. Ends with its namespace."""
import itertools, random, socket, sys, threading, time

kind, address = sys.argv[1:]
WEB, API, DB, CACHE = ("172.18.0.2", "172.18.0.3"), "172.18.0.4", "172.18.0.5", "172.18.0.6"
STARTUP = b"\x00\x00\x00\x21\x00\x03\x00\x00user\x00shop\x00database\x00shop\x00\x00"


def serve(port, answer):
    """Answers each request by what `answer` makes of it."""
    def talk(peer):
        while request := peer.recv(65536):
            peer.sendall(answer(request))

    server = socket.create_server((address, port), backlog=64)
    while True:
        threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()


def ask(to, port, requests, pause):
    """Sends one request after the other over a connection; a new one after some."""
    while True:
        try:
            with socket.create_connection((to, port), timeout=2) as peer:
                for request in itertools.islice(requests(), random.randint(200, 4000)):
                    peer.sendall(request)
                    peer.recv(65536)
                    time.sleep(random.uniform(0, 2 * pause))
        except OSError:
            time.sleep(0.2)


def http(path, host):
    return lambda: itertools.repeat(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


def page(octets):
    return lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % octets + b"." * octets


def sql():
    yield STARTUP
    yield from itertools.repeat(b"Q\x00\x00\x00\x0eSELECT 1;\x00")


def start(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()


if kind == "web":
    start(serve, 80, page(18_000))
    for _ in range(3):
        start(ask, API, 8080, http("/v1/basket", "api.shop.example"), 0.05)
elif kind == "api":
    start(serve, 8080, page(1_200))
    for to in WEB * 2:
        start(ask, to, 80, http("/", "shop.example"), 0.02)
    start(ask, DB, 5432, sql, 0.01)
    start(ask, DB, 5432, sql, 0.2)
    start(ask, CACHE, 6379, lambda: itertools.repeat(b"*2\r\n$3\r\nGET\r\n$6\r\nbasket\r\n"), 0.004)
elif kind == "db":
    start(serve, 5432, lambda request: b"R\x00\x00\x00\x08\x00\x00\x00\x00" + b"D" * 900)
else:
    start(serve, 6379, lambda _: b"$64\r\n" + b"x" * 64 + b"\r\n")
time.sleep(60)
