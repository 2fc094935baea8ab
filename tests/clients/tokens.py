"""JSON Web Tokens of an OpenID provider beside keys: discovery, rotation, roles, over HTTP and gRPC. PyJWT signs."""

import base64
import contextlib
import hmac
import http.server
import json
import sys
import threading
import time

import jwt
import numpy as np
import tritonclient.grpc as triton_grpc
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import support

SECONDS = 20.0


class Provider(http.server.ThreadingHTTPServer):
    """An OpenID provider as far as its clients see it: a discovery document and a JWK set."""

    def __init__(self):
        self.keys = {}
        self.asked = []
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                provider.asked.append(self.path)
                documents = {
                    "/realm/.well-known/openid-configuration":
                        {"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}/keys"},
                    "/realm/keys": {"keys": [public for _, public, _ in provider.keys.values()]},
                }
                document = documents.get(self.path)
                body = json.dumps(document).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}/realm"

    def add(self, name, algorithm):
        made = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048), "PS384": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "ES384": lambda: ec.generate_private_key(ec.SECP384R1()), "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[algorithm]()
        public = jwt.get_algorithm_by_name(algorithm).to_jwk(made.public_key(), as_dict=True)
        public = {k: v for k, v in public.items() if k != "key_ops"}
        self.keys[name] = (made, public | {"kid": name, "use": "sig"}, algorithm)

    def token(self, name, scope="octet:read", **claims):
        private, _, algorithm = self.keys[name]
        claims = {"iss": self.issuer, "aud": "octet", "sub": "alice@example", "exp": int(time.time()) + 600,
                  "scope": scope} | claims
        return jwt.encode(claims, private, algorithm, {"kid": name})


@contextlib.contextmanager
def running(binary, claims=None, **settings):
    with Provider() as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        provider.add("first", "RS256")
        settings = {f"OCTET_AUTH__{k.upper()}": v for k, v in settings.items()}
        settings |= {"OCTET_AUTH__MODE": "keys", "OCTET_AUTH__JWT_ISSUER": provider.issuer, "OCTET_LOG__LEVEL": "trace"}
        with support.Server(binary, settings=settings) as server:
            token = provider.token("first", **claims or {})
            server.until(lambda: ask(server, token) != 401, "the keys of the provider are known", SECONDS)
            yield provider, server
        provider.shutdown()


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def ask(server, token, method="GET", path="/v1/models", body=None):
    return server.request(method, path, body, {"Authorization": f"Bearer {token}"}).status


def check_tokens_are_taken_for_their_scopes_and_named_in_the_log(binary):
    with running(binary) as (provider, server):
        reader, writer = provider.token("first"), provider.token("first", "openid octet:read octet:write octet:infer")
        body = support.model_path("fm_mlp").read_bytes()
        assert ask(server, reader) == 200
        assert ask(server, reader, "PUT", "/v1/models/mlp", b"x") == 403
        assert ask(server, writer, "PUT", "/v1/models/mlp", body) == 201
        assert ask(server, writer, "PUT", "/v1/endpoints/mlp", '{"model": "mlp"}') == 201
        assert ask(server, provider.token("first", "octet:admin"), path="/v1/audit") == 200
        audit = server.request("GET", "/v1/audit", None, {"Authorization": f"Bearer {provider.token('first', 'octet:admin')}"})
        names = {line["key_name"] if "key_name" in line else (line.get("key") or {}).get("name") for line in audit.json()["items"]}
        assert "alice_example" in names, audit.json()["items"][:1]
        # gRPC takes them alike.
        x = np.zeros((1, 1, 28, 28), np.float32)
        tensor = triton_grpc.InferInput("input", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        with triton_grpc.InferenceServerClient(server.grpc_address) as client:
            client.infer("mlp", [tensor], headers={"authorization": f"Bearer {writer}"})
            for token, code in ((reader, "PERMISSION_DENIED"), (reader[:-4] + "AAAA", "UNAUTHENTICATED")):
                try:
                    client.infer("mlp", [tensor], headers={"authorization": f"Bearer {token}"})
                    raise AssertionError("it was taken")
                except triton_grpc.InferenceServerException as error:
                    assert code in error.status(), error
        log = server.log_path.read_text(errors="replace")
        assert "alice_example" in log
        for token in (reader, writer):
            assert token not in log and token.rsplit(".", 1)[1] not in log, "a token is in the log"


def check_every_algorithm_and_a_rotation(binary):
    with running(binary) as (provider, server):
        for algorithm in ("ES256", "ES384", "EdDSA", "PS384", "RS256"):
            provider.add(algorithm, algorithm)
        # The first token of a key that is not known makes the server ask for the keys again.
        started = time.monotonic()
        server.until(lambda: ask(server, provider.token("ES256")) == 200, "the new keys are known", SECONDS)
        took = time.monotonic() - started
        for name in provider.keys:
            assert ask(server, provider.token(name)) == 200, name
        gone = provider.token("first")
        del provider.keys["first"]
        provider.add("next", "ES256")
        server.until(lambda: ask(server, provider.token("next")) == 200, "the next key is known", SECONDS)
        assert ask(server, gone) == 401, "a key that the provider has taken back"
    return f"new keys are taken after {took:.0f} s"


def check_what_is_not_for_us_is_refused(binary):
    with running(binary) as (provider, server):
        stranger = Provider()
        stranger.add("first", "RS256")
        stranger.issuer = provider.issuer
        public = json.dumps(provider.keys["first"][1]).encode()
        # By hand: PyJWT refuses to.
        claims = {"iss": provider.issuer, "aud": "octet", "sub": "a", "exp": int(time.time()) + 60, "scope": "octet:admin"}
        parts = ({"alg": "HS256", "kid": "first"}, claims)
        message = b".".join(base64url(json.dumps(part).encode()) for part in parts)
        shared = (message + b"." + base64url(hmac.digest(public, message, "sha256"))).decode()
        wrong = {
            "of another issuer": provider.token("first", iss="https://elsewhere"),
            "for another audience": provider.token("first", aud="other"),
            "expired": provider.token("first", exp=int(time.time()) - 31),
            "not valid yet": provider.token("first", nbf=int(time.time()) + 60),
            "without a scope of ours": provider.token("first", "openid profile"),
            "of another key under the same name": stranger.token("first"),
            "without a signature": jwt.encode(claims, None, "none", {"kid": "first"}),
            "with the public key as a shared secret": shared,
        }
        stranger.server_close()
        for what, token in wrong.items():
            answer = server.request("GET", "/v1/models", None, {"Authorization": f"Bearer {token}"})
            assert answer.status == 401 and "token is not taken" in answer.text(), f"{what}: {answer.status} {answer.text()}"
        assert ask(server, provider.token("first")) == 200


def check_roles_of_a_realm_and_a_provider_that_does_not_answer(binary):
    claims = {"scope": "", "aud": ["serving", "account"], "realm_access": {"roles": ["read", "offline"]}}
    settings = {"jwt_claim": "realm_access.roles", "jwt_prefix": "", "jwt_audience": "serving"}
    with running(binary, claims, **settings) as (provider, server):
        token = provider.token("first", **claims)
        assert ask(server, token) == 200 and ask(server, token, "PUT", "/v1/models/m", b"x") == 403
        asked = len(provider.asked)
        assert asked >= 2, provider.asked
    # Without a provider that answers: the server starts, and says so.
    settings = {"OCTET_AUTH__MODE": "keys", "OCTET_AUTH__JWT_ISSUER": "http://127.0.0.1:9/none"}
    with support.Server(binary, settings=settings) as server:
        assert ask(server, token) == 401
        server.until(lambda: "provider of tokens cannot be read" in server.log_path.read_text(), "it is told", SECONDS)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
