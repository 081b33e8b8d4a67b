"""A request as the gateway would tell a trace about it."""

KEYS = {
    "LANGFUSE_PUBLIC_KEY": "pk-lf-public",
    "LANGFUSE_SECRET_KEY": "sk-lf-secret",
    "LANGSMITH_API_KEY": "lsv2-secret",
}
PROMPT = (("system", "You help."), ("user", "Write to ann@example.org, please."))
ANSWER = "Done: I wrote to ann@example.org."
LINEAGE = {"version": 3, "digest": "ab" * 32, "run_id": "20261127-1", "data_version": "rows@4"}
RESPONSE_ID = "chatcmpl-" + "ab" * 8 + "-019ac5d0f3a07c1e8d2f3a4b5c6d7e8f"


def request(tracer, status=200, error=None, **begin):
    """One chat: gateway, route, queue, backend; returns its trace."""
    trace = tracer.begin(**begin)
    trace.note(method="POST", endpoint="/v1/chat/completions", request_id="req-1")
    trace.note(session="conversation-7", tenant="acme", key_id="key-2")
    with trace.span("route", epoch=9):
        trace.note(asked="support", intent="refund", arm="champion", **LINEAGE)
    trace.note(operation="chat", provider="ctranslate2", model="penny", stream=True)
    trace.note(temperature=0.5, top_p=0.9, max_tokens=64, seed=17)
    with trace.span("queue") as queue:
        queue.note(queue_s=0.25, num_waiting=2)
    with trace.span("backend") as backend:
        backend.note(ttft_s=0.125)
    trace.note(response_id=RESPONSE_ID, prompt_tokens=12, completion_tokens=8)
    trace.note(finish_reason="stop", cost_usd=0.002)
    trace.prompt(PROMPT)
    trace.answer(ANSWER)
    trace.end(status, error)
    return trace


def by_step(spans):
    return {span.attributes["penstock.step"]: span for span in spans}
