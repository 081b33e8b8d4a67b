"""An SMTP server for the length of a ``with`` block; what it was sent can be read."""

from email import message_from_bytes, policy

from aiosmtpd.controller import Controller

from penstock.child_process import free_port


class MailServer:
    """Takes every mail."""

    def __init__(self):
        self.mails = []
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)

    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.mails.append((tuple(envelope.rcpt_tos), mail))
        return "250 OK"

    def __enter__(self):
        self._controller.start()
        return self

    def __exit__(self, *_):
        self._controller.stop()
