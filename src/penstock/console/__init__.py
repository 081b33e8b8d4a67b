"""A few pages about a project, served by this process: what is, why, and what to do now.

::

    guard.py     who may ask: hosts, the admin key, where a form came from
    desk.py      what the ledger and the store say, as the pages show it; beside it for one page
                 each: alarm_views.py, drift_desk.py, live.py, feedback_view.py
    pages.py     pages that only show
    actions.py   pages that ask once more, and do what a command would do; alarm_actions.py
    forms.py     what all of these have: a question, a reason, a word when it is done
    charts.py    inline SVG
    app.py       paths, and how errors look
    templates/   HTML, all of it escaped

There is no script on any page, and nothing comes from another host.
"""

from penstock.console.app import create_console, gateway_console, serve_console

__all__ = ["create_console", "gateway_console", "serve_console"]
