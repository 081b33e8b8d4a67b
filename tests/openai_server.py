"""An OpenAI-compatible server over a tiny model, with ``echo`` and ``logprobs``; it can misbehave.

``python openai_server.py FOLDER PORT NAME`` runs one in the foreground.
"""

import json
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAMED = "tiny-model"


class Server(ThreadingHTTPServer):
    """Serves ``folder`` as ``name``; without a folder, ``fail`` answers everything.

    Attributes:
        fail: Called with path and body; an answer ``(status, text, headers)``
            is sent in place of the model's.
        likelihoods: Whether it knows ``echo`` with ``logprobs``.
        seen: Requests, as (path, headers, body).
    """

    daemon_threads = True

    def __init__(self, folder, port=0, name=NAMED, likelihoods=True):
        super().__init__(("127.0.0.1", port), _Handler)
        self.name, self.likelihoods, self.fail, self.seen = name, likelihoods, None, []
        self.model = folder and _Model(folder)
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(folder, **settings):
    server = Server(folder, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Model:
    def __init__(self, folder):
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.lock = threading.Lock()

    def generate(self, ids, max_tokens):
        import torch

        with self.lock, torch.inference_mode():
            given = torch.tensor([ids])
            out = self.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=max_tokens,
                do_sample=False, pad_token_id=1,
            )  # fmt: skip
        return self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)

    def logprobs(self, ids):
        """As OpenAI's legacy completions: nothing is known of the first token."""
        import torch

        with self.lock, torch.inference_mode():
            table = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        values = [None] + [float(table[i, ids[i + 1]]) for i in range(len(ids) - 1)]
        tops = [None] + [
            {str(int(table[i].argmax())): float(table[i].max())} for i in range(len(ids) - 1)
        ]
        last = float(table[-1].max())
        return {
            "token_logprobs": [*values, last],
            "top_logprobs": [*tops, {"x": last}],
        }


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(200, json.dumps({"data": [{"id": self.server.name}]}))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, dict(self.headers), body))
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer = server.fail and server.fail(self.path, body)
            if not answer and body["model"] != server.name:
                answer = 404, json.dumps({"error": {"message": f"no model {body['model']}"}})
            answer = answer or (200, json.dumps(self._answer(body)))
        finally:
            with server.lock:
                server.at_once -= 1
        # The client may have gone: an evaluation that fails waits for nobody.
        with suppress(ConnectionError):
            self._send(*answer)

    def _answer(self, body):
        server = self.server
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if self.path.endswith("/chat/completions"):
            prompt = server.model.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=False
            )
            text = _cut(server.model.generate(prompt, body["max_tokens"]), body)
            choice["message"] = {"role": "assistant", "content": text}
        elif body.get("echo"):
            choice["text"] = ""
            if server.likelihoods:
                choice["logprobs"] = server.model.logprobs(body["prompt"])
        else:
            choice["text"] = _cut(server.model.generate(body["prompt"], body["max_tokens"]), body)
        return {"object": "text_completion", "model": server.name, "choices": [choice]}

    def _send(self, status, text, headers=None):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _cut(text, body):
    for stop in body.get("stop") or []:
        text = text.split(stop)[0]
    return text


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2]), sys.argv[3]).serve_forever()
